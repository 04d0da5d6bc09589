"""A library that nobody has heard of, through the adapter that the documentation writes for it."""

from __future__ import annotations

import doctest
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toysnn import ToyLIF

import dynvision_snn as dvs
from dynvision_snn.adapters import Adapters
from dynvision_snn.errors import AdapterError, WrapError

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's examples define, having run as written."""
    names: dict[str, Any] = {}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    test = doctest.DocTestParser().get_doctest(PAGE.read_text(), names, PAGE.name, str(PAGE), 0)
    with warnings.catch_warnings(action="error"):
        results = doctest.DocTestRunner(optionflags=flags).run(test, clear_globs=False)
    assert results.attempted > 5
    assert results.failed == 0
    return test.globs


def test_the_page_runs_as_written(page: dict[str, Any]) -> None:
    assert "ToyAdapter" in page


def test_a_run_equals_the_librarys_own_loop(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), ToyLIF(4), nn.Linear(4, 3), ToyLIF(3))
    model = dvs.wrap(net, dt=1.0, adapters=[page["ToyAdapter"]()])
    x = 3 * torch.rand(6, 2, 5)
    run = model(x)
    assert net[1].membrane is None  # left as it was found
    spikes, membranes = [], []
    for step in x:
        spikes.append(net(step))
        membranes.append(net[3].membrane)
    assert torch.equal(run.membrane, torch.stack(membranes))
    assert torch.equal(run.spikes, torch.stack(spikes))
    assert run.spikes.any()


def test_its_echo_is_counted(page: dict[str, Any]) -> None:
    neuron = ToyLIF(3)
    model = dvs.wrap(neuron, dt=1.0, adapters=[page["ToyAdapter"]()])
    with dvs.EnergyMeter(model) as meter:
        run = model(torch.full((4, 2, 3), 2.0))
    assert run.spikes is not None
    (row,) = (row for row in meter.budget().layers if row.name.endswith("recurrent"))
    assert row.synops_ac == run.spikes[:-1].sum() / 2


def test_without_its_adapter_it_is_no_neuron() -> None:
    assert Adapters().layers(nn.Sequential(ToyLIF(3))) == []
    with pytest.raises(WrapError, match=r"adapters=\[MyAdapter\(\)\]"):
        dvs.wrap(nn.Sequential(nn.Linear(3, 3), ToyLIF(3)), dt=1.0)


def test_two_adapters_for_one_library_are_an_error(page: dict[str, Any]) -> None:
    adapter = page["ToyAdapter"]()
    with pytest.raises(AdapterError, match="two adapters serve the library 'toysnn'"):
        Adapters([adapter, page["ToyAdapter"]()])
    with pytest.raises(AdapterError, match="takes instances"):
        Adapters([page["ToyAdapter"]])
