"""What differs between simulations that stand side by side, besides their models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynvision_snn.simulation import Simulation

__all__ = ["differences"]


def differences(runs: Mapping[str, Sequence[Simulation]]) -> list[str]:
    """Sentences about data, decoding, presentation, decision rules, package versions and devices.

    One for each thing that is not the same in all simulations; none if all agree.
    """
    facts = {
        name: [_facts(simulation) for simulation in simulations]
        for name, simulations in runs.items()
    }
    keys = dict.fromkeys(key for each in facts.values() for fact in each for key in fact)
    sentences = []
    for key in keys:
        holders: dict[str, list[str]] = {}
        for name, each in facts.items():
            for fact in each:
                models = holders.setdefault(fact.get(key, "none"), [])
                if name not in models:
                    models.append(name)
        if len(holders) > 1:
            told = "; ".join(f"{value} ({', '.join(names)})" for value, names in holders.items())
            sentences.append(f"Different {key}: {told}.")
    return sentences


def _facts(simulation: Simulation) -> dict[str, str]:
    presentation: Iterable[tuple[str, Any]] = simulation.presentation.to_dict().items()
    return {
        "data": str(simulation.data),
        "decoding": simulation.decoding,
        **{f"presentation's {key}": str(value) for key, value in presentation},
        **{
            f"rule called {name!r}": moment.rule
            for name, moment in simulation.moments.items()
            if moment.rule
        },
        **simulation.environment,
    }
