"""wrap and TimedModel: time, state, recording, and nothing left behind."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import norse.torch as norse
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import (
    CLASSES,
    DT,
    FEATURES,
    HIDDEN,
    STYLES,
    ExplicitStates,
    LoopInside,
    Style,
    leaky,
    loop_init_hidden,
    loop_state,
    sequential_init_hidden,
    sequential_state_lifted,
    sequential_state_of_cells,
)
from snntorch import functional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dynvision_snn as dvs
from dynvision_snn import Presentation, TimedModel
from dynvision_snn.errors import (
    ObservationError,
    PresentationError,
    TimingError,
    WrapError,
)
from dynvision_snn.readout import UNDECIDED, decode

# The reference: the library's own numbers, bit for bit.
wrap = partial(dvs.wrap, engine="step")

every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
T, B = 8, 3


def inputs(n_timesteps: int = T, batch: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n_timesteps, batch, FEATURES, generator=generator)


def images(batch: int = B, seed: int = 0) -> Tensor:
    return inputs(1, batch, seed)[0]


# -- presentations --------------------------------------------------------------------------------


@every_style
@pytest.mark.parametrize("pattern", ["0011100", "1", "012"])
def test_a_presentation_is_the_loop_over_what_it_shows(style: Style, pattern: str):
    presentation = Presentation(pattern, dt=DT)
    shown = images() if presentation.n_stimuli < 2 else torch.stack([images(), images(seed=1)])
    run = wrap(style.fresh().eval(), dt=DT)(shown, presentation)
    # The very tensors: the last bits of a matrix product depend on where its input lies in memory.
    steps = list(presentation.inputs_at(shown))
    whole = steps if style.stepping == "step" else torch.stack(steps)
    membrane, _ = style.oracle(style.fresh().eval(), whole)
    assert torch.equal(run.membrane, membrane)
    assert run.n_timesteps == presentation.n_timesteps
    assert run.duration == presentation.duration
    assert run.dt == DT


@every_style
def test_idle_time_is_null_input_before_the_presentation(style: Style):
    presentation = Presentation("0111", dt=DT, idle_time=3.0, null_value=0.7)
    run = wrap(style.fresh().eval(), dt=DT)(images(), presentation)
    null = torch.full((3, B, FEATURES), 0.7)
    whole = torch.cat([null, presentation.present(images())])
    membrane, spikes = style.oracle(style.fresh().eval(), whole)
    assert run.membrane.shape[0] == 4
    torch.testing.assert_close(run.membrane, membrane[3:])
    without = wrap(style.fresh().eval(), dt=DT)(images(), Presentation("0111", dt=DT))
    assert not torch.allclose(run.membrane, without.membrane), "idle time changed nothing"
    if spikes is not None:
        assert torch.equal(run.spikes, spikes[3:])


def test_idle_time_of_a_stepped_model_has_no_graph():
    net = sequential_init_hidden()
    grad_enabled: list[bool] = []
    net[0].register_forward_hook(lambda *_: grad_enabled.append(torch.is_grad_enabled()))
    model = wrap(net, dt=DT)
    model(images(), Presentation("11", dt=DT, idle_time=3.0))
    assert grad_enabled == [False] * 3 + [True] * 2


def test_a_run_that_goes_on_has_no_idle_time():
    model = wrap(sequential_init_hidden(), dt=DT)
    presentation = Presentation("11", dt=DT, idle_time=3.0)
    first = model(images(), presentation)
    second = model(images(), presentation, state=first.state)
    net = sequential_init_hidden()
    net.load_state_dict(model.net.state_dict())
    whole = torch.cat([torch.zeros(3, B, FEATURES), images().expand(4, B, FEATURES)])
    membrane, _ = loop_init_hidden(net, whole)
    torch.testing.assert_close(torch.cat([first.membrane, second.membrane]), membrane[3:])


@given(st.data())
def test_any_shape_any_pattern(data: st.DataObject):
    batch = data.draw(st.integers(1, 5), "batch")
    pattern = data.draw(st.text("01", max_size=8), "pattern") + "1"
    idle = data.draw(st.integers(0, 4), "idle")
    style = STYLES[data.draw(st.sampled_from(sorted(STYLES)), "style")]
    presentation = Presentation(pattern, dt=DT, idle_time=idle * DT)
    run = wrap(style.fresh().eval(), dt=DT)(images(batch), presentation)
    whole = torch.cat([torch.zeros(idle, batch, FEATURES), presentation.present(images(batch))])
    membrane, _ = style.oracle(style.fresh().eval(), whole)
    assert run.membrane.shape == (len(pattern), batch, CLASSES)
    torch.testing.assert_close(run.membrane, membrane[idle:])


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(0, B, FEATURES), (T, 0, FEATURES), (T,)], ids=["no time", "no batch", "one axis"]
)
def test_inputs_without_timestep_or_sample_are_refused(shape):
    with pytest.raises(WrapError, match=r"expected \[T, B, \*features\]"):
        wrap(sequential_init_hidden(), dt=DT)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0, FEATURES), (B,)], ids=["no batch", "no features"])
def test_images_without_samples_are_refused(shape):
    with pytest.raises(WrapError, match=r"expected \[B, \*features\]"):
        wrap(sequential_init_hidden(), dt=DT)(torch.zeros(shape), Presentation("11", dt=DT))


def test_a_stimulus_without_an_image_is_refused():
    with pytest.raises(PresentationError, match="stimul"):
        wrap(sequential_init_hidden(), dt=DT)(inputs(3), Presentation("0102", dt=DT))


def test_inputs_that_are_no_tensor():
    with pytest.raises(WrapError, match="received a list"):
        wrap(sequential_init_hidden(), dt=DT)([1.0])


@pytest.mark.parametrize("net", [torch.relu, sequential_init_hidden], ids=["function", "factory"])
def test_only_modules_are_wrapped(net):
    with pytest.raises(WrapError, match=r"takes an nn\.Module"):
        wrap(net, dt=DT)


def test_a_wrapped_model_is_not_wrapped_again():
    model = wrap(sequential_init_hidden(), dt=DT)
    for again in (model, nn.Sequential(model)):
        with pytest.raises(WrapError, match="already"):
            wrap(again, dt=DT)


def test_membranes_without_a_class_axis_are_refused():
    net = nn.Sequential(nn.Conv1d(1, 2, 2), leaky(init_hidden=True))
    with pytest.raises(WrapError, match=r"\[3, 4, 2, 4\]; expected \[T, B, classes\]"):
        wrap(net, dt=DT)(torch.rand(3, 4, 1, 5))


# -- one dt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_a_dt_that_is_none(dt):
    with pytest.raises(TimingError):
        wrap(sequential_init_hidden(), dt=dt)


def test_the_presentations_dt_must_be_the_models():
    model = wrap(sequential_init_hidden(), dt=2.0)
    with pytest.raises(TimingError, match=r"the model has dt = 2 ms, the presentation has dt = 1"):
        model(images(), Presentation("11", dt=1.0))


def test_a_norse_layers_own_dt_must_be_the_models():
    with pytest.raises(TimingError, match=r"'2' has dt = 1 ms.*dt=1, or set_dt=True"):
        wrap(sequential_state_of_cells(), dt=2.0)


def test_set_dt_sets_what_has_one():
    net, twin = sequential_state_of_cells(), sequential_state_of_cells()
    twin.load_state_dict(net.state_dict())
    model = wrap(net, dt=0.5, set_dt=True)
    for index in (2, 4):
        assert net[index].dt == pytest.approx(0.0005)
        twin[index].dt = 0.0005
    run = model(images(), Presentation("1111", dt=0.5))
    membrane, _ = loop_state(twin, images().expand(4, B, FEATURES))
    assert torch.equal(run.membrane, membrane)


# -- state ----------------------------------------------------------------------------------------


@every_style
def test_going_on_equals_one_long_run(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    # One Norse list of states serves both halves of a run that goes on twice: it must not change.
    whole = model(inputs())
    first = model(inputs()[:5])
    if not style.goes_on and model._look.calling.stepping == "sequence":
        with pytest.raises(WrapError, match="takes no state"):
            model(inputs()[5:], state=first.state)
        return
    for _ in range(2):
        second = model(inputs()[5:], state=first.state)
        torch.testing.assert_close(
            torch.cat([first.membrane, second.membrane]), whole.membrane, rtol=1e-5, atol=1e-6
        )


def test_the_callers_list_of_states_is_not_changed():
    model = wrap(sequential_state_of_cells(), dt=DT)
    state = model(inputs()).state
    (before,) = state.passed
    kept = list(before)
    model(inputs(), state=state)
    assert all(one is other for one, other in zip(before, kept, strict=True))


def test_a_state_carries_the_graph_until_detached():
    model = wrap(ExplicitStates(), dt=DT)
    first = model(inputs())
    assert model(inputs(), state=first.state).membrane.requires_grad
    weight = model.net.fc1.weight
    (carried,) = torch.autograd.grad(
        model(torch.zeros(1, B, FEATURES), state=first.state).membrane.sum(), weight
    )
    assert carried.any()
    detached = model(torch.zeros(1, B, FEATURES), state=first.state.detach())
    (stopped,) = torch.autograd.grad(detached.membrane.sum(), weight)
    assert not stopped.any()


def test_a_state_of_another_batch_is_refused():
    model = wrap(sequential_init_hidden(), dt=DT)
    state = model(inputs()).state
    with pytest.raises(WrapError, match="a batch of 3, the inputs are one of 2"):
        model(inputs(batch=2), state=state)


def test_a_state_of_another_model_is_refused():
    state = wrap(ExplicitStates(), dt=DT)(inputs()).state
    with pytest.raises(WrapError, match="another model, with layers 'lif1', 'lif2'"):
        wrap(sequential_init_hidden(), dt=DT)(inputs(), state=state)
    with pytest.raises(WrapError, match="expected the `state` of an earlier run"):
        wrap(sequential_init_hidden(), dt=DT)(inputs(), state=torch.zeros(3))


@every_style
@pytest.mark.parametrize("engine", ["step", "auto"])
def test_nothing_leaks_between_runs_batches_copies_and_modes(style: Style, engine):
    model = dvs.wrap(style.fresh().eval(), dt=DT, engine=engine)
    alone = model(inputs()).membrane.detach()
    other = dvs.wrap(style.fresh(seed=1).eval(), dt=DT, engine=engine)
    twin = copy.deepcopy(model)
    model(inputs(batch=5, seed=2))
    other(inputs(seed=3))
    twin(inputs(seed=4))
    with torch.inference_mode():
        assert torch.equal(model(inputs()).membrane, alone)
    with torch.no_grad():
        assert torch.equal(model(inputs()).membrane, alone)
    again = model(inputs())
    assert torch.equal(again.membrane, alone)
    again.membrane.sum().backward()
    assert torch.equal(twin(inputs()).membrane, alone)


def test_state_that_the_user_left_in_the_net_is_neither_used_nor_lost():
    net = sequential_init_hidden()
    net(images())
    mem = net[1].mem
    kept = mem.detach().clone()
    fresh = wrap(copy.deepcopy(_without_graph(net)), dt=DT)
    run = wrap(net, dt=DT)(inputs())
    assert net[1].mem is mem
    assert torch.equal(mem, kept)
    assert torch.equal(run.membrane, fresh(inputs()).membrane)


def _without_graph(net: nn.Module) -> nn.Module:
    twin = sequential_init_hidden()
    twin.load_state_dict(net.state_dict())
    return twin


def test_no_graph_is_left_in_the_net():
    model = wrap(sequential_init_hidden(), dt=DT)
    model(inputs()).membrane.sum().backward()
    copy.deepcopy(model)
    model(inputs()).membrane.sum().backward()


class Trap(nn.Module):
    """Raises at one call."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        super().__init__()
        self.error, self.at, self.calls, self.armed = error, at, 0, False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            self.calls += 1
            if self.calls == self.at:
                raise self.error("half way")
        return x


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("with_idle", [False, True])
@pytest.mark.parametrize("engine", ["step", "auto"])
def test_a_run_that_failed_half_way_leaves_nothing(error, with_idle, engine):
    net = norse.SequentialState(
        nn.Linear(FEATURES, HIDDEN), norse.LIFCell(), Trap(error, at=2), leaky(init_hidden=True)
    )
    trap = net[2]
    presentation = Presentation("1111", dt=DT, idle_time=3.0 * with_idle)
    model = dvs.wrap(net, dt=DT, engine=engine)
    alone = model(images(), presentation).membrane
    hooks = [list(module._forward_hooks) for module in model.modules()]
    before = {k: v for m in net for k, v in vars(m).items() if not isinstance(v, dict)}
    mem = net[3].mem
    trap.armed = True
    with pytest.raises(error, match="half way"):
        model(images(), presentation)
    trap.armed, trap.calls = False, 0
    assert net[3].mem is mem
    assert [list(module._forward_hooks) for module in model.modules()] == hooks
    assert {k: v for m in net for k, v in vars(m).items() if not isinstance(v, dict)} == before
    assert torch.equal(model(images(), presentation).membrane, alone)


def test_record_states_is_put_back_when_a_run_fails():
    net = sequential_state_lifted()
    model = wrap(net, dt=DT)
    model(inputs())
    with pytest.raises(RuntimeError):
        model(torch.rand(T, B, FEATURES + 1), record=["2"])
    assert not net[2].record_states
    assert not net[4].record_states
    assert not net[2]._forward_hooks


# -- readouts -------------------------------------------------------------------------------------


def population(n_units: int = 12, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(FEATURES, HIDDEN),
            leaky(init_hidden=True),
            nn.Linear(HIDDEN, n_units),
            leaky(init_hidden=True, output=True, **options),
        )


def test_a_population_code_is_the_mean_membrane_and_summed_spikes_of_each_class():
    run = wrap(population(), dt=DT, n_classes=3)(inputs(), record=["3"])
    plain = wrap(population(), dt=DT)(inputs())
    assert torch.equal(run.layers["3"].membrane, plain.membrane)
    assert torch.equal(run.layers["3"].spikes, plain.spikes)
    for index in range(3):
        units = slice(4 * index, 4 * index + 4)
        torch.testing.assert_close(run.membrane[..., index], plain.membrane[..., units].mean(-1))
        assert torch.equal(run.spikes[..., index], plain.spikes[..., units].sum(-1))
    assert plain.spikes.any()
    # The groups are snnTorch's own: its loss decodes the same counts.
    loss = functional.mse_count_loss(1, 0, population_code=True, num_classes=3)
    counts = loss._population_code(plain.spikes, 3, 12)
    assert torch.equal(counts, run.spikes.sum(0))
    run.membrane.square().mean().backward()


def test_the_output_of_a_model_may_be_a_population_code():
    net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True), nn.Linear(HIDDEN, 6))
    run, plain = (wrap(net, dt=DT, n_classes=n)(inputs()) for n in (3, None))
    torch.testing.assert_close(run.membrane[..., 1], plain.membrane[..., 2:4].mean(-1))
    assert run.spikes is None


def test_a_population_that_is_no_equal_groups_is_refused():
    with pytest.raises(WrapError, match=r"12 units, which are no equal groups for n_classes=5"):
        wrap(population(), dt=DT, n_classes=5)(inputs())


@pytest.mark.parametrize("n_classes", [1, 0, -2])
def test_fewer_than_two_classes_are_refused(n_classes):
    with pytest.raises(WrapError, match="at least 2 classes"):
        wrap(population(), dt=DT, n_classes=n_classes)


def test_a_readout_that_never_fires_is_decoded_by_its_membrane():
    net, twin = population(CLASSES, threshold=1e9), population(CLASSES, threshold=1e9)
    run = wrap(net, dt=DT)(inputs())
    membrane, _ = loop_init_hidden(twin, inputs())
    assert run.readout == "3"
    assert torch.equal(run.membrane, membrane)
    assert torch.equal(run.spikes, torch.zeros(T, B, CLASSES))
    assert torch.equal(decode(run.membrane), membrane.argmax(-1))


def test_a_silent_network_without_bias_has_no_answer():
    net = population(CLASSES)
    net[1].threshold.fill_(1e9)
    nn.init.zeros_(net[2].bias)
    run = wrap(net, dt=DT)(inputs())
    assert run.readout == "3"
    assert not run.membrane.any()
    assert (decode(run.membrane) == UNDECIDED).all()


class Ensemble(nn.Module):
    """Wrapped models inside a model of the user's own."""

    def __init__(self, *models: TimedModel) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x).membrane for model in self.models]).mean(0)


def test_models_inside_another_do_not_meet():
    one, other = (wrap(STYLES["explicit_states"].fresh(seed), dt=DT) for seed in (0, 1))
    alone = (one(inputs()).membrane + other(inputs()).membrane) / 2
    whole = Ensemble(one, other)
    for twin in (whole, copy.deepcopy(whole)):
        torch.testing.assert_close(twin(inputs()), alone)
        torch.testing.assert_close(twin(inputs()), alone)
    whole(inputs()).sum().backward()
    assert all(p.grad is not None for p in one.parameters())


# -- recording ------------------------------------------------------------------------------------


def test_recorded_layers_are_the_librarys_own():
    model = wrap(ExplicitStates(), dt=DT)
    run = model(inputs(), record=["lif1", "lif2"])
    mem1, mem2 = torch.zeros(B, HIDDEN), torch.zeros(B, CLASSES)
    expected: dict[str, list[Tensor]] = {"spk1": [], "mem1": [], "mem2": []}
    for x in inputs():
        spk1, mem1 = model.net.lif1(model.net.fc1(x), mem1)
        _, mem2 = model.net.lif2(model.net.fc2(spk1), mem2)
        for name, value in {"spk1": spk1, "mem1": mem1, "mem2": mem2}.items():
            expected[name].append(value)
    assert list(run.layers) == ["lif1", "lif2"]
    assert torch.equal(run.layers["lif1"].spikes, torch.stack(expected["spk1"]))
    assert torch.equal(run.layers["lif1"].membrane, torch.stack(expected["mem1"]))
    assert torch.equal(run.layers["lif2"].membrane, run.membrane)
    assert torch.equal(run.membrane, torch.stack(expected["mem2"]))
    assert run.membrane_is == "before"


def test_recording_a_whole_sequence_layer_shows_every_timestep():
    net = sequential_state_lifted()
    run = wrap(net, dt=DT)(inputs(), record=["2", "4"])
    net[2].record_states = True
    currents = 100 * net[0](inputs())
    spikes, states = net[2](currents)
    net[2].record_states = False
    assert torch.equal(run.layers["2"].spikes, spikes)
    assert torch.equal(run.layers["2"].membrane, states.v)
    assert torch.equal(run.layers["2"].state["current"], states.i)
    assert run.layers["4"].spikes is None
    assert torch.equal(run.layers["4"].membrane, run.membrane)


def test_going_on_from_a_recorded_run_is_the_same():
    model = wrap(sequential_state_lifted(), dt=DT)
    plain, recorded = model(inputs()), model(inputs(), record=["2"])
    ones = model(inputs(), state=plain.state).membrane
    others = model(inputs(), state=recorded.state, record=["2", "4"]).membrane
    assert torch.equal(ones, others)


def test_idle_time_is_not_recorded():
    for net in (sequential_init_hidden(), sequential_state_lifted()):
        model = wrap(net, dt=DT)
        name = model.layers()[0].name
        run = model(images(), Presentation("011", dt=DT, idle_time=4.0), record=[name])
        assert run.layers[name].output.shape == (3, B, HIDDEN)


@pytest.mark.parametrize(
    ("record", "match"),
    [(["lif3"], "Did you mean 'lif"), ("lif1", r"record=\['lif1'\]"), (["fc1"], "no neuron layer")],
)
def test_recording_what_is_not_there(record, match):
    with pytest.raises(WrapError, match=match):
        wrap(ExplicitStates(), dt=DT)(inputs(), record=record)


def test_recording_a_layer_that_is_not_reached():
    net = ExplicitStates()
    net.unused = leaky()
    with pytest.raises(WrapError, match="'unused' was not reached"):
        wrap(net, dt=DT)(inputs(), record=["unused"])


@pytest.mark.parametrize("sizes", [(HIDDEN, CLASSES), (CLASSES, CLASSES)])
def test_a_shared_activation_is_not_recorded_as_twice_the_timesteps(sizes):
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(FEATURES, sizes[0]), relu, nn.Linear(*sizes), relu)
    model = wrap(net, dt=DT)
    assert model(inputs()).membrane.shape == (T, B, CLASSES)
    with pytest.raises(ObservationError, match=r"'1' \(ReLU\) cannot be recorded"):
        model(inputs(), record=["1"])


def test_recorded_values_keep_their_gradient():
    model = wrap(ExplicitStates(), dt=DT)
    run = model(inputs(), record=["lif1"])
    run.layers["lif1"].membrane.sum().backward()
    assert model.net.fc1.weight.grad.any()


class CheckpointedReadout(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky()
        self.reentrant = reentrant

    def forward(self, x: Tensor, mem: Any = None) -> Any:
        mem = torch.zeros(len(x), CLASSES) if mem is None else mem
        return checkpoint(
            lambda *a: self.lif(self.fc(a[0]), a[1]), x, mem, use_reentrant=self.reentrant
        )


def test_a_readout_under_activation_checkpointing_keeps_its_gradient():
    net = CheckpointedReadout(reentrant=False)
    wrap(net, dt=DT)(inputs()).membrane.square().sum().backward()
    recomputed = net.fc.weight.grad
    net.fc.weight.grad, mem, loss = None, torch.zeros(B, CLASSES), 0
    for x in inputs():
        _, mem = net.lif(net.fc(x), mem)
        loss = loss + mem.square().sum()
    loss.backward()
    torch.testing.assert_close(recomputed, net.fc.weight.grad)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_readout_without_its_gradient_under_reentrant_checkpointing_is_refused():
    model = wrap(CheckpointedReadout(reentrant=True), dt=DT)
    with pytest.raises(ObservationError, match=r"'lif' \(Leaky\) runs under reentrant"):
        model(inputs().requires_grad_())
    with torch.no_grad():
        assert model(inputs()).membrane.shape == (T, B, CLASSES)


# -- an nn.Module as any other --------------------------------------------------------------------


@every_style
def test_state_dict_goes_from_model_to_model_and_to_the_bare_net(style: Style):
    model, other = wrap(style.fresh(), dt=DT), wrap(style.fresh(seed=1), dt=DT)
    model(inputs())
    other.load_state_dict(model.state_dict())
    model.eval()
    other.eval()
    assert torch.equal(model(inputs()).membrane, other(inputs()).membrane)
    net = style.fresh(seed=2)
    net.load_state_dict(model.net.state_dict())
    assert {f"net.{name}" for name in net.state_dict()} == set(model.state_dict())


@every_style
def test_deep_copies_run_alike_and_apart(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    before = copy.deepcopy(model)
    run = model(inputs())
    after = copy.deepcopy(model)
    for twin in (before, after):
        assert isinstance(twin, TimedModel)
        assert torch.equal(twin(inputs()).membrane, run.membrane)
    with torch.no_grad():
        next(iter(after.parameters())).zero_()
    assert torch.equal(model(inputs()).membrane, run.membrane)


def test_train_and_eval_reach_the_net():
    model = wrap(STYLES["conv_step"].fresh(), dt=DT)
    assert model.net.drop.training
    assert not model.eval().net.drop.training
    first, second = model(inputs()), model(inputs())
    assert torch.equal(first.membrane, second.membrane)
    model.train()
    assert not torch.equal(model(inputs()).membrane, model(inputs()).membrane)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_style
def test_on_a_gpu(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    on_cpu = model(inputs())
    run = model.to("cuda")(inputs().to("cuda"))
    assert run.membrane.device.type == "cuda"
    torch.testing.assert_close(run.membrane.cpu(), on_cpu.membrane, rtol=1e-4, atol=1e-4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(inputs().to("cuda", non_blocking=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_parameters_are_the_nets():
    net = LoopInside()
    model = wrap(net, dt=DT)
    assert model.net is net
    assert [id(p) for p in model.parameters()] == [id(p) for p in net.parameters()]


def test_what_it_prints():
    model = wrap(sequential_init_hidden(), dt=2.0)
    assert "dt=2 ms" in repr(model)
    run = model(images(), Presentation("0011", dt=2.0))
    assert repr(run) == (
        "Recording(8 ms = 4 timesteps of 2 ms, 3 samples, 4 classes, readout '3', before the reset)"
    )


def test_a_deleted_model_is_gone():
    import gc
    import weakref

    model = wrap(sequential_init_hidden(), dt=DT)
    model(inputs())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
