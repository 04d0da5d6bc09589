"""Compiled models: counted right, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import snntorch as snn
import torch
from energy_nets import SERIES, conv_inputs, conv_net, measured, run_loop
from torch import nn

from dynvision_snn.energy import EnergyBudget, EnergyMeter
from dynvision_snn.errors import EnergyError
from dynvision_snn.model import wrap


def check_same_layers(found: EnergyBudget, expected: EnergyBudget) -> None:
    names = [row.name.removeprefix("_orig_mod.") for row in found.layers]
    assert names == [row.name for row in expected.layers]
    assert found.uncounted == expected.uncounted
    for quantity in SERIES:
        torch.testing.assert_close(
            found.by_timestep(quantity), expected.by_timestep(quantity), rtol=1e-6, atol=0
        )


class TestCompiled:
    """Most with the compiler's own front and no code generation: what it traces matters."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> Iterator[None]:
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    @pytest.mark.parametrize("compiled_first", [False, True])
    @pytest.mark.parametrize("on_the_original", [False, True])
    def test_a_compiled_model_is_counted(
        self, backend: str, compiled_first: bool, on_the_original: bool
    ) -> None:
        net, inputs = conv_net(), conv_inputs()
        with torch.no_grad():
            expected = measured(net, inputs)
            compiled = torch.compile(net, backend=backend)
            if compiled_first:
                run_loop(compiled, inputs)
                torch._dynamo.reset()  # as the error of the next test says
            with EnergyMeter(net if on_the_original else compiled) as meter:
                run_loop(compiled, inputs)
        check_same_layers(meter.budget(dt=1.0), expected)

    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
    def test_generated_code_is_counted(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
        inputs = torch.randn(3, 2, 4)
        expected = measured(net, inputs)
        compiled = torch.compile(net, backend="inductor")
        with EnergyMeter(compiled) as meter:
            for x in inputs:
                compiled(x).sum().backward()
        check_same_layers(meter.budget(dt=1.0), expected)

    def test_hooks_that_the_compiler_ignores_are_an_error(self) -> None:
        net = torch.compile(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), backend="eager")
        net(torch.ones(1, 4))
        with EnergyMeter(net) as meter:
            net(torch.ones(1, 4))
        with pytest.raises(EnergyError, match=r"torch\._dynamo\.reset"):
            meter.budget(dt=1.0)

    def test_layers_seen_in_a_part_of_the_calls_are_an_error(self) -> None:
        net, inputs = conv_net(), conv_inputs()
        with pytest.raises(EnergyError, match=r"called 5 times, but its layers"), EnergyMeter(net):  # noqa: PT012
            # As a compiled graph that leaves hooks out, until it is compiled again.
            hidden = [(module, dict(module._forward_hooks)) for module in net.children()]
            for module, _ in hidden:
                module._forward_hooks.clear()
            run_loop(net, inputs[:2])
            for module, hooks in hidden:
                module._forward_hooks.update(hooks)
            for x in inputs[2:]:
                net(x)


def test_a_model_with_a_compiled_part_is_not_traced() -> None:
    """A compiler that is called without hooks takes it that nobody listens."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    part = torch.compile(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), backend="eager")
    net = nn.Sequential(part, nn.Linear(5, 3), snn.Leaky(0.9, init_hidden=True, output=True))
    model = wrap(net, dt=1.0, stepping="step")
    inputs = torch.rand(4, 2, 6)
    with torch.no_grad():
        recorded = model(inputs, record=["0.1"]).layers["0.1"].output
    assert "0 was compiled by torch.compile" in model.explain()
    torch.testing.assert_close(recorded, nn.Sequential(*part.children())(inputs))
