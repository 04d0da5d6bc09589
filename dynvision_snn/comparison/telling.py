"""A comparison as tables: which quantities, in which order, with which footnotes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from dynvision_snn.comparison.measures import (
    Value,
    joules_of,
    measured,
    over_runs,
    ratio,
    stands_against,
)
from dynvision_snn.energy import HardwareProfile
from dynvision_snn.energy.pricing import TERM_NAMES
from dynvision_snn.moments import SETTLING
from dynvision_snn.report.numbers import MeanSD
from dynvision_snn.report.pareto import pareto_front
from dynvision_snn.report.tables import Column, Grid, Noted, lay_out, to_text
from dynvision_snn.simulation import Simulation

if TYPE_CHECKING:
    from dynvision_snn.comparison.comparison import Comparison

__all__ = ["Table", "html", "plain_rows", "presented", "priced_by", "tables", "text", "values"]

_NOT_PRICED = "Not priced: the profile has no figure for some of its synaptic operations."
_AT_LEAST = "At least this: without the layers that are not counted."
_BY_PART = "By an energy without the layers that are not counted."


@dataclass(frozen=True)
class Table:
    """One table of a comparison.

    Attributes:
        key: what files and labels call it.
        title: shown above.
        grid: models side by side.
    """

    key: str
    title: str
    grid: Grid


def values(comparison: Comparison) -> dict[str, dict[str, Value]]:
    """Every quantity of every model; see `measured`."""
    told = {}
    for name, runs in comparison.runs.items():
        each = [measured(run, comparison.profiles) for run in runs]
        if comparison.baseline not in (None, name):
            base = comparison.runs[comparison.baseline]
            for run, row in zip(runs, each, strict=True):
                for profile in comparison.profiles:
                    for key, value in stands_against(run, base, profile).items():
                        row[f"{key}[{profile.name}]"] = value
        told[name] = over_runs(each)
    return told


def _on_front(told: Mapping[str, Mapping[str, Value]], profile: HardwareProfile) -> dict[str, bool]:
    """Whether no other model has both less energy and more accuracy at the last timestep."""
    points = [
        (_mean(row[f"joules[{profile.name}]"]), _mean(row["accuracy_last"]))
        for row in told.values()
    ]
    return dict(zip(told, pareto_front(points), strict=True))


def plain_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """See `Comparison.rows`."""
    told = values(comparison)
    base = None if comparison.baseline is None else told[comparison.baseline]
    compared = _compared(comparison)
    shared: dict[str, dict[str, Any]] = {name: {} for name in told}
    for profile in comparison.profiles:
        for name, front in _on_front(told, profile).items():
            shared[name][f"pareto[{profile.name}]"] = front
        source = priced_by(comparison, profile)
        for also in shared.values():
            also[f"source[{profile.name}]"] = source
    rows = []
    for name, measures in told.items():
        row: dict[str, Any] = {"model": name, "runs": len(comparison.runs[name])}
        for key, value in measures.items():
            row[key] = value.mean if isinstance(value, MeanSD) else value
            if isinstance(value, MeanSD):
                row[f"{key}_sd"] = value.sd
            if base is not None and key in compared:
                row[f"{key}_ratio"] = ratio(value, base.get(key))
        row |= shared[name]
        row["uncounted"] = ", ".join(_uncounted(comparison)[name])
        row["differences"] = " ".join(comparison.differences)
        rows.append(row)
    return rows


def tables(comparison: Comparison) -> list[Table]:
    """All tables: the main one first, then ratios, phases and terms, decisions."""
    made = [_main(comparison)]
    if comparison.baseline is not None:
        made.append(_ratios(comparison))
    made.append(_details(comparison))
    decisions = _decisions(comparison)
    return made if decisions is None else [*made, decisions]


def text(comparison: Comparison, width: int) -> str:
    """The main table, and the ratios where there is a baseline, under what differs."""
    above = "".join(f"{sentence}\n" for sentence in comparison.differences)
    main, *others = [table for table in tables(comparison) if table.key in ("comparison", "ratios")]
    marks = {note: mark for mark, note in main.grid.footnotes if mark}
    shown = [to_text(main.grid, title=main.title, width=width)]
    for table in others:
        # Sources are long: what stands above already is pointed to.
        notes = [
            (mark, f"As {marks[note]} above." if note in marks else note)
            for mark, note in table.grid.footnotes
        ]
        grid = replace(table.grid, footnotes=tuple(notes))
        shown.append(to_text(grid, title=table.title, width=width))
    return "\n".join([*([above] if above else []), *shown])


def html(comparison: Comparison, to_html: Callable[..., str]) -> str:
    """The main table for a notebook, under what differs."""
    above = [f"<p>{escape(sentence)}</p>" for sentence in comparison.differences]
    table = tables(comparison)[0]
    return "\n".join([*above, to_html(table.grid, title=table.title)])


def priced_by(comparison: Comparison, profile: HardwareProfile) -> str:
    """Where a profile's figures are from, and what it leaves out of these models."""
    lacking = {
        term
        for runs in comparison.runs.values()
        for run in runs
        for term in joules_of(run, profile).lacking
    }
    names = [TERM_NAMES[term] for term in TERM_NAMES if term in lacking]
    left_out = f"It has no figure for {', '.join(names)}: left out." if names else ""
    said = [f"{profile.name} ({profile.basis}): {profile.source}.", left_out, *profile.caveats]
    return " ".join(filter(None, said))


def _main(comparison: Comparison) -> Table:
    several = len(comparison.profiles) > 1
    rule = _first_rule(comparison)
    columns = [
        Column("accuracy_last", "accuracy, last", "%", decimals=1),
        Column("accuracy", "accuracy, all", "%", decimals=1),
        Column("settling_time", "settling", "ms", decimals=1),
    ]
    if rule is not None:
        columns += [
            Column(f"decision_time[{rule}]", "decision", "ms", decimals=1, note=_told(rule)),
            Column(f"reached[{rule}]", "decided", "%", decimals=1, note=_told(rule)),
        ]
    columns += [
        Column("firing_rate", "rate", "Hz", decimals=1),
        Column("synops_ac", "ACs", decimals=0),
        Column("synops_mac", "MACs", decimals=0),
        Column("synops_dense", "dense SynOps", decimals=0),
        Column("neuron_updates", "neuron updates", decimals=0),
    ]
    for profile in comparison.profiles:
        of = f", {profile.name}" if several else ""
        note = priced_by(comparison, profile)
        key = f"[{profile.name}]"
        columns.append(Column(f"joules{key}", f"energy{of}", "J", si=True, note=note))
        for moment in filter(None, (SETTLING, rule)):
            until = f"energy to {'settling' if moment == SETTLING else 'decision'}{of}"
            columns.append(Column(f"joules_until{key}[{moment}]", until, "J", si=True, note=note))
        columns.append(Column(f"pareto{key}", f"Pareto front{of}", note=_FRONT))
    columns += [
        Column("n_parameters", "parameters"),
        Column("model_bytes", "memory", "B", si=True, note="Of parameters and buffers."),
        Column("uncounted", "not counted"),
    ]
    told = values(comparison)
    fronts = {p.name: _on_front(told, p) for p in comparison.profiles}
    rows = []
    for row in _noted(comparison):
        model = row["model"]
        row["uncounted"] = ", ".join(_uncounted(comparison)[model]) or None
        for name, front in fronts.items():
            told_front = "yes" if front[model] else "no"
            row[f"pareto[{name}]"] = Noted(told_front, _BY_PART if row["uncounted"] else "")
        rows.append(row)
    title = f"{len(rows)} models" if len(rows) > 1 else "1 model"
    return Table("comparison", title, _grid(rows, columns, list(_general_notes(comparison))))


_FRONT = "No other model has both less energy and more accuracy at the last supervised timestep."


def _ratios(comparison: Comparison) -> Table:
    baseline = comparison.baseline
    assert baseline is not None
    told = values(comparison)
    compared = _compared(comparison)
    rows = []
    for name, measures in told.items():
        row: dict[str, Any] = {"model": name}
        base = told[baseline]
        row |= {key: ratio(measures.get(key), base.get(key)) for key in compared}
        row |= {key: v for key, v in measures.items() if key.startswith("break_even")}
        rows.append(row)
    columns = [Column(key, title, note=note) for key, (title, note) in compared.items()]
    several = len(comparison.profiles) > 1
    for profile in comparison.profiles:
        of = f", {profile.name}" if several else ""
        columns.append(
            Column(
                f"break_even_rate[{profile.name}]",
                f"break-even rate{of}",
                "Hz",
                note=f"The firing rate at which the model would cost what {baseline} costs, all "
                "that spikes cause scaled alike; a dash where no rate does. More than a spike per "
                "timestep cannot be: there, the model costs less at any rate.",
            )
        )
    notes = ["Of means over runs."] if any(len(r) > 1 for r in comparison.runs.values()) else []
    partial = [name for name, layers in _uncounted(comparison).items() if layers]
    if partial:
        notes.append(
            f"Energies and SynOps of {', '.join(partial)} are without the layers that are not "
            "counted: what is set against them may be too high or too low."
        )
    grid = _grid(rows, columns, notes)
    return Table("ratios", f"Ratios to {baseline}", grid)


def _details(comparison: Comparison) -> Table:
    columns = [
        Column("accuracy", "accuracy, supervised", "%", decimals=1),
        Column("accuracy_reaction", "accuracy, reaction window", "%", decimals=1),
        Column("accuracy_null", "accuracy, null input", "%", decimals=1),
        Column("spikes", "spikes"),
    ]
    for profile in comparison.profiles:
        note = priced_by(comparison, profile)
        for term, name in {**TERM_NAMES, "static": "static power"}.items():
            key = f"joules[{profile.name}][{term}]"
            columns.append(
                Column(key, f"energy of {name}, {profile.name}", "J", si=True, note=note)
            )
    notes = [
        "Null input and reaction windows are never supervised: their accuracy is about the last "
        "stimulus shown."
    ]
    return Table("details", "By phase and by term", _grid(list(_noted(comparison)), columns, notes))


def _decisions(comparison: Comparison) -> Table | None:
    moments = list(
        dict.fromkeys(m for runs in comparison.runs.values() for run in runs for m in run.moments)
    )
    if not moments:
        return None
    columns = []
    for moment in moments:
        time = "settling_time" if moment == SETTLING else f"decision_time[{moment}]"
        columns += [
            Column(time, f"{moment}: time", "ms", decimals=1),
            Column(f"reached[{moment}]", f"{moment}: reached", "%", decimals=1),
            Column(f"accuracy[{moment}]", f"{moment}: accuracy", "%", decimals=1),
        ]
        for profile in comparison.profiles:
            key = f"joules_until[{profile.name}][{moment}]"
            title = f"{moment}: energy, {profile.name}"
            columns.append(Column(key, title, "J", si=True, note=priced_by(comparison, profile)))
    notes = [
        "From each onset, over the samples that get there; those that do not count as wrong. "
        "Settling is known in hindsight only; a decision may fall within the reaction window."
    ]
    return Table(
        "decisions", "Settling and decisions", _grid(list(_noted(comparison)), columns, notes)
    )


def _grid(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], notes: list[str]) -> Grid:
    """Quantities as rows and models as columns, without quantities that no model has."""
    kept = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return lay_out(rows, [Column("model", "model"), *kept], notes=notes).transposed()


def _noted(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Rows of values, energies with what must be known of them beside."""
    uncounted = _uncounted(comparison)
    for name, measures in values(comparison).items():
        row: dict[str, Any] = {"model": name, **measures}
        for key, value in measures.items():
            if not key.startswith("joules"):
                continue
            if value is None and key.count("[") == 1:
                row[key] = Noted(None, _NOT_PRICED)
            elif value is not None and uncounted[name]:
                row[key] = Noted(value, _AT_LEAST)
        yield row


def _compared(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """What ratios are told of: key, title and footnote."""
    told: dict[str, tuple[str, str]] = {}
    several = len(comparison.profiles) > 1
    rule = _first_rule(comparison)
    for profile in comparison.profiles:
        of = f", {profile.name}" if several else ""
        note = priced_by(comparison, profile)
        told[f"joules[{profile.name}]"] = (f"energy{of}", note)
        for moment in filter(None, (SETTLING, rule)):
            until = "settling" if moment == SETTLING else "decision"
            told[f"joules_until[{profile.name}][{moment}]"] = (f"energy to {until}{of}", note)
    told |= {
        "settling_time": ("settling", ""),
        "synops_dense": ("dense SynOps", ""),
        "neuron_updates": ("neuron updates", ""),
        "n_parameters": ("parameters", ""),
    }
    return told


def _first_rule(comparison: Comparison) -> str | None:
    """The first decision rule that every run has."""
    every = [run.moments for runs in comparison.runs.values() for run in runs]
    shared = [m for m in every[0] if m != SETTLING and all(m in moments for moments in every)]
    return shared[0] if shared else None


def _told(rule: str) -> str:
    return f"Decision by {rule}, over the samples that decide."


def _uncounted(comparison: Comparison) -> dict[str, list[str]]:
    return {
        name: list(dict.fromkeys(layer for run in runs for layer in run.budget.uncounted))
        for name, runs in comparison.runs.items()
    }


def presented(comparison: Comparison) -> Iterator[str]:
    """How many samples were shown how, once for all models that it is true of."""
    seen: dict[str, list[str]] = {}
    for name, (run, *_) in comparison.runs.items():
        told = f"{run.n_samples} samples, each {run.presentation.describe()}."
        seen.setdefault(told, []).append(name)
    for told, names in seen.items():
        yield told if len(seen) == 1 else f"{', '.join(names)}: {told}"


def _general_notes(comparison: Comparison) -> Iterator[str]:
    yield from presented(comparison)
    counts = {name: len(runs) for name, runs in comparison.runs.items()}
    if any(count > 1 for count in counts.values()):
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"Mean ± standard deviation over runs (seeds, checkpoints): {told}."
    yield (
        "Counts and energies per sample. Accuracy at the last and over all supervised timesteps; "
        "settling from each onset, in hindsight."
    )
    decoded: dict[str, list[str]] = {}
    for name, (run, *_) in comparison.runs.items():
        decoded.setdefault(_decoded(run), []).append(name)
    yield "Decoded: " + "; ".join(f"{what} ({', '.join(n)})" for what, n in decoded.items()) + "."


_EVIDENCE: Mapping[str, str] = {
    "membrane": "",
    "running_mean": "the running mean of ",
    "spike_count": "the spike count of ",
    "first_spike": "the first spike of ",
}


def _decoded(run: Simulation) -> str:
    since = "" if run.decoding == "membrane" else " since the onset"
    if run.decoding in ("spike_count", "first_spike"):
        return f"{_EVIDENCE[run.decoding]}{run.readout}{since}"
    if run.readout is None:
        what = "the model's output"
    elif run.membrane_is is None:
        what = f"the output of {run.readout}"
    else:
        reset = (
            "without a reset" if run.membrane_is == "without" else f"{run.membrane_is} the reset"
        )
        what = f"the membrane of {run.readout}, {reset}"
    return f"{_EVIDENCE[run.decoding]}{what}{since}"


def _mean(value: Value) -> float:
    mean = value.mean if isinstance(value, MeanSD) else value
    return float("nan") if mean is None else mean
