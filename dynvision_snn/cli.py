"""The ``dynvision-snn`` command: parses, calls, prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from dynvision_snn.errors import ConfigError, DynvisionError, MissingExtraError

try:
    import typer
except ImportError as error:
    raise MissingExtraError("typer", "cli", "The dynvision-snn command") from error

import torch

from dynvision_snn.demo import BUILDERS, DemoSettings, run_demo
from dynvision_snn.description import describe as describe_model
from dynvision_snn.factories import model_factory
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.report.files import check_free
from dynvision_snn.report.tables import Column, lay_out, to_text
from dynvision_snn.training import Epoch

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
    out: Annotated[
        Path, typer.Option(help="Folder for the table, the figures and the numbers.")
    ] = Path("results"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite that folder.")] = False,
    only: Annotated[
        bool, typer.Option("--only", help="Leave out the built-in models that --model names not.")
    ] = False,
) -> None:
    """Train models alike on real handwritten digits, and compare accuracy, time and energy.

    Without options: a snnTorch, a Norse and a non-spiking GRU model.
    """
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
    )
    builders = {} if only else dict(BUILDERS)
    for text in model or []:
        name, _, path = text.rpartition("=")
        builders[name or text.rpartition(":")[2]] = model_factory(path)
    sys.stderr.write(f"{settings.presentation().describe()}\n")
    comparison = run_demo(builders, settings, on_epoch=_report_epoch)
    comparison.save(out, force=force)
    sys.stdout.write(f"\n{comparison.table()}\nSaved in {out}: {_names(out)}\n")


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
    try:
        app(standalone_mode=True)
    except DynvisionError as error:
        sys.stderr.write(f"\ndynvision-snn: {error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
