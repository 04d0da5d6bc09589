"""At which timesteps calls were made, in a user's own loop that says nothing about time.

Layers with state are called once per timestep, so their calls tell how many timesteps a run had.
Other layers may be called more often (shared weights), less often (a constant input worked out
once), or now and then (a normalisation of its own for every timestep). Where the whole model was
called once per timestep, each call belongs to the model's; else to the layer's own counting.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynvision_snn.energy.rows import Noted, Row
from dynvision_snn.errors import EnergyError


def place_calls(rows: Sequence[Row], ticks: int) -> int:
    """Puts every call of a run at its timestep, and tells how many timesteps the run had.

    Args:
        rows: rows whose calls are numbered one after the other, each row by itself.
        ticks: how often the whole model was called.

    Raises:
        EnergyError: layers with state were called a different number of times, or it cannot be
            told at which timesteps a layer was called.
    """
    called = [row for row in rows if row.noted]
    n_timesteps = _n_timesteps(called, ticks)
    if ticks > n_timesteps:
        raise EnergyError(
            f"the model was called {ticks} times, but its layers were seen at {n_timesteps} "
            "timesteps only. A compiled model may have left its hooks out: call "
            "torch._dynamo.reset(), or meter the model uncompiled."
        )
    for row in called:
        if not row.keeps_time:
            row.noted = _placed(row, n_timesteps, ticks)
    return n_timesteps


def _n_timesteps(rows: Sequence[Row], ticks: int) -> int:
    kept = {row.name: row.n_timesteps for row in rows if row.keeps_time}
    if len(set(kept.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in kept.items())
        raise EnergyError(
            f"layers with state were called a different number of times within a run: {counts}. "
            "Each is called once per timestep: call meter.next_run() between batches, give each "
            "use of a layer a module of its own, or let dvs.wrap run the model."
        )
    if kept:
        return next(iter(kept.values()))
    if any(call.t1 - call.t0 > 1 for row in rows for call in row.noted):
        return max(row.n_timesteps for row in rows)
    return ticks or min(row.n_timesteps for row in rows)


def _placed(row: Row, n_timesteps: int, ticks: int) -> list[Noted]:
    calls, count = row.noted, row.n_timesteps
    stepped = all(call.t1 - call.t0 == 1 for call in calls)
    if stepped and ticks == n_timesteps:
        return [call.at(min(call.tick, n_timesteps - 1)) for call in calls]
    if count <= n_timesteps:
        return calls
    if stepped and count % n_timesteps == 0:
        return [call.at(call.t0 // (count // n_timesteps)) for call in calls]
    raise EnergyError(
        f"layer {row.name!r} was called for {count} timesteps in a run of {n_timesteps}, so it "
        "cannot be told when. Call the whole model once per timestep, or let dvs.wrap run it; if "
        "one call holds the whole sequence, say EnergyMeter(model, sequence=True)."
    )
