"""A model that is one neuron layer, alone or behind a Linear, or lifted: the step engine's run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from models import CLASSES, DT, FEATURES, leaky
from norse.torch.module.leaky_integrator_box import LIBoxCell
from test_layer_plans import BATCH, PRESENTATIONS, Hears, check_close, check_gradients, images
from torch import nn

from dynvision_snn.energy.meter import EnergyMeter
from dynvision_snn.errors import WrapError
from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import TimedModel, wrap

LIF = norse.LIFParameters(v_th=torch.tensor(0.05))

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Leaky": lambda: leaky(init_hidden=True, learn_beta=True),
    "Leaky, output": lambda: leaky(init_hidden=True, output=True),
    "Leaky, explicit": leaky,
    "Synaptic": lambda: snn.Synaptic(0.8, 0.9, threshold=0.3, init_hidden=True),
    "RLeaky": lambda: snn.RLeaky(0.9, linear_features=FEATURES, threshold=0.3, init_hidden=True),
    "RLeaky, explicit": lambda: snn.RLeaky(0.9, linear_features=FEATURES, threshold=0.3),
    "LIFCell": lambda: norse.LIFCell(LIF),
    "LIF": lambda: norse.LIF(LIF),
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(FEATURES, FEATURES, LIF),
    "LIFRecurrent": lambda: norse.LIFRecurrent(FEATURES, FEATURES, LIF),
    "LI": norse.LI,
    "LICell": norse.LICell,
    "LILinearCell": lambda: norse.LILinearCell(FEATURES, CLASSES),
    "LIBoxCell": LIBoxCell,
    "lifted LIFCell": lambda: norse.Lift(norse.LIFCell(LIF)),
    "lifted LIFRecurrentCell": lambda: norse.Lift(norse.LIFRecurrentCell(FEATURES, CLASSES, LIF)),
    "lifted LICell": lambda: norse.Lift(norse.LICell()),
    "lifted Leaky": lambda: norse.Lift(leaky(init_hidden=True)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def both(name: str) -> tuple[TimedModel, TimedModel]:
    models = []
    for engine in ("step", "layer"):
        torch.manual_seed(3)
        models.append(wrap(LAYERS[name](), dt=DT, engine=engine))
    return models[0], models[1]


@pytest.mark.parametrize("presentation", PRESENTATIONS.values(), ids=PRESENTATIONS.keys())
@every_layer
def test_it_is_the_step_engines_run(name: str, presentation: Any) -> None:
    shown = images(presentation).requires_grad_()
    gradients, runs, heard = [], [], []
    models = both(name)
    for model in models:
        listener = Hears(model)
        run = model(shown, presentation)
        (gradient,) = torch.autograd.grad(run.membrane.square().sum(), shown, retain_graph=True)
        if list(model.parameters()):
            run.membrane.square().sum().backward()
        runs.append(run)
        gradients.append(gradient)
        heard.append(listener)
    theirs, mine = runs
    check_close(mine.membrane, theirs.membrane)
    assert theirs.membrane.std() > 0
    assert (mine.spikes is None) == (theirs.spikes is None)
    if theirs.spikes is not None:
        assert torch.equal(mine.spikes, theirs.spikes)
    check_close(gradients[1], gradients[0], 1e-4)
    if list(models[0].parameters()):
        check_gradients(models[1], models[0])
    assert heard[0].heard.keys() == heard[1].heard.keys()
    for layer in heard[0].heard:
        assert heard[1].timesteps(layer) == heard[0].timesteps(layer)
        one, other = heard[1].values(layer), heard[0].values(layer)
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert (one[key] is None) == (value is None), key
            if value is not None:
                check_close(one[key], value)


@every_layer
def test_energy_is_the_same(name: str) -> None:
    presentation = PRESENTATIONS["idle"]
    totals = []
    for model in both(name):
        with EnergyMeter(model) as meter:
            model(images(presentation), presentation)
        totals.append(
            [
                (row.name, row.spikes, row.synops_ac, row.synops_mac, row.neuron_updates)
                for row in meter.budget().layers
            ]
        )
    assert totals[1] == totals[0]


def test_a_run_goes_on_from_either_engines_state() -> None:
    inputs = 1 + torch.randn(6, BATCH, FEATURES)
    for name in ("Leaky", "Leaky, explicit", "RLeaky", "LIFCell", "LIF", "LILinearCell"):
        step, layer = both(name)
        whole = step(inputs).membrane
        for first, second in ((layer, layer), (step, layer), (layer, step)):
            start = first(inputs[:4])
            rest = second(inputs[4:], state=start.state)
            check_close(torch.cat([start.membrane, rest.membrane]), whole)


def test_an_energy_loss_hears_a_single_layer() -> None:
    losses = []
    for model in both("Leaky"):
        energy = EnergyLoss(reduction="mean", p=1)
        energy.register_hooks(model)
        model(images(PRESENTATIONS["idle"]), PRESENTATIONS["idle"])
        losses.append(energy())
    assert losses[0] > 0
    check_close(losses[1], losses[0])


def test_a_lifted_neuron_that_is_given_a_state_with_its_input_is_called_as_it_is() -> None:
    """Norse's Lift takes the state of the layer before it for its own."""
    inputs = 1 + torch.randn(6, BATCH, FEATURES)
    runs = []
    for engine in ("step", "auto"):
        torch.manual_seed(3)
        cells = norse.Lift(norse.LIFCell(LIF)), norse.Lift(norse.LIFCell(LIF))
        model = wrap(nn.Sequential(*cells), dt=DT, engine=engine)
        runs.append(model(inputs).membrane)
    check_close(runs[1], runs[0])
    assert "one call, as it is           1: its input comes with a state" in model.explain()


def test_a_layer_without_a_scan_says_so() -> None:
    gru: Callable[[], Any] = lambda: nn.GRU(FEATURES, CLASSES)  # noqa: E731
    with pytest.raises(WrapError, match="no scan is written for GRU"):
        wrap(gru(), dt=DT, engine="layer")(torch.rand(4, BATCH, FEATURES))
