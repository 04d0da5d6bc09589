"""Time that is milliseconds: how errors shrink with the timestep, and one network at three of them.

Draws the two figures of docs/time.md. Takes about half a minute.

Run: python examples/convergence.py [folder]
"""

import copy
import math
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import norse.torch as norse
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.data import load_digits
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import fit

TAU = 20.0  # ms
DTS = (2.0, 1.0, 0.5, 0.25)  # ms
COLOURS = {2.0: "#D55E00", 1.0: "#000000", 0.5: "#0072B2", 0.25: "#009E73"}
DASHES = {2.0: (0, (5, 1.5)), 1.0: "-", 0.5: (0, (1.5, 1.2)), 0.25: (0, (6, 1.5, 1.5, 1.5))}


# -- one neuron -----------------------------------------------------------------------------------


def leaky(**options):
    beta = torch.tensor(math.exp(-1 / TAU), dtype=torch.float64)
    return snn.Leaky(beta, init_hidden=True, output=True, **options)


def lif_box(v_th):
    p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(1000 / TAU), v_th=torch.tensor(v_th))
    return norse.LIFBoxCell(p)


def at(neuron, gain, dt):
    """A neuron behind one weight, built at 1 ms, at another timestep, in double precision."""
    linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(linear.weight, gain)
    return dvs.retime(dvs.wrap(norse.SequentialState(linear, neuron).double(), dt=1.0), dt=dt)


def membrane_error(neuron, gain, dt, current, solution, duration=100.0):
    start = dt * torch.arange(round(duration / dt), dtype=torch.float64)
    run = at(neuron, gain, dt)(current(start).view(-1, 1, 1), record=["1"])
    return float((run.layers["1"].membrane.flatten() - solution(start + dt)).abs().max())


def rate_in_hz(neuron, gain, dt, currents, duration=600.0):
    inputs = currents.view(-1, 1).expand(round(duration / dt), -1, 1)
    spikes = at(neuron, gain, dt)(inputs, record=["1"]).layers["1"].spikes.squeeze(-1)
    steps = torch.arange(len(spikes)).unsqueeze(1)
    first = torch.where(spikes != 0, steps, len(spikes)).amin(0)
    last = torch.where(spikes != 0, steps, -1).amax(0)
    return 1000 * (spikes.sum(0) - 1) / (dt * (last - first))


@torch.no_grad()
def draw_convergence(path):
    gain, w = 1 - math.exp(-1 / TAU), 2 * math.pi / 50.0
    a = w * TAU

    def charging(t):
        return 1 - (-t / TAU).exp()

    def swinging(t):
        return ((w * t).sin() - a * (w * t).cos() + a * (-t / TAU).exp()) / (1 + a**2)

    def held(t):
        return torch.ones_like(t)

    def sine(t):
        return (w * t).sin()

    def silent():
        return leaky(threshold=1e9)

    cases = {
        "exact decay, sine held over each timestep\n(snnTorch Leaky)": (
            silent,
            gain,
            sine,
            swinging,
        ),
        "Euler, constant input\n(Norse LIFBoxCell)": (lambda: lif_box(1e9), 1.0, held, charging),
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained")
    for (name, (build, weight, current, solution)), marker in zip(cases.items(), "so", strict=True):
        errors = [membrane_error(build(), weight, dt, current, solution) for dt in DTS]
        left.loglog(DTS, errors, marker=marker, label=name)
    left.loglog(DTS, [0.006 * dt for dt in DTS], color="0.55", linestyle=":", label="first order")
    exact = max(membrane_error(silent(), gain, dt, held, charging) for dt in DTS)
    left.text(
        0.97,
        0.04,
        f"exact decay, constant input: below {10 ** math.ceil(math.log10(exact)):.0e}",
        transform=left.transAxes,
        ha="right",
        fontsize=8,
    )
    left.set(
        xlabel="timestep (ms)",
        ylabel="largest error (input's steady state = 1)",
        title="Membrane below threshold",
        ylim=(3e-4, 0.5),
    )
    left.set_xticks(DTS, [f"{dt:g}" for dt in DTS])
    left.minorticks_off()
    left.legend(frameon=False, fontsize=8, loc="upper left")

    currents = torch.linspace(1.02, 3.0, 400, dtype=torch.float64)
    ideal = 1000 / (TAU * (currents / (currents - 1)).log())
    right.plot(currents, ideal, color="0.8", linewidth=5, label="closed form")
    for dt in DTS:
        rates = rate_in_hz(leaky(reset_mechanism="zero", reset_delay=False), gain, dt, currents)
        label = f"{dt:g} ms: off by {float((rates - ideal).abs().mean()):.1f} Hz on average"
        right.plot(currents, rates, color=COLOURS[dt], linestyle=DASHES[dt], label=label)
    right.set(
        xlabel="input current (threshold currents)",
        ylabel="firing rate (Hz)",
        title=f"Firing rate, reset to zero (Leaky, tau = {TAU:g} ms)",
    )
    right.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


# -- one network ----------------------------------------------------------------------------------


def trained_at_1_ms(presentation):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 100),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(100, 10),
        snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none", output=True),
    )
    training_set, test_set = load_digits(flatten=True)
    model = dvs.wrap(net, dt=1.0)
    losses = [
        {"name": "cross_entropy_loss", "weight": 1.0},
        {"name": "energy_loss", "weight": 2.0},
    ]
    with build_criterion(losses, model=model) as criterion:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        loader = DataLoader(training_set, batch_size=64, shuffle=True)
        fit(model, loader, presentation, criterion, optimizer, epochs=3)
    return model, DataLoader(test_set, batch_size=400)


def decays_alone(model, dt):
    """The wrong way: as fast in ms, but with every weight as it was."""
    net = copy.deepcopy(model.net)
    for module in net:
        if isinstance(module, snn.Leaky):
            module.beta = module.beta ** (dt / model.dt)
    return dvs.wrap(net, dt=dt)


def hidden_rate(model, loader, presentation, width=4.0):
    """Mean rate of the hidden neurons in Hz, in bins of some ms."""
    images = next(iter(loader))[0]
    with torch.no_grad():
        spikes = model(images, presentation, record=["1"]).layers["1"].spikes
    per_bin = round(width / model.dt)
    counts = spikes.mean((1, 2))[: len(spikes) // per_bin * per_bin].unflatten(0, (-1, per_bin))
    return 1000 * counts.sum(1) / width


def draw_retimed(path):
    presentation = dvs.Presentation.from_phases(
        [("fixation", 8, 0), ("digit", 52, 1), ("blank", 20, 0)], dt=1.0, reaction_time=12
    )
    model, loader = trained_at_1_ms(presentation)
    ways = {"dvs.retime": dvs.retime, "decays alone, weights as they were": decays_alone}
    figure, grid = plt.subplots(
        2, 2, figsize=(9.6, 5.4), sharex=True, sharey="row", layout="constrained"
    )
    for (name, way), (top, bottom) in zip(ways.items(), grid.T, strict=True):
        for dt in (2.0, 1.0, 0.5):
            timed = model if dt == 1.0 else way(model, dt=dt)
            schedule = presentation.at_dt(dt)
            result = dvs.simulate(timed, loader, schedule)
            spikes = next(r for r in result.budget.layers if r.name == "1").spikes
            print(
                f"{name}, {dt:g} ms: accuracy {result.accuracy:.1%}, settled "
                f"{result.settling_time:.1f} ms after onset, {spikes:.0f} hidden spikes"
            )
            style = {"color": COLOURS[dt], "linestyle": DASHES[dt], "label": f"{dt:g} ms"}
            curve = [100 * float(share) for share in result.accuracy_by_timestep]
            edges = [dt * t for t in range(len(curve) + 1)]
            top.stairs(curve, edges, baseline=None, **style)
            rates = hidden_rate(timed, loader, schedule).tolist()
            bottom.stairs(rates, [4.0 * b for b in range(len(rates) + 1)], baseline=None, **style)
        top.set_title(name)
        bottom.set_xlabel("time (ms)")
        for axes in (top, bottom):
            axes.axvspan(8, 60, color="0.93", zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("accuracy (%)")
    grid[1, 0].set_ylabel("rate of hidden neurons (Hz)")
    grid[1, 1].legend(frameon=False, title="timestep")
    grid[1, 0].annotate("digit shown", (9, 0.97), xycoords=("data", "axes fraction"), va="top")
    figure.savefig(path, dpi=160)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    # The readout is never reset, so that its spikes, which nobody uses, follow the timestep.
    warnings.simplefilter("ignore", dvs.errors.TimingWarning)
    draw_convergence(folder / "convergence.png")
    draw_retimed(folder / "retimed.png")
    print(f"wrote convergence.png and retimed.png to {folder.resolve()}")


if __name__ == "__main__":
    main()
