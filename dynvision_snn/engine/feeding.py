"""What feeds what: which layers' outputs reach each layer's input, and as which kind of signal.

A model's own forward joins its layers by operations that no module shows (a sum of two branches, a
pooling, a reshape). `Feeding` watches every tensor operation while a model runs and carries a label
along: what a tensor is made of. Operations that multiply or add, move or pool values keep the
labels of what they are given; any other operation makes a signal of its own, which cannot be told
apart any more. What is inside a neuron layer or a synapse layer is that layer's affair.

It is entered around some timesteps of a model that is thrown away afterwards: hooks stay on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from dynvision_snn.adapters import Call, Layer, Role
from dynvision_snn.adapters.base import tensors_of
from dynvision_snn.observation import Watched

AFFINE: tuple[type[nn.Module], ...] = (nn.Linear, _ConvNd, _BatchNorm)
"""Layers that multiply by a weight and add a bias (a batch normalisation in evaluation mode)."""

Kind = Literal["spikes", "analog", "affine", "unclear"]


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a signal is made of.

    Attributes:
        kind: ``"spikes"``: events, each in one timestep; ``"analog"``: values that last;
            ``"affine"``: what an affine layer made of its input; ``"unclear"``: neither.
        source: the layer that it comes from, or what else it is.
        call: at which of its source's calls it was made; None for what is no layer's.
    """

    kind: Kind
    source: str
    call: int | None = None


Signal = frozenset[Part]

INPUT = "the model's input"
CONSTANT = "a value made in the model's forward"


@dataclass(frozen=True, slots=True)
class Late:
    """A signal that reaches a layer later than at the timestep at which it was made."""

    consumer: str
    part: Part


class Feeding(TorchDispatchMode):
    """Labels every tensor with what it is made of, while entered.

    Args:
        watched: the modules of the model.
        inputs: the model's input over time.
        kind: what the input is, ``"analog"`` or ``"spikes"``.

    Attributes:
        received: what every neuron layer and affine layer received, over all its calls.
        taken: affine layers whose output some other operation took: the operation, by name.
    """

    def __init__(
        self, watched: Sequence[Watched], inputs: Tensor, kind: Literal["analog", "spikes"]
    ) -> None:
        super().__init__()
        self.received: dict[str, Signal] = {}
        self.taken: dict[str, str] = {}
        # With the tensor, so that it lives on and its id is not given to another.
        self._signals: dict[int, tuple[Tensor, Signal]] = {}
        self._calls: Counter[str] = Counter()
        self._arrivals: list[tuple[str, int, Part]] = []
        self._inside = 0
        self._affine = {
            item.name: item.module for item in watched if isinstance(item.module, AFFINE)
        }
        self._mark(inputs, Part(kind, INPUT))
        for item in watched:
            stateful = item.layer is not None and item.layer.is_stateful
            if not (stateful or isinstance(item.module, AFFINE)):
                continue
            item.module.register_forward_pre_hook(self._before(item.name), with_kwargs=True)
            item.module.register_forward_hook(self._after(item), with_kwargs=True)

    def signal(self, tensor: Tensor) -> Signal:
        """What a tensor is made of; empty where it has nothing to do with the input or a layer."""
        held = self._signals.get(id(tensor))
        return frozenset() if held is None else held[1]

    def _mark(self, tensor: Tensor, *parts: Part) -> None:
        self._signals[id(tensor)] = (tensor, frozenset(parts))

    def content(self, signal: Signal, within: frozenset[str] = frozenset()) -> set[Kind]:
        """What a signal is, through the affine layers that made it: of spikes, lasting, or both."""
        content: set[Kind] = set()
        for part in signal:
            if part.kind != "affine":
                content.add(part.kind)
            elif part.source not in within:
                content |= self.content(self.received[part.source], within | {part.source})
                if affine_bias(self._affine[part.source]) is not None:
                    content.add("analog")
        return content

    def late(self) -> Iterator[Late]:
        """Signals that the model's own forward keeps for a later timestep."""
        arrivals = dict.fromkeys(self._arrivals)
        # A layer called when all timesteps are known receives later ones too: they were stacked.
        stacked = {
            (consumer, part.source)
            for consumer, call, part in arrivals
            if part.call is not None and part.call > call
        }
        for consumer, call, part in arrivals:
            if part.call is None or (consumer, part.source) in stacked:
                continue
            # Layers of another rhythm (a whole sequence at once) count other calls.
            if self._calls[consumer] == self._calls[part.source] and part.call < call:
                yield Late(consumer, part)

    # -- layers -----------------------------------------------------------------------------------

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            signal = self.signal(Call(args, kwargs, None).inputs)
            self.received[name] = self.received.get(name, frozenset()) | signal
            self._arrivals += [(name, self._calls[name], part) for part in signal]
            self._inside += 1

        return hook

    def _after(self, item: Watched) -> Any:
        name = item.name

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = self._calls[name]
            if item.layer is None:
                self._mark(output, Part("affine", name, call))
            else:
                for tensor in tensors_of(output):
                    self._mark(tensor, Part("analog", name, call))
                yielded = item.layer.adapter.output(module, Call(args, kwargs, output))
                kind: Kind = "spikes" if fires_events(item.layer) else "analog"
                self._mark(yielded, Part(kind, name, call))
            self._calls[name] += 1
            self._inside -= 1

        return hook

    # -- operations -------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation and labels what it yields."""
        result = func(*args, **(kwargs or {}))
        if not self._inside:
            self._label(func, args, kwargs or {}, result)
        return result

    def _label(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        name = func.overloadpacket.__name__
        given = list(tensors_of((args, kwargs)))
        made = self._made(name.rstrip("_"), given, args)
        if made is None:
            return
        for tensor in tensors_of(result):
            self._mark(tensor, *made)
            if name.endswith("_") and tensor._base is not None:
                # Written into a part of a larger tensor, which then holds it too.
                self._mark(tensor._base, *self.signal(tensor._base), *made)

    def _made(self, name: str, given: Sequence[Tensor], args: tuple[Any, ...]) -> Signal | None:
        """What an operation makes of what it is given; None where no signal is involved."""
        signals = [self.signal(tensor) for tensor in given]
        labelled = [signal for signal in signals if signal]
        if not labelled or name in _SHAPES_ALONE:
            return None
        if name == "copy":
            return signals[1]
        divides = name == "div" and not signals[0]
        if name in _MOVES or (name in _PRODUCTS and len(labelled) == 1 and not divides):
            return labelled[0]
        everything = frozenset(part for signal in labelled for part in signal)
        if name in _SUMS:
            # Zeros, from which sums are begun, add nothing.
            unlabelled = any(
                not signal and bool(tensor.any())
                for tensor, signal in zip(given, signals, strict=True)
            )
            adds_number = name in ("add", "sub", "rsub") and any(
                isinstance(arg, int | float) and arg != 0 for arg in args
            )
            constant = {Part("analog", CONSTANT)} if unlabelled or adds_number else set()
            return everything | constant
        for part in everything:
            if part.kind == "affine":
                self.taken.setdefault(part.source, name)
        lasting = self.content(everything) == {"analog"}
        return frozenset({Part("analog" if lasting else "unclear", f"the operation {name!r}")})


def fires_events(layer: Layer) -> bool:
    """Whether a layer's output comes as events: spikes that reset what fired them.

    A spiking layer that is never reset is above its threshold for as long as its input holds it
    there: its output is a value that lasts.
    """
    return layer.traits.role is Role.SPIKING and layer.traits.membrane != "without"


def affine_bias(module: nn.Module) -> Tensor | None:
    """The bias of an affine layer."""
    bias = module.bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


# Operations of torch's own (aten), without the trailing underscore of those that work in place.
# fmt: off
_SHAPES_ALONE = frozenset([
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
])
_MOVES = frozenset([
    "alias", "view", "_unsafe_view", "_reshape_alias", "reshape", "expand", "permute",
    "transpose", "t", "squeeze", "unsqueeze", "select", "slice", "split", "split_with_sizes",
    "unsafe_split", "chunk", "unbind", "detach", "clone", "contiguous", "_to_copy",
    "lift_fresh", "as_strided", "index", "index_select", "gather", "flip", "repeat", "unfold",
    "constant_pad_nd", "sum", "mean", "neg", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "max_pool1d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "native_dropout",
])
# fmt: on
_PRODUCTS = frozenset(["mul", "div"])
_SUMS = frozenset(["add", "sub", "rsub", "cat", "stack"])
