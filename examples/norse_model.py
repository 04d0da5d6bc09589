"""A Norse model of your own: a whole-sequence network with a recurrent layer.

Run: python examples/norse_model.py
"""

import norse.torch as norse
import torch
from torch import nn
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.data import load_digits
from dynvision_snn.losses import build_criterion


def main():
    torch.manual_seed(0)
    training_set, test_set = load_digits(flatten=True)

    net = norse.SequentialState(
        norse.Lift(nn.Linear(64, 100)),
        norse.LIFRecurrent(100, 100, dt=0.001),  # Norse counts seconds
        norse.Lift(nn.Linear(100, 10)),
        norse.LI(dt=0.001),
    )
    model = dvs.wrap(net, dt=1.0)  # ms; a dt that disagrees with Norse's is an error
    presentation = dvs.Presentation.from_phases(
        [("fixation", 4, 0), ("digit", 24, 1), ("delay", 8, 0)], dt=1.0, reaction_time=8.0
    )

    with build_criterion(
        ["cross_entropy_loss", {"name": "energy_loss", "weight": 0.05}], model=model
    ) as criterion:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for epoch in range(3):
            for images, labels in DataLoader(training_set, batch_size=64, shuffle=True):
                run = model(images, presentation)
                loss = criterion(run.membrane, presentation.targets(labels))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"epoch {epoch + 1}: loss {float(loss):.3f}")

    images, _ = next(iter(DataLoader(test_set, batch_size=4)))
    run = model(images, presentation, record=["1"])  # the recurrent layer, by its name in the net
    print("spikes of layer 1 per sample:", run.layers["1"].spikes.sum((0, 2)).tolist())

    result = dvs.simulate(model, DataLoader(test_set, batch_size=364), presentation)
    print(f"accuracy {result.accuracy:.1%}")
    print(result.budget)


if __name__ == "__main__":
    main()
