"""What surrounds the code: public names, extras, README's commands, the documentation's links."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dynvision_snn as dvs
from dynvision_snn.errors import MissingExtraError

CHECKOUT = Path(__file__).parent.parent
PACKAGE = CHECKOUT / "dynvision_snn"

# The contract with users: names that stay.
PUBLIC = [
    "EnergyMeter",
    "HardwareProfile",
    "Presentation",
    "TimedModel",
    "compare",
    "describe",
    "hardware_profiles",
    "simulate",
    "wrap",
]
PUBLIC_LOSSES = ["BaseLoss", "CrossEntropyLoss", "EnergyLoss", "build_criterion"]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def readme_command():
    path = CHECKOUT / ".ci" / "readme_command.py"
    spec = importlib.util.spec_from_file_location("readme_command", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.readme_command


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_exported_and_documented(name):
    assert getattr(dvs, name).__doc__


@pytest.mark.parametrize("name", PUBLIC_LOSSES)
def test_a_public_loss_is_exported_and_documented(name):
    assert getattr(importlib.import_module("dynvision_snn.losses"), name).__doc__


def test_every_export_says_so():
    """``from x import y as y``: without it a type checker takes the name for private."""
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            ours = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "dynvision_snn"
            )
            if ours:
                for alias in node.names:
                    assert alias.asname == alias.name, f"{path}: {alias.name}"


def test_the_version_is_that_of_the_installed_package():
    assert importlib.metadata.version("dynvision-snn") == dvs.__version__
    assert (PACKAGE / "py.typed").exists()


def test_importing_norse_warns_nobody_of_what_it_scripts():
    """The one warning that Norse's own import causes; others stay."""
    code = "import dynvision_snn.adapters.norse"
    shown = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert "torch.jit" not in shown.stderr


def _extras_named() -> set[str]:
    """The extras that the errors about missing libraries tell users to install."""
    named = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == MissingExtraError.__name__:
                extra = node.args[1]
                assert isinstance(extra, ast.Constant), f"{path}:{node.lineno}"
                named.add(extra.value)
    return named


def test_every_extra_that_an_error_names_exists(project):
    assert _extras_named() - set(project["optional-dependencies"]) == set()
    assert "digits" in _extras_named()


def test_the_extra_all_has_everything_but_tools(project):
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    # SpikingJelly requires a torchaudio that does not fit every torch: only who asks gets it.
    apart = {"all", "dev", "spikingjelly"}
    assert set(re.findall(r"[\w-]+", everything.partition("[")[2])) == set(extras) - apart
    assert "dynvision-snn[all]" in extras["dev"]


def test_the_core_needs_torch_and_numpy_alone(project):
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert names == {"torch", "numpy"}


def test_readme_gives_the_two_commands_and_the_extras(readme_command, project):
    text = (CHECKOUT / "README.md").read_text()
    assert "dynvision-snn compare" in readme_command(text, "main-job")
    assert "pytest" in readme_command(text, "tests")
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in text


README = "<!-- command: a -->\n```bash\nls -l\n\nls\n```\ntext\n```bash\nrm\n```\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (README, "ls -l\n\nls\n"),
        (README.replace("a -->\n", "a -->\n\n"), "ls -l\n\nls\n"),
        (README + "<!-- command: b -->\n```bash\nb\n```\n", "ls -l\n\nls\n"),
    ],
)
def test_a_command_is_taken_out_as_it_stands(readme_command, text, expected):
    assert readme_command(text, "a") == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found 0"),
        (README * 2, "found 2"),
        (README.replace("-->\n", "-->\nAnd so:\n"), "right below"),
        (README.replace("bash", "python"), "right below"),
        ("<!-- command: a -->\n```bash\nls", "right below"),
        ("<!-- command: a -->\n```bash\n# nothing\n\n```\n", "holds no command"),
    ],
)
def test_a_missing_doubled_or_empty_command_is_an_error(readme_command, text, reason):
    with pytest.raises(ValueError, match=reason):
        readme_command(text, "a")


def test_a_missing_command_ends_the_script_with_an_error(tmp_path):
    (tmp_path / "README.md").write_text("no command")
    script = CHECKOUT / ".ci" / "readme_command.py"
    shown = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "README.md"), "tests"],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert "found 0 comments" in shown.stderr


def _links(page: Path) -> set[str]:
    """Where a Markdown page links to, without addresses and anchors."""
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())
    return {target for target in targets if "://" not in target}


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CHANGELOG.md",
        *sorted(path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs").glob("*.md")),
    ],
)
def test_every_link_of_the_documentation_leads_somewhere(page):
    path = CHECKOUT / page
    dead = {target for target in _links(path) if not (path.parent / target).exists()}
    assert dead == set()


def test_the_index_lists_every_page():
    pages = {path.name for path in (CHECKOUT / "docs").glob("*.md")} - {"index.md"}
    assert pages - _links(CHECKOUT / "docs" / "index.md") == set()
