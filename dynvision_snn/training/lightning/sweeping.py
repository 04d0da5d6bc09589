"""A sweep over energy weights or limits: one run each, several at a time, none twice.

The sweep's folder (the configuration's `out`) holds a run's folder for each value, and
``sweep.json``, ``table.txt`` and ``pareto.png``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynvision_snn.config import SweepSettings, TrainingConfig, parse_config
from dynvision_snn.energy import resolve_profile
from dynvision_snn.errors import ConfigError, DynvisionError, TrainingError
from dynvision_snn.report.figure import save_figure
from dynvision_snn.report.files import write_text, writing_file
from dynvision_snn.report.pareto import accuracy_against_energy, pareto_front
from dynvision_snn.report.tables import Column, lay_out, to_text
from dynvision_snn.training.lightning.running import (
    TrainingResult,
    finished_result,
    quieten,
    read_result,
    train,
)
from dynvision_snn.training.target import SYMBOLS

SCHEMA = 1
"""Version of ``sweep.json``'s layout."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep came to.

    Attributes:
        over: what was varied: ``"energy_weight"`` or ``"limit"``.
        results: by value, in the order of the configuration.
        profile: that joules are for.
    """

    over: str
    results: dict[float, TrainingResult]
    profile: str

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per run; `front` says whether no other run beats it."""
        points = [(result.joules, result.accuracy) for result in self.results.values()]
        return [
            {
                self.over: value,
                "accuracy": result.accuracy,
                "firing_rate": result.firing_rate,
                "synops": result.synops,
                "joules": result.joules,
                "limit_met": result.met,
                "front": front,
            }
            for (value, result), front in zip(
                self.results.items(), pareto_front(points), strict=True
            )
        ]

    def table(self) -> str:
        """The runs as a text table, with the source of the joules."""
        rows = [
            row
            | {
                self.over: f"{row[self.over]:g}",
                "front": "yes" if row["front"] else "",
                "limit_met": {None: "", True: "yes", False: "NO"}[row["limit_met"]],
            }
            for row in self.rows()
        ]
        columns = [
            Column(self.over, self.over.replace("_", " "), self._unit()),
            Column("accuracy", "accuracy", "%", decimals=1),
            Column("firing_rate", "rate", "Hz", decimals=1),
            Column("synops", "SynOps", decimals=0),
            Column("joules", "energy", "J", si=True, digits=4, note=_source(self.profile)),
            Column("front", "Pareto front"),
        ]
        if self.over == "limit":
            columns.append(Column("limit_met", "limit met"))
        return to_text(lay_out(rows, columns), title="Sweep")

    def _unit(self) -> str:
        """Of what was varied."""
        unit = next(iter(self.results.values())).unit
        return SYMBOLS[unit] if self.over == "limit" and unit is not None else ""

    def save(self, folder: Path) -> None:
        """Writes numbers, table and figure."""
        values = {"schema": SCHEMA, "over": self.over, "profile": self.profile, "runs": self.rows()}
        write_text(folder / "sweep.json", json.dumps(values, indent=1), force=True)
        write_text(folder / "table.txt", self.table() + "\n", force=True)
        figure = accuracy_against_energy(
            {
                f"{value:g} {self._unit()}".strip(): (result.joules, result.accuracy)
                for value, result in self.results.items()
            },
            title=f"Accuracy against energy, by {self.over.replace('_', ' ')}",
            note=_source(self.profile),
        )
        with writing_file(folder / "pareto.png", force=True) as hidden:
            save_figure(figure, hidden, force=True)


def sweep(
    config: TrainingConfig, *, on_run: Callable[[float, TrainingResult], None] | None = None
) -> Sweep:
    """Trains once for each value, in processes of their own; finished runs are only read.

    A run that was stopped goes on where it was. If one fails the others are still finished.

    Args:
        config: with a `sweep` section.
        on_run: told of each run that is finished.

    Raises:
        ConfigError: without such a section, or if there is nothing to vary.
        TrainingError: if runs failed; it names each with its reason.
    """
    settings = config.sweep
    if settings is None:
        raise ConfigError("the configuration has no sweep section, such as {values: [0, 0.1]}.")
    folder = Path(config.out)
    runs = {
        value: _run_of(config, settings, value, folder) for value in dict.fromkeys(settings.values)
    }
    results: dict[float, TrainingResult] = {}
    failed: dict[float, str] = {}
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // settings.jobs)
    with ProcessPoolExecutor(settings.jobs, context) as pool:
        waiting: dict[Future[TrainingResult], float] = {
            pool.submit(_train_alone, run.resolved(), threads): value
            for value, run in runs.items()
            if finished_result(run) is None
        }
        for future in as_completed(waiting):
            value = waiting[future]
            try:
                results[value] = future.result()
            except DynvisionError as error:
                failed[value] = str(error)
                continue
            if on_run is not None:
                on_run(value, results[value])
    if failed:
        reasons = "; ".join(f"{settings.over} {value:g}: {why}" for value, why in failed.items())
        raise TrainingError(
            f"{len(failed)} of {len(runs)} runs failed: {reasons}. The finished ones are kept and "
            "will not be run again."
        )
    finished = {value: read_result(run.out) for value, run in runs.items()}
    whole = Sweep(
        settings.over,
        {value: result for value, result in finished.items() if result is not None},
        config.profile,
    )
    whole.save(folder)
    return whole


def _run_of(
    config: TrainingConfig, settings: SweepSettings, value: float, folder: Path
) -> TrainingConfig:
    run = config.with_energy(settings.over, value).resolved()
    return parse_config(run | {"out": str(folder / f"{settings.over}={value:g}")})


def _train_alone(settings: dict[str, Any], threads: int) -> TrainingResult:
    """One run, in a process of its own."""
    quieten()
    torch.set_num_threads(threads)
    return train(parse_config(settings), resume=True, progress=False)


def _source(profile: str) -> str:
    known = resolve_profile(profile)
    return f"Joules by {known.name} ({known.basis}): {known.source}."
