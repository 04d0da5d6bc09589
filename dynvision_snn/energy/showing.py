"""A budget's layers as a grid, for pages and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dynvision_snn.energy.layers import LayerEnergy
from dynvision_snn.report.tables import Column, Grid, lay_out

__all__ = ["layer_grid"]

_COLUMNS = (
    Column("name", "layer"),
    Column("kind", "class"),
    Column("neurons", "neurons"),
    Column("synapses", "synapses"),
    Column("spikes", "spikes"),
    Column("firing_rate", "rate", "Hz", decimals=1),
    Column("synops_ac", "ACs", decimals=0),
    Column("synops_mac", "MACs", decimals=0),
    Column("synops_dense", "dense SynOps", decimals=0),
    Column("neuron_updates", "neuron updates", decimals=0),
)


def layer_grid(
    rows: Sequence[LayerEnergy], uncounted: Mapping[str, str], notes: Iterable[str] = ()
) -> Grid:
    """Layers and their total, one below the other; what is not counted is said below.

    Args:
        rows: of a budget, the total last.
        uncounted: layers that could not be counted, and why.
        notes: further footnotes.
    """
    told = [{c.key: getattr(row, c.key) for c in _COLUMNS} for row in rows]
    for row in told:
        row["name"] = row["name"] or "(model)"
    missing = [f"Not counted: {name or '(model)'} ({why})." for name, why in uncounted.items()]
    return lay_out(told, _COLUMNS, notes=["Counts per sample.", *notes, *missing])
