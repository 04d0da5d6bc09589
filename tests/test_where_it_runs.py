"""Where a wrapped model runs: other dtypes, autocast, threads, workers; and how it is saved."""

from __future__ import annotations

import copy
import pickle
import threading
from functools import partial
from typing import Any

import pytest
import torch
from models import CLASSES, DT, FEATURES, STYLES, Style, leaky, sequential_init_hidden
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import dynvision_snn as dvs
from dynvision_snn import TimedModel
from dynvision_snn.errors import SavingError, WrapError

# The reference: the library's own numbers, bit for bit.
wrap = partial(dvs.wrap, engine="step")

every_style = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
T, B = 8, 3


def inputs(n_timesteps: int = T, batch: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n_timesteps, batch, FEATURES, generator=generator)


# -- dtypes ---------------------------------------------------------------------------------------


def outcome(run: Any) -> Any:
    """What `run` gives, or that torch refuses it for its dtypes."""
    try:
        return run()
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        return None


@every_style
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_another_dtype_runs_where_the_library_can_and_else_says_why(style: Style, dtype):
    theirs = style.fresh().eval().to(dtype)
    expected = outcome(lambda: style.oracle(theirs, inputs().to(dtype)))
    model = wrap(style.fresh().eval(), dt=DT).to(dtype)
    if expected is None:
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(WrapError, match=rf"inputs are {name}.*emit float32 spikes.*float32"):
            model(inputs().to(dtype))
        return
    run = model(inputs().to(dtype))
    assert run.membrane.dtype == expected[0].dtype
    assert torch.equal(run.membrane, expected[0])


def test_some_libraries_can_and_some_cannot():
    """That the test above sees both."""
    for name, can in {"norse_list": True, "gru_step": True, "explicit_states": False}.items():
        net = STYLES[name].fresh().double()
        x = inputs().double()
        states = (None, None) if name == "explicit_states" else ()
        assert (outcome(lambda net=net, x=x, s=states: net(x[0], *s)) is not None) is can


def test_a_dtype_changed_after_the_first_run_says_why_too():
    model = wrap(sequential_init_hidden(), dt=DT)
    before = model(inputs())
    model.to(torch.bfloat16)
    with pytest.raises(WrapError, match=r"'1', '3'.*torch\.autocast\('cpu', dtype=torch\.bfloat16"):
        model(inputs().bfloat16())
    model.float()
    assert model(inputs()).membrane.shape == before.membrane.shape


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            lambda x: x.double(),
            r"inputs are float64.*weights float32.*inputs\.to\(torch\.float32\)",
        ),
        (lambda x: x.to(torch.uint8), r"inputs are uint8.*inputs\.to\(torch\.float32\)\.$"),
    ],
)
@pytest.mark.parametrize("look_first", [True, False])
def test_inputs_of_another_dtype_than_the_weights(given, match, look_first):
    model = wrap(sequential_init_hidden(), dt=DT)
    if look_first:
        model(inputs())
    with pytest.raises(WrapError, match=match):
        model(given(inputs()))


@every_style
@pytest.mark.parametrize("style_dtype", [torch.bfloat16])
def test_under_autocast_it_equals_the_librarys_own_loop(style: Style, style_dtype):
    with torch.autocast("cpu", dtype=style_dtype):
        run = wrap(style.fresh().eval(), dt=DT)(inputs())
        membrane, _ = style.oracle(style.fresh().eval(), inputs())
    assert run.membrane.dtype == membrane.dtype
    assert torch.equal(run.membrane, membrane)
    run.membrane.float().square().mean().backward()


# -- processes and threads ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sequential_init_hidden", "loop_inside", "norse_list", "gru_step"]
)
@pytest.mark.parametrize("engine", ["step", "auto"])
def test_models_in_threads_do_not_meet(name, engine):
    models = [dvs.wrap(STYLES[name].fresh(seed), dt=DT, engine=engine) for seed in range(3)]
    alone = [model(inputs()).membrane.detach() for model in models]
    fresh = [dvs.wrap(STYLES[name].fresh(seed), dt=DT, engine=engine) for seed in range(3)]
    found: list[Any] = [None] * 3

    def work(index: int) -> None:
        # Looks, too, at the same time as the others.
        found[index] = [fresh[index](inputs()).membrane.detach() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        torch.equal(membrane, alone[index]) for index in range(3) for membrane in found[index]
    )


class Simulated(Dataset[Tensor]):
    """Membranes of a model that runs where the data are loaded."""

    def __init__(self, model: TimedModel) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.model(inputs(batch=1, seed=index)).membrane[:, 0]


@pytest.mark.parametrize("name", ["sequential_init_hidden", "norse_list", "loop_inside"])
def test_a_model_runs_in_workers_of_a_data_loader(name):
    data = Simulated(wrap(STYLES[name].fresh(), dt=DT))
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    here = torch.stack([data[index] for index in range(len(data))])
    assert torch.equal(torch.cat(list(loader)), here)


# -- saving ---------------------------------------------------------------------------------------


@every_style
def test_weights_go_through_a_file(style: Style, tmp_path):
    model, other = wrap(style.fresh().eval(), dt=DT), wrap(style.fresh(seed=1).eval(), dt=DT)
    run = model(inputs())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(other(inputs()).membrane, run.membrane)
    bare = style.fresh(seed=2).eval()
    torch.save(model.net.state_dict(), tmp_path / "net.pt")
    bare.load_state_dict(torch.load(tmp_path / "net.pt"))
    assert torch.equal(wrap(bare, dt=DT)(inputs()).membrane, run.membrane)


def picklable(net: nn.Module) -> bool:
    """Whether the library lets it."""
    try:
        pickle.dumps(net)
    except (pickle.PicklingError, AttributeError):
        return False
    return True


@every_style
def test_a_model_is_pickled_where_its_library_lets_it_and_else_says_what_to_do(style: Style):
    model = wrap(style.fresh().eval(), dt=DT)
    run = model(inputs())
    if not picklable(model.net):
        for save in (pickle.dumps, lambda m: torch.save(m, "/dev/null")):
            with pytest.raises(SavingError, match=r"cannot be pickled: .*model\.state_dict\(\)"):
                save(model)
        assert torch.equal(model(inputs()).membrane, run.membrane)
        return
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(inputs()).membrane, run.membrane)


def test_both_kinds_of_model_are_tried():
    can = {name: picklable(style.fresh()) for name, style in STYLES.items()}
    assert can["gru_step"]
    assert not can["explicit_states"]
    assert not can["norse_list"]


def test_a_whole_model_goes_through_a_file(tmp_path):
    model = wrap(STYLES["gru_step"].fresh(), dt=DT, n_classes=2)
    run = model(inputs())
    torch.save(model, tmp_path / "model.pt")
    twin = torch.load(tmp_path / "model.pt", weights_only=False)
    assert isinstance(twin, TimedModel)
    assert torch.equal(twin(inputs()).membrane, run.membrane)


def test_copies_need_no_pickle():
    model = wrap(nn.Sequential(nn.Linear(FEATURES, CLASSES), leaky(init_hidden=True)), dt=DT)
    run = model(inputs())
    deep, shallow = copy.deepcopy(model), copy.copy(model)
    assert deep.net is not model.net
    assert shallow.net is model.net
    for twin in (deep, shallow):
        assert torch.equal(twin(inputs()).membrane, run.membrane)
    shared = copy.deepcopy([model, model])
    assert shared[0] is shared[1]
