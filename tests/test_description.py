"""describe: what is shown is what is there, and showing it changes nothing."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from models import CLASSES, DT, FEATURES, HIDDEN, STYLES, Style, leaky, sequential_init_hidden
from torch import Tensor, nn

from dynvision_snn import EnergyMeter, describe, wrap
from dynvision_snn.errors import AdapterWarning, WrapError
from dynvision_snn.losses import EnergyLoss

every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, FEATURES, generator=torch.Generator().manual_seed(0))


def row_of(description: Any, name: str) -> Any:
    (row,) = [row for row in description.layers if row.name == name]
    return row


@every_style
def test_what_it_tells_is_what_the_model_has(style: Style):
    model = wrap(style.fresh(), dt=DT)
    found = describe(model, images())
    for layer in model.layers():
        row = row_of(found, layer.name)
        assert (row.kind, row.role) == (type(layer.module).__name__, layer.traits.role)
        assert row.membrane_is == layer.traits.membrane
    assert (style.readout or "output") in found.readout
    assert ("timestep" if style.stepping == "step" else "run") in found.stepping
    assert ("[B, T, ...]" in found.stepping) is (style.time_axis == 1)
    assert (found.model, found.dt) == (type(model.net).__name__, DT)
    # In the words of the run itself.
    run = model(images()[None])
    assert found.readout == ("the model's output" if run.readout is None else run.readout)
    assert describe(model, images()) == found


@every_style
def test_synapses_are_the_weights_that_are_not_zero(style: Style):
    net = style.fresh()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter[0, 0] = 0.0
    found = describe(wrap(net, dt=DT), images())
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            assert row_of(found, name).synapses == int(module.weight.count_nonzero())


def test_every_neuron_layer_tells_what_leads_into_it_and_back():
    torch.manual_seed(0)
    net = norse.SequentialState(
        nn.Linear(FEATURES, HIDDEN, bias=False),
        norse.LIFRecurrentCell(HIDDEN, 6),
        nn.Linear(6, CLASSES),
        norse.LICell(),
    )
    found = describe(wrap(net, dt=DT), images())
    hidden, readout = row_of(found, "1"), row_of(found, "3")
    assert (hidden.units, hidden.synapses_in, hidden.synapses_recurrent) == (6, 6 * HIDDEN, 30)
    assert (row_of(found, "1.input").synapses, row_of(found, "1.recurrent").synapses) == (42, 30)
    assert (readout.units, readout.synapses_in) == (CLASSES, 6 * CLASSES)
    assert readout.synapses_recurrent is None
    assert [row.name for row in found.layers] == ["0", "1", "1.input", "1.recurrent", "2", "3"]


class Joined(nn.Module):
    """Two branches into one layer, through a normalisation; a recurrence of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)
        self.norm, self.back = nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.lif = leaky()
        self.skip, self.out, self.li = nn.Linear(FEATURES, 4), nn.Linear(HIDDEN, 4), leaky()

    def forward(self, x: Tensor, spk: Any = None, mem: Any = None, mem_out: Any = None) -> Any:
        spk = torch.zeros(len(x), HIDDEN) if spk is None else spk
        current = self.norm(self.left(x)) + self.right(x) + self.back(spk)
        spk, mem = self.lif(current, mem)
        out, mem_out = self.li(self.skip(x.relu()) + self.out(spk), mem_out)
        return out, spk, mem, mem_out


def test_branches_add_up_and_a_users_own_recurrence_is_one():
    found = describe(wrap(Joined(), dt=DT), images())
    hidden, readout = row_of(found, "lif"), row_of(found, "li")
    assert hidden.synapses_in == 2 * FEATURES * HIDDEN
    assert hidden.synapses_recurrent == HIDDEN * HIDDEN
    assert readout.synapses_in == 4 * FEATURES + 4 * HIDDEN
    assert readout.synapses_recurrent is None


class Rectified(nn.Module):
    """What leads into the neuron is changed on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(torch.relu(self.fc(x)))


def test_what_cannot_be_told_is_not_told_wrongly():
    found = describe(wrap(Rectified(), dt=DT), images())
    assert row_of(found, "lif").synapses_in is None
    assert row_of(found, "fc").synapses == FEATURES * CLASSES


@pytest.mark.parametrize(
    "net", [norse.LIFRecurrentCell(FEATURES, CLASSES), nn.GRU(FEATURES, CLASSES)]
)
def test_a_bare_layer(net):
    found = describe(wrap(net, dt=DT), images())
    assert found.layers[0].kind == type(net).__name__
    assert found.rows()[0]["layer"] == "(model)"
    assert found.readout == (
        "the model's output" if isinstance(net, nn.GRU) else "the model itself"
    )
    gates = 3 if isinstance(net, nn.GRU) else 1
    assert found.layers[0].synapses_in == gates * FEATURES * CLASSES
    assert [row.role for row in found.layers[1:]] == ["synapses", "synapses"]


def test_without_images_it_tells_what_needs_no_run():
    found = describe(wrap(sequential_init_hidden(), dt=2.0))
    assert [row.name for row in found.layers] == ["1", "3"]
    assert (found.stepping, found.readout) == (None, None)
    assert "stepping found out at its first run; readout: found out at its first run" in str(found)
    assert row_of(found, "1").units is None


def test_what_was_said_by_hand_is_told_at_once():
    model = wrap(sequential_init_hidden(), dt=DT, stepping="step", readout="", n_classes=2)
    found = describe(model)
    assert found.stepping == "called once per timestep"
    assert found.readout == "the model's output, 2 classes of several units each"


def test_time_constants_are_in_ms_at_the_models_dt():
    net = nn.Sequential(
        nn.Linear(FEATURES, 2), snn.Leaky(torch.tensor([0.85, 0.95]), init_hidden=True)
    )
    (constant,) = row_of(describe(wrap(net, dt=2.0)), "1").time_constants
    low, high = (-2 / math.log(beta) for beta in (0.85, 0.95))
    assert constant.tau.tolist() == pytest.approx([low, high])
    assert f"membrane {low:.4g} to {high:.4g} ms" in str(describe(wrap(net, dt=2.0)))


def test_notes_follow_the_table():
    net = nn.Sequential(nn.Linear(FEATURES, 2), snn.Lapicque(0.9, init_hidden=True))
    with pytest.warns(AdapterWarning):
        model = wrap(net, dt=DT)
    text = str(describe(model))
    assert text.splitlines()[-1].startswith("1: Lapicque steps by Euler")
    assert "(Euler)" in text


def test_what_a_budget_cannot_count_is_said():
    net = nn.Sequential(nn.Bilinear(FEATURES, FEATURES, 2), leaky(init_hidden=True))
    net[0].forward = lambda x: x[:, :2]  # type: ignore[method-assign]
    found = describe(wrap(net, dt=DT), images())
    assert any(note.startswith("0 is not counted: ") for note in found.footnotes)


# -- nothing is changed ---------------------------------------------------------------------------


@every_style
def test_it_leaves_no_trace(style: Style):
    net = style.fresh()
    values = copy.deepcopy(net.state_dict())
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in net.modules()]
    model = wrap(net, dt=DT)
    torch.manual_seed(3)
    describe(model, images())
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert all(module.training for module in model.modules())
    assert hooks == [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in net.modules()]
    for name, value in net.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert model._look is None, "the first run is still to come"


def test_those_who_listen_hear_nothing():
    model = wrap(sequential_init_hidden(), dt=DT)
    energy = EnergyLoss()
    energy.register_hooks(model)
    with EnergyMeter(model) as meter:
        model(images().expand(4, -1, -1))
        describe(model, images())
    assert meter.budget().n_timesteps == 4
    assert meter.budget().n_samples == 3
    assert energy().requires_grad


# -- bad input ------------------------------------------------------------------------------------


def test_an_unwrapped_model_is_refused():
    with pytest.raises(WrapError, match=r"received a Sequential.*dvs\.wrap"):
        describe(sequential_init_hidden())


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(WrapError, match=r"a batch of shape \[1, 6\]"):
        describe(wrap(sequential_init_hidden(), dt=DT), torch.rand(2, FEATURES + 1))


# -- in the terminal ------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command, run where a module ``mynets`` can be imported."""
    testing = pytest.importorskip("typer.testing")
    from dynvision_snn.cli import app

    (tmp_path / "mynets.py").write_text(
        "import snntorch as snn\n"
        "from torch import nn\n"
        "import dynvision_snn as dvs\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), snn.Leaky(0.9,"
        " init_hidden=True))\n"
        "def wrapped(dt):\n"
        "    return dvs.wrap(build(), dt, n_classes=2)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda *arguments: testing.CliRunner().invoke(app, ["describe", *arguments])
    sys.modules.pop("mynets", None)


def test_the_command_shows_it(run):
    result = run("mynets:build", "--dt", "2", "--features", "1,8,8")
    assert result.exit_code == 0, result.output
    words = result.output.split()
    assert "Sequential: dt 2 ms; called once per timestep; readout: 2" in result.output
    assert {"layer", "class", "role", "units", "synapses", "recurrent", "membrane"} <= {*words}
    assert {"Linear", "Leaky", "spiking", "256"} <= {*words}
    assert "18.98 ms" in result.output
    assert "before reset" in result.output


def test_the_command_takes_a_wrapped_model_and_needs_no_features(run):
    result = run("mynets:wrapped")
    assert result.exit_code == 0, result.output
    assert "found out at its first run" in result.output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["mynets:nothing"], "has no 'nothing'"),
        (["mynets"], r"expected package.module:factory"),
        (["nowhere:build"], "no module 'nowhere'"),
        (["mynets:number"], "is a int; expected a function or class"),
        (["mynets:build", "--features", "1,x"], "--features 1,x: expected sizes"),
        (["mynets:build", "--features", "5"], "how Sequential is run could not be told"),
    ],
)
def test_the_command_says_what_is_wrong(run, arguments, error):
    result = run(*arguments)
    assert result.exit_code != 0
    assert error in str(result.exception)
