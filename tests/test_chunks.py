"""Long runs in pieces: state, shared denominators, gradients, memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynvision_snn as dvs
from dynvision_snn.errors import LossError, TimingError, WrapError
from dynvision_snn.losses import CrossEntropyLoss, EnergyLoss, build_criterion
from tests.models import sequential_init_hidden, sequential_state_of_cells

DT = 1.0
LOSSES = [
    {"name": "cross_entropy_loss", "weight": 1.0},
    {"name": "energy_loss", "weight": 0.3, "kwargs": {"p": 1}},
]


def setting(build=sequential_init_hidden, pattern="0011111000", **times):
    # Step by step: the same bits however a run is cut.
    model = dvs.wrap(build(), dt=DT, engine="step")
    presentation = dvs.Presentation(pattern, dt=DT, reaction_time=2.0, **times)
    generator = torch.Generator().manual_seed(3)
    features = next(p for p in model.parameters() if p.ndim == 2).shape[1]
    images = torch.rand(4, features, generator=generator) * 3
    classes = model(images, presentation).membrane.shape[2]
    labels = torch.randint(0, classes, (4,), generator=generator)
    return model, presentation, images, presentation.targets(labels)


@pytest.mark.parametrize("build", [sequential_init_hidden, sequential_state_of_cells])
@pytest.mark.parametrize("every", [1.0, 3.0, 7.0, 10.0, 1000.0])
def test_chunks_are_the_run_in_pieces(build, every):
    model, presentation, images, _ = setting(build, idle_time=3.0)
    whole = model(images, presentation).membrane
    chunks = list(model.chunks(images, presentation, every=every))
    assert torch.equal(torch.cat([chunk.membrane for chunk in chunks]), whole)
    steps = [t for chunk in chunks for t in range(*chunk.steps.indices(len(whole)))]
    assert steps == list(range(len(whole)))


@settings(max_examples=25, deadline=None)
@given(every=st.integers(1, 12), weighted=st.booleans())
def test_losses_of_chunks_add_up_to_the_loss_of_the_run(every, weighted):
    model, presentation, images, targets = setting()
    n_classes = model(images, presentation).membrane.shape[2]
    weight = torch.linspace(0.5, 2, n_classes) if weighted else None
    losses = [{"loss": CrossEntropyLoss(weight=weight)}, LOSSES[1]]
    with torch.no_grad(), build_criterion(losses, model=model) as criterion:
        whole = criterion(model(images, presentation).membrane, targets)
        parts = [
            criterion(chunk.membrane, targets[chunk.steps], whole=targets)
            for chunk in model.chunks(images, presentation, every=every * DT)
        ]
    assert torch.allclose(torch.stack(parts).sum(), whole, rtol=1e-5)


def test_one_chunk_has_the_gradients_of_full_back_propagation():
    model, presentation, images, targets = setting()
    with build_criterion(LOSSES, model=model) as criterion:
        criterion(model(images, presentation).membrane, targets).backward()
        full = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        for chunk in model.chunks(images, presentation, every=presentation.duration):
            criterion(chunk.membrane, targets[chunk.steps], whole=targets).backward()
    assert any(grad.abs().sum() > 0 for grad in full)
    for grad, parameter in zip(full, model.parameters(), strict=True):
        assert torch.equal(grad, parameter.grad)


def test_the_graph_ends_between_chunks():
    model, presentation, images, targets = setting()
    with build_criterion(LOSSES, model=model) as criterion:
        for chunk in model.chunks(images, presentation, every=2.0):
            # A graph that reached into the piece before would have been freed by its backward.
            criterion(chunk.membrane, targets[chunk.steps], whole=targets).backward()


def test_no_chunk_is_kept_alive_by_the_next():
    model, presentation, images, _ = setting()
    earlier = []
    for chunk in model.chunks(images, presentation, every=2.0):
        gc.collect()
        assert all(membrane() is None for membrane in earlier)
        earlier.append(weakref.ref(chunk.membrane))
        del chunk
    assert len(earlier) == 5


def test_chunks_go_on_from_a_state():
    model, presentation, images, _ = setting()
    whole = model(torch.stack(list(presentation.inputs_at(images))))
    half = whole.n_timesteps // 2
    inputs = torch.stack(list(presentation.inputs_at(images)))
    first = model(inputs[:half])
    rest = [c.membrane for c in model.chunks(inputs[half:], every=2.0, state=first.state)]
    assert torch.equal(torch.cat(rest), whole.membrane[half:])


@pytest.mark.parametrize(("every", "error"), [(0.0, TimingError), (0.4, TimingError)])
def test_chunks_shorter_than_a_timestep_are_refused(every, error):
    model, presentation, images, _ = setting()
    with pytest.raises(error, match=r"timestep"):
        model.chunks(images, presentation, every=every)


def test_a_model_that_takes_no_state_cannot_run_in_chunks():
    class Loop(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = torch.nn.GRUCell(6, 3)

        def forward(self, x):
            state, outputs = None, []
            for step in x:
                state = self.cell(step, state)
                outputs.append(state)
            return torch.stack(outputs)

    model = dvs.wrap(Loop(), dt=DT)
    pieces = model.chunks(torch.rand(8, 2, 6), every=4.0)
    next(pieces)
    with pytest.raises(WrapError, match="takes no state"):
        next(pieces)


def test_a_whole_shorter_than_its_piece_is_refused():
    model, presentation, images, targets = setting()
    with EnergyLoss() as energy:
        energy.register_hooks(model)
        model(images, presentation)
        with pytest.raises(LossError, match="time first"):
            energy(None, None, whole=targets[:3])
