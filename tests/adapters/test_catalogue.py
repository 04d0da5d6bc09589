"""The documentation's table of layers is the adapters' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import CASES, Case, adapter_of, case_name

from dynvision_snn.adapters import catalogue, norse_table, snntorch_table
from dynvision_snn.adapters.norse import NorseAdapter
from dynvision_snn.adapters.pytorch import TorchAdapter
from dynvision_snn.adapters.snntorch import SnnTorchAdapter

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"
ROWS = {
    adapter.library: {row.name: row for row in adapter.rows() if row.role}
    for adapter in (SnnTorchAdapter(), NorseAdapter(), TorchAdapter())
}


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("spikingjelly", reason="the page lists its nodes")
    catalogue.main()
    assert capsys.readouterr().out == PAGE.read_text(), (
        "run: python -m dynvision_snn.adapters.catalogue > docs/layers.md"
    )


def test_every_class_has_a_row() -> None:
    assert set(ROWS["snntorch"]) == {cls.__name__ for cls in snntorch_table.TABLE}
    assert set(ROWS["norse"]) == {cls.__name__ for cls in norse_table.TABLE}


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_rows_say_what_the_adapter_does(case: Case) -> None:
    module = case.module()
    adapter = adapter_of(module)
    row = ROWS[adapter.library][case.cls.__name__]
    if case.name != "StateLeaky-integrator":
        assert row.role == case.role.value
    assert row.call in ("either", "sequence" if case.sequence else "timestep")
    assert tuple(filter(None, row.state.split(", "))) == case.state
    constants = adapter.time_constants(module, 1.0)
    named = [c.name + (" (Euler)" if c.integrator == "euler" else "") for c in constants]
    assert row.time_constants == ", ".join(named)
    kinds = {name.split(".")[0] for name in case.synapses}
    assert {name.split(".")[0] for name in row.synapses.split(", ") if name} >= kinds
    if case.membrane is None:
        assert row.membrane in ("none", "not shown")
    else:
        assert case.membrane in row.membrane or case.name in ("Leaky-none", "SConv2dLSTM")
    assert all(torch.all(c.tau > 0) for c in constants)
