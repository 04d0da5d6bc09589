"""What an engine must know of a neuron to scan it over time without calling it.

A `ScanSpec` says in plain words what one timestep of a neuron computes, in the order in which its
library computes it, so that a kernel can repeat it bit for bit. Adapters write specs; engines read
them. The words are general, so that a third library's neuron fits too:

1. **synapse** (optional): the input charges a current, and the current drives the membrane;
2. **earlier reset** (`before`): where the last recorded membrane was above the threshold, the reset
   that this spike is still owed;
3. **update**: the membrane ``v`` before any reset of this timestep, from the last one ``u``;
4. **spike**: ``s = 1`` where ``v - threshold > 0``, with a surrogate gradient;
5. **reset of this timestep** (`after`): the membrane ``u`` that is recorded and carried on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from torch import Tensor

from dynvision_snn.errors import AdapterError


class Synapse(IntEnum):
    """What the input ``x`` does to a current ``i`` before it reaches the membrane.

    ``NONE``: there is no current, the membrane receives ``x``. ``DECAY``: ``i = k i + x``, and the
    membrane receives ``i``. ``EULER``: ``i = i + x``, the membrane receives ``i``, and then
    ``i = i + k i`` with a negative ``k``.
    """

    NONE = 0
    DECAY = 1
    EULER = 2


class Update(IntEnum):
    """How the membrane ``v`` follows from the last one ``u`` and its input ``x``.

    ``DECAY``: ``v = k u + x``. ``EULER``: ``v = u + k ((leak - u) + x)``. ``EULER_INPUT_FIRST``:
    ``v = u + k ((x + leak) - u)``, the same but for rounding. ``SUM``: ``v = u + x``.
    """

    DECAY = 0
    EULER = 1
    EULER_INPUT_FIRST = 2
    SUM = 3


class Before(IntEnum):
    """The reset owed to a spike of the last timestep: ``r = 1`` where ``u - threshold > 0``.

    It carries no gradient. ``SUBTRACT``: ``v - r threshold``. ``ZERO``: the update starts from
    ``(1 - r) u``. ``ZERO_UPDATE``: ``v - r v``, so that the input of the timestep is lost too.
    """

    NONE = 0
    SUBTRACT = 1
    ZERO = 2
    ZERO_UPDATE = 3


class After(IntEnum):
    """The reset that a spike has at its own timestep.

    ``VALUE``: ``u = (1 - s) v + s reset_value``. ``SUBTRACT``: ``u = (1 - s) v + s (v -
    threshold)``. ``OWED_SUBTRACT`` and ``OWED_ZERO`` follow an earlier reset ``r`` and are not made
    twice: ``u = v - (s - r) threshold`` and ``u = v - (s - r) v``; ``s`` keeps its gradient.
    """

    NONE = 0
    OWED_SUBTRACT = 1
    OWED_ZERO = 2
    VALUE = 3
    SUBTRACT = 4


class SurrogateKind(StrEnum):
    """The surrogate derivative of a spike, as a function of ``x = v - threshold``.

    With the parameters ``a`` and ``b`` of `Surrogate`:

    ===================  =====================================================
    ``none``             0
    ``straight_through`` 1
    ``heaviside``        1 where x > 0
    ``atan``             a / 2 / (1 + (pi / 2 a x)^2)
    ``fast_sigmoid``     1 / (a abs(x) + 1)^2
    ``sparse_sigmoid``   1 / (a abs(x) + 1)^2 where x > b
    ``sigmoid``          a exp(-a x) / (exp(-a x) + 1)^2
    ``sign``             a where x < 0, else -a
    ``rate_escape``      b exp(-a abs(x - 1))
    ``triangle``         a max(0, 1 - abs(x))
    ``tanh``             1 - tanh(a x)^2
    ``circle``           a^3 / (a^2 + x^2)^1.5
    ``erfc``             2 exp(-(a x)^2) / sqrt(pi)
    ===================  =====================================================
    """

    NONE = "none"
    STRAIGHT_THROUGH = "straight_through"
    HEAVISIDE = "heaviside"
    ATAN = "atan"
    FAST_SIGMOID = "fast_sigmoid"
    SPARSE_SIGMOID = "sparse_sigmoid"
    SIGMOID = "sigmoid"
    SIGN = "sign"
    RATE_ESCAPE = "rate_escape"
    TRIANGLE = "triangle"
    TANH = "tanh"
    CIRCLE = "circle"
    ERFC = "erfc"


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A surrogate derivative and its parameters; see `SurrogateKind` for what they mean."""

    kind: SurrogateKind
    a: float = 1.0
    b: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Recurrence:
    """How the spikes of the last timestep come back as input.

    Attributes:
        weight: ``[units, units]`` (out, in), applied as ``torch.nn.functional.linear``; with
            `diagonal`, what the spikes are multiplied with, one number or one per unit.
        bias: ``[units]``, or None.
        diagonal: whether each neuron is connected with itself alone.
    """

    weight: Tensor
    bias: Tensor | None = None
    diagonal: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class ScanSpec:
    """One timestep of a neuron. A spec holds the tensors of one run, graph included.

    Every tensor is one number or has a shape that broadcasts to the units.

    Attributes:
        update, rate: the membrane's update and its ``k``; no rate where the update is ``SUM``.
        threshold: None for a neuron that never fires (an integrator).
        surrogate: the derivative of its spikes; None where it never fires.
        before, after: its resets.
        reset_value: where the membrane goes under ``After.VALUE``.
        reset_detached: whether the reset of this timestep lets no gradient into the spike.
        leak: the membrane's resting value in the Euler updates.
        synapse, synapse_rate: its current, and the current's ``k``.
        spike_value: what a spike is worth (graded spikes); None for 1.
        initial_membrane: the membrane that a run starts from; None for 0.
        gains: numbers that the input is multiplied with, one after the other, beforehand.
        input_weight: ``[units, features]``, where the neuron module has input weights.
        recurrence: its recurrent connection, where it has one.

    Raises:
        AdapterError: where the parts contradict each other.
    """

    update: Update
    rate: Tensor | None = None
    threshold: Tensor | None = None
    surrogate: Surrogate | None = None
    before: Before = Before.NONE
    after: After = After.NONE
    reset_value: Tensor | None = None
    reset_detached: bool = False
    leak: Tensor | None = None
    synapse: Synapse = Synapse.NONE
    synapse_rate: Tensor | None = None
    spike_value: Tensor | None = None
    initial_membrane: Tensor | None = None
    gains: tuple[Tensor, ...] = ()
    input_weight: Tensor | None = None
    recurrence: Recurrence | None = None

    def __post_init__(self) -> None:
        """Checks that what each part needs is there."""
        euler = self.update in (Update.EULER, Update.EULER_INPUT_FIRST)
        resets = self.before is not Before.NONE or self.after is not After.NONE
        owed = self.after in (After.OWED_SUBTRACT, After.OWED_ZERO)
        wrong = {
            "a rate, for its update": (self.rate is None) != (self.update is Update.SUM),
            "a leak, for its Euler update": euler != (self.leak is not None),
            "a synapse_rate, for its synapse": (self.synapse is Synapse.NONE)
            != (self.synapse_rate is None),
            "a threshold and a surrogate, or neither": (self.threshold is None)
            != (self.surrogate is None),
            "a threshold, for its reset or recurrence": self.threshold is None
            and (resets or self.recurrence is not None),
            "a reset_value, for its reset": (self.after is After.VALUE)
            != (self.reset_value is not None),
            "an earlier reset, since one is owed": owed and self.before is Before.NONE,
        }
        missing = [need for need, failed in wrong.items() if failed]
        if missing:
            raise AdapterError(f"a ScanSpec needs {'; '.join(missing)}.")

    @property
    def fires(self) -> bool:
        """Whether the neuron emits spikes; otherwise its output is its membrane."""
        return self.threshold is not None
