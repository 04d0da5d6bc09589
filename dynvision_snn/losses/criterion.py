"""Several losses as one weighted sum, built from the form that a configuration file has."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from numbers import Real
from types import MappingProxyType, TracebackType
from typing import Any, Self, cast

from torch import Tensor, nn

from dynvision_snn.errors import LossError, known_names
from dynvision_snn.losses.base import BaseLoss

ENTRY_POINT_GROUP = "dynvision_snn.losses"

_BUILT_IN = {"CrossEntropyLoss": "cross_entropy", "EnergyLoss": "energy", "SynopsLoss": "synops"}
_ENTRY_KEYS = ("name", "loss", "weight", "kwargs", "label")


@dataclass(frozen=True, eq=False)
class LossTerm:
    """One loss of a criterion.

    Attributes:
        loss: the loss; its reduction must not be ``"none"``.
        weight: its factor in the sum, finite and not negative.
        label: its name in `Criterion.components`; by default the name of its class.

    Raises:
        LossError: any of these is not so.
    """

    loss: BaseLoss
    weight: float = 1.0
    label: str = ""

    def __post_init__(self) -> None:
        kind = type(self.loss).__name__
        if not isinstance(self.loss, BaseLoss):
            raise LossError(
                f"A criterion adds up losses that are a BaseLoss; got an instance of {kind}. "
                "Subclass dynvision_snn.losses.BaseLoss and implement compute_loss."
            )
        if not isinstance(self.label, str):
            raise LossError(f"{kind} got label={self.label!r}. Expected a string.")
        object.__setattr__(self, "label", self.label or kind)
        number = isinstance(self.weight, Real) and not isinstance(self.weight, bool)
        if not number or not math.isfinite(self.weight) or self.weight < 0:
            hint = (
                " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(self.weight, str) else ""
            )
            raise LossError(
                f"{self.label} got weight={self.weight!r}. Expected a finite number from 0 up"
                f"{hint}."
            )
        object.__setattr__(self, "weight", float(self.weight))
        if self.loss.reduction == "none":
            raise LossError(
                f"{self.label} has reduction='none', which gives no scalar to add up. Use "
                "reduction='mean' or 'sum' in a criterion, or call the loss by itself."
            )


class Criterion(nn.Module):
    """``sum(weight * loss)`` over several losses; the values of each stay readable.

    The losses' hooks on a model are given back by `remove_hooks`, or at the end of a ``with``
    block, which also raises what checks of the last targets found.

    Args:
        terms: the losses with their weights and labels.

    Raises:
        LossError: no term, a label twice, or a loss twice.

    >>> import torch
    >>> from dynvision_snn.losses import CrossEntropyLoss
    >>> criterion = Criterion([
    ...     LossTerm(CrossEntropyLoss(), weight=0.5),
    ...     LossTerm(CrossEntropyLoss(reduction="sum"), weight=0.1, label="total"),
    ... ])
    >>> criterion(torch.zeros(4, 3, 10), torch.full((4, 3), 7))
    tensor(3.9144)
    >>> criterion.components
    {'CrossEntropyLoss': tensor(2.3026), 'total': tensor(27.6310)}
    """

    def __init__(self, terms: Sequence[LossTerm]) -> None:
        super().__init__()
        if not terms:
            raise LossError("A criterion needs at least one loss; got none.")
        labels = [term.label for term in terms]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise LossError(
                f"Several losses are called {', '.join(map(repr, twice))}. Give each a 'label' of "
                "its own, under which its value is reported."
            )
        if len({id(term.loss) for term in terms}) < len(terms):
            raise LossError(
                f"One loss instance stands under several of the labels {', '.join(labels)}. Give "
                "each an instance of its own."
            )
        self.losses = nn.ModuleList(term.loss for term in terms)
        self._weights = {term.label: term.weight for term in terms}
        self.components: dict[str, Tensor] = {}
        """The losses of the last call by label: unweighted, detached, still on their device."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights by label, read-only."""
        return MappingProxyType(self._weights)

    def forward(
        self,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        whole: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of all losses: a scalar.

        Args:
            outputs: what every loss compares: ``[T, B, C]`` or ``[N, C]``.
            targets: with what: ``[T, B]`` or ``[N]``.
            whole: where these are a piece of a run, the targets of all of it, ``[T, B]``: losses
                of pieces then add up to the loss of the whole. `components` are the piece's share.

        Raises:
            LossError: a loss refuses the two, or is not a scalar.
        """
        values = self.values(outputs, targets, whole=whole)
        total, *others = (self._weights[label] * value for label, value in values.items())
        for other in others:
            total = total + other.to(total.device)
        return total

    def values(
        self,
        outputs: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        whole: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Each loss by label, unweighted and with its graph, for a sum of one's own.

        Arguments and errors as in `forward`.
        """
        # A loss of a user's own need not know of pieces.
        part = {} if whole is None else {"whole": whole}
        with ExitStack() as undo:
            # A batch whose loss fails must not be mixed into the activity of the next.
            undo.callback(self.reset)
            values = {
                label: loss(outputs, targets, **part)
                for label, loss in zip(self._weights, self.losses, strict=True)
            }
            undo.pop_all()
        for label, value in values.items():
            if value.ndim != 0:
                raise LossError(
                    f"{label} returned {list(value.shape)}. Expected a scalar: reduce its values "
                    "with apply_reduction."
                )
        self.components = {label: value.detach() for label, value in values.items()}
        return values

    def register_hooks(self, model: nn.Module) -> None:
        """Let every loss that observes a model observe this one; all of them, or none.

        Raises:
            LossError: `model` is not a module; or what a loss raises.
        """
        if not isinstance(model, nn.Module):
            raise LossError(
                f"A criterion observes a torch.nn.Module; got {type(model).__name__}. Pass the "
                "model itself as model=."
            )
        with ExitStack() as undo:
            for loss in self._base_losses():
                undo.callback(loss.remove_hooks)
                loss.register_hooks(model)
            undo.pop_all()

    def remove_hooks(self) -> None:
        """Give back every hook of every loss."""
        for loss in self._base_losses():
            loss.remove_hooks()

    def reset(self) -> None:
        """Forget what was observed since the last loss, as after a batch that is skipped."""
        for loss in self._base_losses():
            loss.reset()

    def check_targets(self) -> None:
        """Wait for the losses' target checks that are still under way on CUDA.

        Raises:
            LossError: an illegal target, naming it.
        """
        for loss in self._base_losses():
            loss.check_targets()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove_hooks()
        if error is None:
            self.check_targets()

    def extra_repr(self) -> str:
        """The weights, as the module prints them."""
        return ", ".join(f"{label}: {weight:g}" for label, weight in self._weights.items())

    def _base_losses(self) -> list[BaseLoss]:
        return [cast(BaseLoss, loss) for loss in self.losses]


def build_criterion(
    config: Sequence[Mapping[str, Any] | str | type[BaseLoss] | BaseLoss],
    model: nn.Module | None = None,
) -> Criterion:
    """Build a criterion from the form that a configuration file has.

    Each entry is a mapping with these keys, or the loss alone:

    - ``name`` or ``loss`` (one of the two): a name (``"cross_entropy_loss"`` and
      ``"CrossEntropyLoss"`` are the same, so are ``"energy_loss"`` and ``"EnergyLoss"``; other
      packages add names through the entry point group ``dynvision_snn.losses``), a subclass of
      `BaseLoss`, or an instance of one;
    - ``weight``: its factor in the sum, 1 by default;
    - ``kwargs``: the arguments of the class, for a name or a class;
    - ``label``: its name in `Criterion.components`, by default the class's name. Two losses of
      one class need one each.

    Args:
        config: the entries; they are not modified.
        model: what the losses of activity observe. `Criterion.remove_hooks` gives the hooks back.
            It can be left out for instances whose hooks are registered by hand.

    Raises:
        LossError: unknown keys, names or kwargs (the error lists the known ones), a weight that is
            not a finite number from 0 up, a label twice, no entry, ``reduction="none"``, a name
            that is registered twice, or a loss of activity without a `model`.

    >>> criterion = build_criterion([
    ...     {"name": "cross_entropy_loss", "weight": 1.0, "kwargs": {"ignore_index": -1}},
    ... ])
    >>> dict(criterion.weights)
    {'CrossEntropyLoss': 1.0}
    """
    if isinstance(config, str | Mapping) or not isinstance(config, Sequence):
        raise LossError(
            f"A criterion is built from a list of losses; got {type(config).__name__}. Write "
            "[{'name': 'cross_entropy_loss', 'weight': 1.0}]."
        )
    criterion = Criterion([_term(entry, hooked=model is not None) for entry in config])
    if model is not None:
        criterion.register_hooks(model)
    return criterion


def _term(entry: Mapping[str, Any] | str | type[BaseLoss] | BaseLoss, *, hooked: bool) -> LossTerm:
    """One entry of the configuration, its loss built; `hooked` says whether there is a model."""
    fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"name": entry}
    for key in fields:
        if key not in _ENTRY_KEYS:
            raise LossError(f"Unknown key {key!r} in a loss. {known_names(str(key), _ENTRY_KEYS)}")
    given = [key for key in ("name", "loss") if fields.get(key) is not None]
    if len(given) != 1:
        raise LossError(
            f"A loss was given by {' and '.join(given) or 'neither name nor loss'}: "
            f"{dict(fields)}. Expected exactly one of the two: a name, a class or an instance. "
            f"{known_names('', _known())}"
        )
    what, kwargs = fields[given[0]], fields.get("kwargs") or {}
    if isinstance(what, str | type):
        loss = _build(_find(what) if isinstance(what, str) else what, kwargs)
        if loss.needs_model and not hooked:
            raise LossError(
                f"{type(loss).__name__} observes a model and got none. Pass it: "
                "build_criterion(config, model=model)."
            )
    elif kwargs:
        raise LossError(
            f"A loss instance ({type(what).__name__}) came with kwargs {dict(kwargs)}. Give them "
            "where it is built, or name its class instead."
        )
    else:
        loss = what
    return LossTerm(loss, fields.get("weight", 1.0), fields.get("label") or "")


def _build(kind: type, kwargs: Any) -> BaseLoss:
    if not issubclass(kind, BaseLoss) or inspect.isabstract(kind):
        raise LossError(
            f"{kind.__name__} is not a loss that can be built. Subclass "
            "dynvision_snn.losses.BaseLoss and implement compute_loss."
        )
    if not isinstance(kwargs, Mapping):
        raise LossError(
            f"{kind.__name__} got kwargs={kwargs!r}. Expected a mapping, such as "
            "{'reduction': 'mean'}."
        )
    parameters = inspect.signature(kind).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    unknown = [] if takes_any else [key for key in kwargs if key not in named]
    if unknown:
        raise LossError(
            f"{kind.__name__} takes no {', '.join(map(repr, unknown))}. "
            f"{known_names(str(unknown[0]), named)}"
        )
    missing = [name for name, p in named.items() if p.default is p.empty and name not in kwargs]
    if missing:
        raise LossError(f"{kind.__name__} needs kwargs for {', '.join(map(repr, missing))}.")
    return kind(**kwargs)


def _known() -> dict[str, EntryPoint]:
    """Every name with what it stands for, not yet imported."""
    known = {
        name: EntryPoint(name, f"dynvision_snn.losses.{module}:{kind}", ENTRY_POINT_GROUP)
        for kind, module in _BUILT_IN.items()
        for name in (kind, re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower())
    }
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        if plugin.name in known:
            raise LossError(
                f"The loss name {plugin.name!r} is registered twice: by {known[plugin.name].value} "
                f"and by {plugin.value}. Uninstall one package, or pass the class itself."
            )
        known[plugin.name] = plugin
    return known


def _find(name: str) -> type:
    known = _known()
    if name not in known:
        raise LossError(f"Unknown loss {name!r}. {known_names(name, known)}")
    found = known[name].load()
    if not isinstance(found, type):
        raise LossError(
            f"The loss name {name!r} stands for {known[name].value}, which is no class. Expected "
            "a subclass of dynvision_snn.losses.BaseLoss."
        )
    return found
