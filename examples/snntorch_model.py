"""A snnTorch model of your own: wrap it, train it with an energy term, see what it costs.

Run: python examples/snntorch_model.py
"""

import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.data import load_digits
from dynvision_snn.losses import build_criterion


class Net(nn.Module):
    """One timestep: the way snnTorch models with explicit state are written."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 100)
        self.lif1 = snn.Leaky(beta=0.9)
        self.fc2 = nn.Linear(100, 10)
        self.lif2 = snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x, mem1=None, mem2=None):
        spk, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
        spk, mem2 = self.lif2(self.fc2(spk), mem2)
        return spk, mem1, mem2


def main():
    torch.manual_seed(0)
    training_set, test_set = load_digits()

    model = dvs.wrap(Net(), dt=2.0)  # a timestep is 2 ms; Net itself is not touched
    presentation = dvs.Presentation("0011111000", dt=2.0, reaction_time=4.0)

    criterion = build_criterion(
        [
            {"name": "cross_entropy_loss", "weight": 1.0},
            {"name": "energy_loss", "weight": 0.05},
        ],
        model=model,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(3):
        for images, labels in DataLoader(training_set, batch_size=64, shuffle=True):
            run = model(images, presentation)  # run.membrane: [T, B, classes]
            loss = criterion(run.membrane, presentation.targets(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        values = {label: round(float(value), 3) for label, value in criterion.components.items()}
        print(f"epoch {epoch + 1}: {values}")
    criterion.remove_hooks()

    result = dvs.simulate(model, DataLoader(test_set, batch_size=364), presentation)
    print(f"\naccuracy {result.accuracy:.1%}, settled {result.settling_time:.1f} ms after onset")
    print(result.budget)
    print(result.budget.joules("45nm-fp32"))


if __name__ == "__main__":
    main()
