"""The ``dynvision-snn`` command: parses, calls, prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dynvision_snn.engine.choosing import EngineName
from dynvision_snn.errors import ConfigError, DynvisionError, MissingExtraError

try:
    import typer
except ImportError as error:
    raise MissingExtraError("typer", "cli", "The dynvision-snn command") from error

import torch

from dynvision_snn.comparison import (
    DEFAULT_PROFILES,
    DEFAULT_RULES,
    Comparison,
    join,
    load_all,
    rebuild,
)
from dynvision_snn.demo import BUILDERS, DemoSettings, run_demo
from dynvision_snn.description import describe as describe_model
from dynvision_snn.factories import model_factory
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.report.files import check_free
from dynvision_snn.report.tables import Column, lay_out, to_text
from dynvision_snn.training import Epoch

if TYPE_CHECKING:
    from dynvision_snn.config import TrainingConfig

app = typer.Typer(
    name="dynvision-snn",
    help="Biologically timed simulation, training and energy budgets of spiking networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DEFAULTS = DemoSettings()


@app.callback()
def commands() -> None:
    """Biologically timed simulation, training and energy budgets of spiking networks."""


@app.command()
def compare(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RESULTS]...",
            help="Saved comparisons (JSON files, or folders that hold one) to set side by side, "
            "instead of training anything.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PACKAGE.MODULE:FACTORY",
            help="Add a model, or replace the one of that NAME (snnTorch, Norse, GRU). The factory "
            "is called with dt= in ms if it takes that; importing it runs its module's code. "
            "May be given several times.",
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(help="Presentation: 0 is null input, 1 the digit; entries share the time."),
    ] = _DEFAULTS.pattern,
    dt: Annotated[float, typer.Option(help="Length of a timestep, in ms.")] = _DEFAULTS.dt,
    duration: Annotated[
        float, typer.Option(help="Length of the presentation, in ms.")
    ] = _DEFAULTS.duration,
    reaction_time: Annotated[
        float, typer.Option(help="From the onset to the first supervised timestep, in ms.")
    ] = _DEFAULTS.reaction_time,
    energy_weight: Annotated[
        float, typer.Option(help="Weight of the energy loss; cross-entropy weighs 1.")
    ] = _DEFAULTS.energy_weight,
    epochs: Annotated[int, typer.Option(help="Passes over the 1433 training digits.")] = (
        _DEFAULTS.epochs
    ),
    learning_rate: Annotated[
        float, typer.Option(help="Of Adam at first; falls to 0 along a cosine.")
    ] = _DEFAULTS.learning_rate,
    seed: Annotated[
        int, typer.Option(help="Of initial weights and the order of images.")
    ] = _DEFAULTS.seed,
    runs: Annotated[
        int, typer.Option(help="Trainings of each model, with as many seeds from --seed on.")
    ] = _DEFAULTS.runs,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="How models are run: auto and layer many timesteps at once, within a stated "
            "tolerance (docs/engine.md); step as their libraries would, bit for bit."
        ),
    ] = _DEFAULTS.engine,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Hardware profile for energies; may be given several times."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Model that ratios and break-even are against.  [default: GRU]"),
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="Models of one name in several RESULTS are its runs.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for tables, figures, report and numbers.  [default: results; nothing "
            "where RESULTS are given]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that folder.")] = False,
    only: Annotated[
        bool, typer.Option("--only", help="Leave out the built-in models that --model names not.")
    ] = False,
) -> None:
    """Train models alike on real handwritten digits, and compare accuracy, time and energy.

    Without options: a snnTorch, a Norse and a non-spiking GRU model. With RESULTS: the models
    saved there, of different runs or machines, side by side.
    """
    if results:
        if out is not None:
            check_free(out, force=force)
        joined = join(load_all(results), pool=pool, profiles=profile, baseline=baseline)
        _show(joined, out, force)
        return
    out = out or Path("results")
    check_free(out, force=force)
    settings = DemoSettings(
        pattern=pattern,
        dt=dt,
        duration=duration,
        reaction_time=reaction_time,
        energy_weight=energy_weight,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        runs=runs,
        engine=engine,
    )
    builders = {} if only else dict(BUILDERS)
    for text in model or []:
        name, _, path = text.rpartition("=")
        builders[name or text.rpartition(":")[2]] = model_factory(path)
    sys.stderr.write(f"{settings.presentation().describe()}\n")
    comparison = run_demo(
        builders,
        settings,
        profiles=profile or DEFAULT_PROFILES,
        baseline=baseline,
        on_epoch=_report_epoch,
    )
    _show(comparison, out, force)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder that holds saved comparisons.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Another folder for what is made; by default it replaces what is there."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that folder.")] = False,
) -> None:
    """Make all tables, figures and reports again, from the saved numbers alone."""
    place = rebuild(results, out, force=force)
    sys.stdout.write(f"Made again in {place}: {_names(place)}\n")


def _show(comparison: Comparison, out: Path | None, force: bool) -> None:
    if out is not None:
        comparison.save(out, force=force)
    saved = ""
    if out is not None:
        count = sum(1 for _ in out.iterdir()) if out.is_dir() else 1
        pages = ", ".join(page.name for page in sorted(out.glob("*report.html")))
        saved = f"\nSaved in {out}: {count} files{f'; open {pages}' if pages else ''}\n"
    sys.stdout.write(f"\n{comparison.table()}{saved}")


@app.command()
def describe(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY",
            help="Called with dt= in ms if it takes that; importing it runs its module's code.",
        ),
    ],
    dt: Annotated[float, typer.Option(help="Length of a timestep, in ms.")] = _DEFAULTS.dt,
    features: Annotated[
        str | None,
        typer.Option(
            help="Shape of one sample at one timestep, such as 1,8,8: the model is then run for "
            "one timestep, and its units, synapses, stepping and readout are told too."
        ),
    ] = None,
) -> None:
    """Show what the adapters find in a model: layers, roles, time constants, synapses."""
    net = model_factory(model)(dt)
    wrapped = net if isinstance(net, TimedModel) else wrap(net, dt)
    images = None if features is None else torch.ones(1, *_shape(features))
    found = describe_model(wrapped, images)
    columns = [Column(key, key) for key in found.rows()[0]]
    grid = lay_out(found.rows(), columns, notes=found.footnotes)
    sys.stdout.write(to_text(grid, title=found.title))


_CONFIG = typer.Argument(
    metavar="CONFIG.YAML",
    help="Settings; see docs/training.md. The factories that it names are imported, which runs "
    "their modules' code.",
)


@app.command()
def train(
    config: Annotated[Path, _CONFIG],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder that it names.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Another folder than the settings'.")] = None,
) -> None:
    """Train as a YAML file says, to an energy limit if it sets one; stopped runs can be resumed."""
    from dynvision_snn.training.lightning import is_first_process, train

    result = train(_settings(config, out), resume=resume)
    if is_first_process():
        sys.stdout.write(f"{result}\n")


@app.command()
def sweep(
    config: Annotated[Path, _CONFIG],
    out: Annotated[Path | None, typer.Option(help="Another folder than the settings'.")] = None,
) -> None:
    """Train once for each energy weight or limit, in parallel; runs that are finished are kept."""
    from dynvision_snn.training.lightning import sweep

    def report(value: float, result: object) -> None:
        sys.stderr.write(f"{value:g}: {result}\n")

    settings = _settings(config, out)
    whole = sweep(settings, on_run=report)
    sys.stdout.write(f"\n{whole.table()}\nSaved in {settings.out}: {_names(Path(settings.out))}\n")


@app.command()
def simulate(
    config: Annotated[Path, _CONFIG],
    checkpoint: Annotated[Path, typer.Option(help="Of a training with the same settings.")],
    name: Annotated[
        str | None,
        typer.Option(
            help="What the model is called beside others.  [default: the folder of the settings]"
        ),
    ] = None,
    every: Annotated[
        float | None, typer.Option(help="Run in chunks of this many ms, for long runs.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file for the numbers, or a folder for tables, figures and report, too: a "
            "comparison of one model, which `compare` sets beside others."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
) -> None:
    """Run a trained model on the test set: accuracy, time, and its energy budget."""
    from dynvision_snn.training.lightning import simulate_checkpoint

    settings = _settings(config, None)
    if out is not None:
        check_free(out, force=force)
    found = simulate_checkpoint(settings, checkpoint, every=every, rules=DEFAULT_RULES)
    if out is not None:
        alone = Comparison({name or Path(settings.out).name: found}, [settings.profile])
        alone.save(out, force=force)
    sys.stdout.write(f"{found}\n{found.budget}\n{found.budget.joules(settings.profile)}\n")


def _settings(path: Path, out: Path | None) -> TrainingConfig:
    from dynvision_snn.config import load_config
    from dynvision_snn.training.lightning import quieten

    quieten()
    settings = load_config(path)
    return settings if out is None else settings.model_copy(update={"out": str(out)})


def _shape(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--features {text}: expected sizes from 1 up, such as 64 or 1,8,8.")
    return [int(part) for part in parts]


def _report_epoch(model: str, epoch: Epoch) -> None:
    values = ", ".join(f"{label} {value:.4f}" for label, value in epoch.components.items())
    line = f"{model}: epoch {epoch.number}, {values}"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{line}")
    elif epoch.number % 5 == 0:
        sys.stderr.write(f"{line}\n")


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir()))


def main() -> None:
    """The command's entry point: an error of the package is a message, not a traceback."""
    # A factory may be named from the folder that the command is run in, as with `python -m`.
    sys.path.insert(0, "")
    try:
        app(standalone_mode=True)
    except DynvisionError as error:
        sys.stderr.write(f"\ndynvision-snn: {error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
