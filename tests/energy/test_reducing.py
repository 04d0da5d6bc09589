"""Counts and evidence over the ranks of a distributed measurement, with real processes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from energy_nets import check_same
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynvision_snn.energy import EnergyBudget, EnergyMeter
from dynvision_snn.errors import EnergyError


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def data() -> torch.Tensor:
    x = torch.ones(3, 4, 4)  # [T, N, features]
    x[:, 3] = 0.5  # the last sample alone has another magnitude
    return x


def run_rank(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", GLOO_SOCKET_IFNAME="lo")
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    net = DistributedDataParallel(make_net())
    shard = data()[:, :3] if rank == 0 else data()[:, 3:]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with EnergyMeter(net) as meter:
        for x in shard:
            net(x).sum().backward()
        optimizer.step()
    torch.save(meter.all_reduce(dt=1.0).to_dict(), f"{folder}/budget{rank}")
    with EnergyMeter(net) as lazy:
        if rank == 1:
            net(shard[0])
    torch.save(lazy.all_reduce(dt=1.0).to_dict(), f"{folder}/lazy{rank}")
    with EnergyMeter(net) as bad:
        net.module(shard[0] * (float("nan") if rank == 1 else 1.0))
    try:
        bad.all_reduce(dt=1.0)
    except EnergyError as error:
        torch.save(str(error), f"{folder}/error{rank}")
    # DDP's reducer keeps the group: left to the interpreter's end, it may abort a finished rank.
    del net, optimizer, meter, lazy, bad
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_are_one_measurement(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"budget{rank}") for rank in range(2)]
    assert found[0] == found[1]
    budget = EnergyBudget.from_dict(found[0])
    net = nn.ModuleDict({"module": make_net()})
    with EnergyMeter(net) as meter:
        for x in data():
            net["module"](x)
    alone = meter.budget(dt=1.0)
    check_same(budget, alone)
    assert budget.n_samples == 4
    # Rank 0 saw ones alone; with rank 1's halves the connection is analog on both.
    assert budget.layers[0].synops_ac == 0
    assert budget.layers[0].synops_mac > 0
    lazy = EnergyBudget.from_dict(torch.load(tmp_path / "lazy0"))
    assert lazy.n_samples == 1
    for rank in range(2):
        assert "rank 1: " in torch.load(tmp_path / f"error{rank}")


def test_without_ranks() -> None:
    with EnergyMeter(net := nn.Linear(3, 2)) as meter:
        net(torch.ones(1, 3))
    with pytest.raises(EnergyError, match="no process group"):
        meter.all_reduce(dt=1.0)
