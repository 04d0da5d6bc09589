"""What is known of each class without calling it, and what is refused or warned about."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from adapter_cases import CASES, NORSE, SNNTORCH, TORCH_RECURRENT, Case, adapter_of, case_name
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from snntorch._neurons import leakykernel, leakyunroll
from torch import Tensor, nn

from dynvision_snn.adapters import Adapters, norse_table, pytorch, snntorch_table
from dynvision_snn.errors import AdapterError

# -- traits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_traits(case: Case) -> None:
    module = case.module()
    traits = adapter_of(module).traits(module)
    assert traits is not None
    assert traits.role is case.role
    assert traits.sequence is case.sequence
    assert traits.membrane == case.membrane
    assert traits.time_axis == case.time_axis
    assert traits.dt == (1.0 if case in NORSE else None)


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_a_subclass_is_served_as_its_base(case: Case) -> None:
    module = case.module()
    expected = adapter_of(module).traits(module)
    module.__class__ = type("Mine", (type(module),), {"__module__": "my_package"})
    layer = Adapters().layer(module)
    assert layer is not None
    assert (layer.traits.role, layer.traits.sequence) == (expected.role, expected.sequence)


def test_what_is_no_neuron_has_no_traits() -> None:
    modules = (
        nn.Linear(2, 2),
        nn.Softmax(dim=-1),
        nn.Dropout(),
        nn.Sequential(),
        norse.Lift(nn.Linear(2, 2)),
        norse.SequentialState(nn.Linear(2, 2)),
        norse.PoissonEncoder(3),
        snn.GradedSpikes(3, 1.0),
    )
    for module in modules:
        assert Adapters().layer(module) is None, module


def test_containers() -> None:
    adapters = Adapters()

    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    lift = norse.Lift(nn.Linear(2, 2))
    for container in (
        nn.Sequential(),
        norse.SequentialState(),
        norse.RecurrentSequential(),
        lift,
    ):
        assert adapters.is_container(container), container
    for other in (Own(), nn.Linear(2, 2), nn.ModuleList(), snn.Leaky(0.9)):
        assert not adapters.is_container(other), other
    (adapter,) = adapters.asked(lift)
    assert adapter.loops_children(lift)
    assert not adapter.loops_children(norse.SequentialState())


# -- every class of the libraries is either in a table or known to be no neuron -------------------

NO_NEURONS = {
    "snntorch": {"SpikingNeuron", "LIF", "GradedSpikes", "RecurrentOneToOne", "SpikeTime"}
    | {"STDPLearner"},
    "norse.torch": {"SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell"}  # bases
    | {"Lift", "SequentialState", "RecurrentSequential"}  # containers
    | {"ConvNet", "ConvNet4", "VGG", "MobileNetV2", "ConvBNReLU", "InvertedResidual"}  # models
    | {"CubaLIF", "TemporalReceptiveField"}  # pass states to neurons of their own
    | {"ConstantCurrentLIFEncoder", "PoissonEncoder", "PoissonEncoderStep", "PopulationEncoder"}
    | {"SignedPoissonEncoder", "SignedPoissonEncoderStep", "SpikeLatencyEncoder"}
    | {"SpikeLatencyLIFEncoder", "SpikesToTimesDecoder"}
    | {"LConv2d", "ExpFilter", "RegularizationCell", "SpatialReceptiveField2d"}
    | {"SampledSpatialReceptiveField2d", "ParameterizedSpatialReceptiveField2d"},
}


def classes_of(library: ModuleType) -> dict[type[nn.Module], str]:
    """Every Module class that the library defines, exported or not."""
    found: dict[type[nn.Module], str] = {}
    for info in pkgutil.walk_packages(library.__path__, f"{library.__name__}."):
        if ".test" in info.name or info.name.endswith("coba_lif_adjoint"):  # the latter is broken
            continue
        members = vars(importlib.import_module(info.name)).values()
        for member in members:
            if (
                inspect.isclass(member)
                and issubclass(member, nn.Module)
                and member.__module__.startswith(library.__name__)
            ):
                found[member] = member.__name__
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("library", "table"), [(snn, snntorch_table), (norse, norse_table)], ids=["snntorch", "norse"]
)
def test_a_class_that_a_new_release_brings_is_noticed(library: ModuleType, table: Any) -> None:
    classes = classes_of(library)
    known = {*table.TABLE, *table.REFUSED}
    unknown = {name for cls, name in classes.items() if cls not in known}
    assert unknown == NO_NEURONS[library.__name__]
    assert known <= set(classes)


def test_every_activation_of_torch_is_known() -> None:
    others = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    served = {cls.__name__ for cls in pytorch.ACTIVATIONS}
    assert served == set(nn.modules.activation.__all__) - others


def test_every_class_in_a_table_is_tested() -> None:
    tested = {case.cls for case in (*SNNTORCH, *NORSE, *TORCH_RECURRENT)}
    assert tested == {
        *snntorch_table.TABLE,
        *norse_table.TABLE,
        *pytorch.CELLS,
        *pytorch.SEQUENCES,
    }


# -- refusals -----------------------------------------------------------------------------------


class MyNeuron(snn.SpikingNeuron):
    pass


def _unknown_of_norse(base: type[nn.Module], sizes: tuple[int, ...] = ()) -> nn.Module:
    cls = type("MyCell", (base,), {})
    return cls(lambda *a: a, lambda x: x, *sizes, p=None)


REFUSALS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "SLSTM": (
        lambda: snn.SLSTM(3, 4),
        r"SLSTM is refused: .*restarts from zeros .* Linear\(3, 4\)",
    ),
    "RSynaptic": (
        lambda: snn.RSynaptic(0.8, 0.9, linear_features=3, reset_delay=False),
        r"RSynaptic is refused: with reset_delay=False",
    ),
    "LeakyParallel": (
        lambda: snn.LeakyParallel(3, 4, weight_hh_enable=True),
        r"LeakyParallel is refused: with weight_hh_enable=True it mixes",
    ),
    "AssociativeLeaky": (
        lambda: snn.AssociativeLeaky(3, 2, 2, 4),
        r"AssociativeLeaky is refused: with use_q_projection=True",
    ),
    "LeakyKernel": (
        lambda: leakykernel.LeakyKernel(3, 4),
        r"LeakyKernel is refused: it is an unfinished class",
    ),
    "leakyunroll": (
        lambda: leakyunroll.LeakyParallel(3, 4),
        r"LeakyParallel is refused: it is an unfinished class .* use snntorch.LeakyParallel",
    ),
    "CobaLIFCell": (
        lambda: norse.CobaLIFCell(3, 4),
        r"Norse's CobaLIFCell is refused: it ignores its input",
    ),
    "LIFCorrelation": (
        lambda: norse.LIFCorrelation(3, 4),
        r"LIFCorrelation is refused: its weights are arguments",
    ),
    "of-snntorch": (MyNeuron, r"MyNeuron is a neuron class of snnTorch .*docs/adapters.md"),
    "of-norse-cell": (lambda: _unknown_of_norse(SNNCell), r"MyCell is a neuron class of Norse"),
    "of-norse": (lambda: _unknown_of_norse(SNN), r"MyCell is a neuron class of Norse"),
    "of-norse-recurrent": (
        lambda: _unknown_of_norse(SNNRecurrent, (2, 3)),
        r"MyCell is a neuron class of Norse",
    ),
    "of-norse-recurrent-cell": (
        lambda: _unknown_of_norse(SNNRecurrentCell, (2, 3)),
        r"MyCell is a neuron class of Norse .*LIFCell, .*adapters=\[MyAdapter\(\)\]",
    ),
    "of-torch": (
        lambda: type("MyRNN", (nn.RNNBase,), {})("LSTM", 2, 3),
        r"MyRNN is a neuron class of torch",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_class_and_the_reason(name: str) -> None:
    build, message = REFUSALS[name]
    with pytest.raises(AdapterError, match=f"(?s){message}"):
        Adapters().layer(nn.Sequential(build())[0])


@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, nn.LSTM])
def test_sequences_that_cannot_be_told_apart_are_refused(cls: Any) -> None:
    from dynvision_snn.adapters import Call

    module = cls(3, 4)
    adapter = adapter_of(module)
    packed = nn.utils.rnn.pack_sequence([torch.rand(4, 3), torch.rand(2, 3)])
    with pytest.raises(AdapterError, match="PackedSequence"):
        adapter.read(module, Call((packed,), {}, module(packed)))
    with pytest.raises(AdapterError, match="without a batch axis"):
        adapter.read(module, Call((torch.rand(5, 3),), {}, module(torch.rand(5, 3))))


def test_sparse_spikes_are_refused() -> None:
    from dynvision_snn.adapters import Call

    module, x = norse.LIFRecurrentCell(3, 4), torch.rand(2, 3).to_sparse()
    with pytest.raises(AdapterError, match="sparse"):
        adapter_of(module).read(module, Call((x,), {}, module(x)))


# -- caveats ------------------------------------------------------------------------------------


def _changed_reset() -> nn.Module:
    module = snn.Leaky(0.9)
    module.reset_mechanism = "none"
    return module


CAVEATS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "Lapicque": (
        lambda: snn.Lapicque(beta=0.9),
        r"Lapicque steps by Euler: .* = 0.8946, not by its beta of 0.9",
    ),
    "Lapicque-learnt": (
        lambda: snn.Lapicque(beta=0.9, learn_beta=True),
        r"learn_beta=True\) cannot be trained",
    ),
    "SLSTM": (lambda: snn.SLSTM(3, 3), r"SLSTM never spikes at its threshold of 1:"),
    "SConv2dLSTM": (
        lambda: snn.SConv2dLSTM(1, 1, 3),
        r"SConv2dLSTM never spikes at its threshold of 1:",
    ),
    "StateLeaky": (
        lambda: snn.StateLeaky(beta=torch.tensor([0.5, 0.9]), channels=2),
        r"StateLeaky decays by exp.*0.6065 to 0.9048 per timestep, not by its beta of 0.5 to 0.9",
    ),
    "LinearLeaky": (lambda: snn.LinearLeaky(0.9, 2, 3), r"LinearLeaky decays by exp"),
    "StateLeaky-graded": (
        lambda: snn.StateLeaky(beta=0.9, channels=2, graded_spikes_factor=2.0),
        r"StateLeaky multiplies its spikes by graded_spikes_factor twice",
    ),
    "LeakyParallel": (
        lambda: snn.LeakyParallel(2, 2, beta=torch.tensor([0.5, 0.9])),
        r"LeakyParallel ignores a beta of more than one value",
    ),
    "AssociativeLeaky": (
        lambda: snn.AssociativeLeaky(3, 2, 2, 4, use_q_projection=False),
        r"AssociativeLeaky divides by products .* drifts",
    ),
    "reset": (_changed_reset, r"built with reset_mechanism='subtract' .* now says 'none'"),
    "inhibition": (
        lambda: snn.Leaky(0.9, inhibition=True),
        r"inhibition=True\) resets every neuron above threshold",
    ),
    "LSNN": (norse.LSNNCell, r"LSNNCell's default tau_adapt_inv of 1/800 .* 800 s"),
    "LIFAdEx": (norse.LIFAdEx, r"LIFAdEx's default tau_ada_inv of 2 .* 500 ms"),
    "LIFAdExRefrac": (norse.LIFAdExRefracCell, r"tau_ada_inv of 2 .* 500 ms"),
    "Izhikevich": (
        lambda: norse.IzhikevichCell(norse.tonic_spiking),
        r"IzhikevichCell has tau_inv=250 per second: a millisecond .* lasts 4 ms",
    ),
    "LIFRefrac": (
        norse.LIFRefracCell,
        r"LIFRefracCell counts its refractory period in timesteps: rho_reset=5 lasts as many",
    ),
    "LIFMCRefrac": (
        lambda: norse.LIFMCRefracRecurrentCell(2, 3),
        r"does not multiply its coupling by dt",
    ),
    "record_states": (
        lambda: norse.LIF(record_states=True),
        r"record_states=True\) returns the states of all timesteps",
    ),
    "deep copy": (
        lambda: copy.deepcopy(norse.LIFRecurrent(2, 3)),
        r"LIFRecurrent is a deep copy, which lost the hook",
    ),
    "bidirectional": (
        lambda: nn.LSTM(2, 3, bidirectional=True),
        r"LSTM\(bidirectional=True\) reads the future",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CAVEATS)
def test_caveats(name: str) -> None:
    build, message = CAVEATS[name]
    module = build()
    caveats = adapter_of(module).traits(module).caveats
    assert any(re.search(message, caveat) for caveat in caveats), caveats


WITHOUT_CAVEATS: dict[str, Callable[[], nn.Module]] = {
    "Leaky": lambda: snn.Leaky(0.9, reset_mechanism="none"),
    "DeltaLeaky": lambda: snn.DeltaLeaky(1.0, 0.9),
    "SLSTM": lambda: snn.SLSTM(3, 3, threshold=0.5),
    "LeakyParallel": lambda: snn.LeakyParallel(3, 3, beta=0.9),
    "LIF": norse.LIF,
    "LIFRecurrent": lambda: norse.LIFRecurrent(2, 3),
    "LIFRecurrent-autapses": lambda: copy.deepcopy(norse.LIFRecurrent(2, 3, autapses=True)),
    "LSNN": lambda: norse.LSNN(norse.LSNNParameters(tau_adapt_inv=torch.tensor(1 / 0.8))),
    "LIFAdEx": lambda: norse.LIFAdEx(norse.LIFAdExParameters(tau_ada_inv=torch.tensor(10.0))),
    "Izhikevich": lambda: norse.IzhikevichCell(
        norse.create_izhikevich_spiking_behavior(0.02, 0.2, -65, 8, -65, -65, tau_inv=1000)
    ),
    "LSTM": lambda: nn.LSTM(2, 3),
    "ReLU": nn.ReLU,
}


@pytest.mark.parametrize("name", WITHOUT_CAVEATS)
def test_what_is_as_expected_has_no_caveat(name: str) -> None:
    module = WITHOUT_CAVEATS[name]()
    assert adapter_of(module).traits(module).caveats == ()
