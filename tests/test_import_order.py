"""Which room may import from which, and which file alone serves an optional library.

Every module is parsed, not imported, so that imports inside functions and under ``TYPE_CHECKING``
count as well: a room that needs a type of a higher room has its dependency the wrong way round.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "dynvision_snn"
ROOT = Path(__file__).parent.parent / PACKAGE

# Lowest first: each imports only from those before it, and within itself. A new file needs a line.
ROOMS = [
    "errors",
    "jit",  # functions compiled for the CPU
    "freed_memory",  # what the system is not given back
    "timing",
    "schedule",  # the rules behind presentation
    "presentation",
    "report",  # plain rows in; below all that shows itself in a notebook, or its progress
    "presentation_batch",  # one for each sample
    "varying",  # drawn anew for each batch or sample
    "noise",
    "encoding",
    "adapters",
    "observation",
    "spike_bits",  # what autograd keeps of spikes
    "finite",  # a listener that model and training share
    "energy",
    "losses",
    "engine",
    "recording",  # what model returns
    "model",
    "description",  # of a model
    "retiming",
    "evidence",  # what readout decodes
    "readout",
    "decision",  # when a readout's answer is good enough to act on
    "loading",  # a loader's batch, arranged in time
    "sources",  # and what it is shown by
    "provenance",  # what a simulation keeps of where it came from,
    "tracing",  # of one sample to look at,
    "moments",  # and of every sample's settling and decisions
    "answering",  # which are followed through each batch
    "gathering",  # and of all batches together
    "simulation",
    "comparison",
    "data",
    "factories",  # what a text of the command line or a configuration names
    "config",
    "training",
    "",  # the package itself, which exports from all above
    "demo",
    "cli",
]

REQUIRED = {"torch", "numpy"}

# Of each optional library the one file or folder that imports it.
OPTIONAL = {
    "snntorch": ["adapters/"],
    "norse": ["adapters/"],
    "spikingjelly": ["adapters/"],
    "numba": ["jit.py"],
    "triton": ["engine/"],
    "rich": ["report/"],
    "matplotlib": ["report/"],
    "jinja2": ["report/"],
    "pandas": ["report/"],
    "sklearn": ["data/digits.py"],
    "h5py": ["data/events.py"],
    "pydantic": ["config.py"],
    "yaml": ["config.py", "energy/hardware.py"],  # profile files are read below the config
    "lightning": ["training/lightning/"],
    "pytorch_lightning": ["training/lightning/"],
    "typer": ["cli.py"],
}


def _module_of(path: Path, root: Path) -> str:
    """``energy/meter.py`` as ``energy.meter``, ``energy/__init__.py`` as ``energy``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module's path below the package, and its syntax tree."""
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _imported(path: str, tree: ast.Module, modules: set[str]) -> Iterator[tuple[int, str]]:
    """The line and absolute dotted name of everything that a module imports, anywhere in it."""
    folder = (PACKAGE, *Path(path).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                below = f"{source}.{alias.name}"
                # `from package import room` imports the room, not a name of the package.
                yield node.lineno, below if below.removeprefix(f"{PACKAGE}.") in modules else source


def _room(module: str) -> str:
    return module.partition(".")[0]


def _order_violations(root: Path) -> list[str]:
    """Imports from a room that is not below the importing one."""
    modules = {_module_of(path, root) for path in root.rglob("*.py")}
    found = [
        f"{room or '__init__'} has no place in the order of rooms"
        for room in sorted({_room(module) for module in modules} - set(ROOMS))
    ]
    for path, tree in _sources(root):
        own = _room(_module_of(root / path, root))
        for line, name in _imported(path, tree, modules):
            if name.partition(".")[0] != PACKAGE:
                continue
            room = _room(name[len(PACKAGE) + 1 :])
            if room != own and {room, own} <= set(ROOMS) and ROOMS.index(room) > ROOMS.index(own):
                found.append(f"{path}:{line} imports {name}, which is not below it")
    return found


def _library_violations(root: Path) -> list[str]:
    """Imports of a library by a file that does not serve it."""
    modules = {_module_of(path, root) for path in root.rglob("*.py")}
    found = []
    for path, tree in _sources(root):
        for line, name in _imported(path, tree, modules):
            library = name.partition(".")[0]
            if library in REQUIRED or library == PACKAGE or library in sys.stdlib_module_names:
                continue
            homes = OPTIONAL.get(library, [])
            if not any(path == home or path.startswith(home) for home in homes):
                served = " and ".join(homes) or "no file at all"
                found.append(f"{path}:{line} imports {library}, which is served by {served}")
    return found


def _docstrings(tree: ast.Module) -> set[ast.AST]:
    """The string nodes that only document: docstrings, also those below an attribute."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every identifier, and of every word of every string that is data."""
    documentation = _docstrings(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)) if node not in documentation:
                for word in "".join(c if c.isalnum() or c == "_" else " " for c in text).split():
                    yield line, word
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield line, name.rpartition(".")[2]
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                yield line, name
            case ast.keyword(arg=str(name)):
                yield line, name


def _naming_violations(root: Path, neurons: set[str]) -> list[str]:
    """Places outside the adapters that know a neuron class of a library by name."""
    return [
        f"{path}:{line} names {word}"
        for path, tree in _sources(root)
        if not path.startswith("adapters/")
        for line, word in _words(tree)
        if word in neurons
    ]


def _neuron_classes() -> set[str]:
    """The names of all modules that snnTorch and Norse export, but for those torch has too."""
    from torch import nn

    norse = pytest.importorskip("norse.torch")
    snntorch = pytest.importorskip("snntorch")
    return {
        name
        for library in (norse, snntorch)
        for name, value in vars(library).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and not hasattr(nn, name)
    }


def test_rooms_import_only_from_the_rooms_below_them():
    assert _order_violations(ROOT) == []


def test_each_library_is_imported_only_where_it_is_served():
    assert _library_violations(ROOT) == []


def test_neuron_classes_are_named_only_by_the_adapters():
    neurons = _neuron_classes()
    assert {"Leaky", "RLeaky", "LIFCell", "LICell", "SequentialState"} <= neurons
    assert _naming_violations(ROOT, neurons) == []


def test_importing_the_package_loads_no_optional_library():
    code = f"import json, sys; import {PACKAGE}; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(shown.stdout)}
    assert PACKAGE in loaded
    # torch itself may load some of them; what it loads is not this package's doing.
    code = "import json, sys; import numpy, torch; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_torch = {name.partition(".")[0] for name in json.loads(shown.stdout)}
    assert (loaded - by_torch) & set(OPTIONAL) == set()


@pytest.fixture
def tree(tmp_path):
    """A small package that breaks nothing; tests add a file that does."""
    files = {
        "__init__.py": "from dynvision_snn.model import wrap as wrap\n",
        "errors.py": "import torch\nimport json\n",
        "adapters/__init__.py": "from dynvision_snn.adapters.base import A as A\n",
        "adapters/base.py": "from dynvision_snn.errors import E\nNAMES = ['Leaky']\n",
        "adapters/norse.py": "import norse.torch\nfrom .base import A\n",
        "model.py": '"""Leaky."""\nfrom dynvision_snn import adapters, errors\n',
        "demo.py": "import dynvision_snn\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_the_checks_pass_a_package_that_breaks_nothing(tree):
    assert _order_violations(tree) == []
    assert _library_violations(tree) == []
    assert _naming_violations(tree, {"Leaky"}) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("errors.py", "from dynvision_snn.model import wrap"),
        ("errors.py", "from dynvision_snn import model"),
        ("errors.py", "from . import model"),
        ("errors.py", "import dynvision_snn.model as m"),
        ("model.py", "import dynvision_snn"),
        ("adapters/base.py", "from ..model import wrap"),
        ("adapters/base.py", "def f():\n    from dynvision_snn.model import wrap"),
        ("adapters/base.py", "if TYPE_CHECKING:\n    from dynvision_snn.model import TimedModel"),
        ("nowhere.py", ""),
    ],
)
def test_an_import_from_above_is_found(tree, path, text):
    (tree / path).write_text(text)
    assert len(_order_violations(tree)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("model.py", "def f():\n    import matplotlib.pyplot as plt"),
        ("model.py", "from rich.table import Table"),
        ("model.py", "import norse.torch"),
        ("adapters/base.py", "import unheard_of"),
    ],
)
def test_a_library_in_the_wrong_file_is_found(tree, path, text):
    (tree / path).write_text(text)
    assert len(_library_violations(tree)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "is_leaky = type(x).__name__ == 'Leaky'",
        "x = 'snntorch.Leaky'",
        "def f(Leaky): ...",
        "class Leaky: ...",
        "snn.Leaky(0.9)",
        "f(Leaky=1)",
        "from snntorch import Leaky",
    ],
)
def test_a_neuron_class_named_outside_the_adapters_is_found(tree, text):
    (tree / "model.py").write_text(text)
    assert len(_naming_violations(tree, {"Leaky"})) == 1
