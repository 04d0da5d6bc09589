"""Values that are not finite: seen where they arise, not where they have become silence."""

from __future__ import annotations

import math

import norse.torch as norse
import pytest
import torch
from models import CLASSES, DT, FEATURES, HIDDEN, STYLES, Style, leaky
from torch import Tensor, nn

from dynvision_snn import EnergyMeter, Presentation, simulate, wrap
from dynvision_snn.errors import ObservationError
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import fit

T, B = 8, 3
every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())


def inputs() -> Tensor:
    return 2 * torch.rand(T, B, FEATURES, generator=torch.Generator().manual_seed(0))


class Spoils(nn.Module):
    """Divides by zero where its input is large."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 / (x.abs() < 50)


def large_at(t: int) -> Tensor:
    x = inputs()
    x[t] = 1e4
    return x


@every_style
def test_finite_models_run_as_without_the_check(style: Style):
    plain = wrap(style.fresh().eval(), dt=DT, engine="step")(inputs())
    model = wrap(style.fresh().eval(), dt=DT, check_finite=True)
    run = model(inputs())
    assert torch.equal(run.membrane, plain.membrane)
    run.membrane.square().mean().backward()
    assert not any(module._forward_hooks for module in model.net.modules())


@every_style
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_are_named_with_their_timestep(style: Style, value: float):
    x = inputs()
    x[5, 1, 2] = value
    model = wrap(style.fresh(), dt=DT, check_finite=True)
    with pytest.raises(ObservationError, match=r"input of 'the model' is not finite at timestep 5"):
        model(x)
    assert model(inputs()).membrane.isfinite().all()


def test_images_are_named_with_the_timestep_that_shows_them():
    model = wrap(STYLES["sequential_init_hidden"].fresh(), dt=DT, check_finite=True)
    with pytest.raises(ObservationError, match=r"input.*not finite at timestep 2"):
        model(torch.full((B, FEATURES), math.nan), Presentation("0011", dt=DT))


def spoiled() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        Spoils(),
        leaky(init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        leaky(init_hidden=True),
    )


def test_a_diverged_neuron_is_mere_silence_without_the_check():
    """Why it exists."""
    run = wrap(spoiled(), dt=DT)(large_at(3), record=["2"])
    diverged = run.layers["2"].membrane[3:].isnan()
    assert diverged.any()
    assert not run.layers["2"].spikes[3:][diverged].any()
    assert run.membrane.isfinite().all()


def test_the_first_layer_and_timestep_are_named():
    model = wrap(spoiled(), dt=DT, check_finite=True)
    with pytest.raises(
        ObservationError, match=r"output of '1' is not finite at timestep 3.*Spoils"
    ):
        model(large_at(3))


class Explodes(nn.Module):
    """Only the membrane is infinite: its spikes are 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(beta=1.0, reset_mechanism="none")

    def forward(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mem = torch.zeros(len(x), CLASSES) if mem is None else 1e30 * mem
        return self.lif(self.fc(x).abs(), mem)


def test_a_membrane_that_explodes_is_named():
    with pytest.raises(
        ObservationError, match=r"membrane of 'lif' is not finite at timestep 2.*inf"
    ):
        wrap(Explodes(), dt=DT, check_finite=True)(inputs())


def test_membranes_of_whole_sequences_are_looked_at():
    net = norse.SequentialState(
        norse.Lift(nn.Linear(FEATURES, HIDDEN)),
        norse.LIF(),
        norse.Lift(nn.Linear(HIDDEN, CLASSES)),
        norse.LI(),
    )
    model = wrap(net, dt=DT, check_finite=True)
    model(inputs())
    with torch.no_grad():
        # A current of -inf leaves the spikes 0.
        net[0].lifted_module.bias[:] = -3e38
    with pytest.raises(ObservationError, match=r"'0(\.lifted_module)?'|membrane of '1'"):
        model(10 * inputs())
    assert not net[1].record_states


def test_idle_time_counts_backwards():
    presentation = Presentation("11", dt=DT, idle_time=4.0, null_value=1.0)
    with pytest.raises(ObservationError, match=r"membrane of 'lif' is not finite at timestep -2"):
        wrap(Explodes(), dt=DT, check_finite=True)(inputs()[0], presentation)


def test_it_can_be_switched_and_a_failed_run_counts_for_nothing():
    model = wrap(spoiled(), dt=DT)
    with EnergyMeter(model) as meter:
        model(large_at(3))
        model.check_finite = True
        with pytest.raises(ObservationError):
            model(large_at(3))
    assert meter.budget().n_samples == B
    assert meter.budget().n_timesteps == T


def test_data_that_is_nan_does_not_train_a_silent_net():
    """The loss stays finite, since spikes are; the weights in front of them do not."""
    images, presentation = inputs()[0], Presentation("0111", dt=DT)
    images[0, 0] = math.nan
    model = wrap(spoiled(), dt=DT)
    model.net[1] = nn.Identity()
    labels = torch.zeros(B, dtype=torch.int64)
    assert model(images, presentation).membrane.isfinite().all()
    criterion = build_criterion(["cross_entropy_loss"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ObservationError, match=r"'0\.weight' holds NaN"):
        fit(model, [(images, labels)], presentation, criterion, optimizer, epochs=1)
    # The data is mended, the net is not.
    with pytest.raises(ObservationError, match=r"'0\.weight' holds NaN"):
        simulate(model, [(inputs()[0], labels)], presentation)


def test_statistics_that_are_nan_do_not_make_a_silent_net():
    """A frozen layer stays as it is; what normalises it does not."""
    images, presentation = inputs()[0], Presentation("0111", dt=DT)
    images[0, 0] = math.nan
    model = wrap(nn.Sequential(nn.BatchNorm1d(FEATURES), *spoiled()), dt=DT).train()
    model.net[2] = nn.Identity()
    with torch.no_grad():
        model(images, presentation)
    data = [(inputs()[0], torch.zeros(B, dtype=torch.int64))]
    with pytest.raises(ObservationError, match=r"'0\.running_mean' holds NaN"):
        simulate(model, data, presentation)


def test_whole_numbers_are_finite():
    net = nn.Sequential(nn.Embedding(5, CLASSES), nn.Flatten(), nn.Linear(2 * CLASSES, CLASSES))
    net.append(leaky(init_hidden=True))
    wrap(net, dt=DT, check_finite=True)(torch.ones(T, B, 2, dtype=torch.long))
