"""Comparing energy budgets: the same network with few and with many spikes, and without any.

Run: python examples/compare_budgets.py [folder]
"""

import sys

import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.data import load_digits
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import fit


def spiking():
    return nn.Sequential(
        nn.Linear(64, 100),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(100, 10),
        snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none", output=True),
    )


def analog():
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


def trained(net, loader, presentation, energy_weight):
    model = dvs.wrap(net, dt=2.0)
    losses = [
        {"name": "cross_entropy_loss", "weight": 1.0},
        {"name": "energy_loss", "weight": energy_weight},
    ]
    with build_criterion(losses, model=model) as criterion:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        fit(model, loader, presentation, criterion, optimizer, epochs=4)
    return model


def main():
    torch.manual_seed(0)
    training_set, test_set = load_digits(flatten=True)
    loader = DataLoader(training_set, batch_size=64, shuffle=True)
    presentation = dvs.Presentation("0011111000", dt=2.0, reaction_time=4.0)
    models = {
        "spiking": trained(spiking(), loader, presentation, energy_weight=0.0),
        "spiking, thrifty": trained(spiking(), loader, presentation, energy_weight=1.0),
        "ReLU": trained(analog(), loader, presentation, energy_weight=0.0),
    }
    comparison = dvs.compare(models, DataLoader(test_set, batch_size=364), presentation)
    print(comparison.table())
    if len(sys.argv) > 1:
        comparison.save(sys.argv[1])  # table, figures and JSON; never over what is there already


if __name__ == "__main__":
    main()
