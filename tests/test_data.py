"""Readers against files written byte by byte in the true formats, and the digits as they ship."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dynvision_snn import data
from dynvision_snn.errors import DataError, TimingError
from dynvision_snn.timing import containing_steps

# -- digits ------------------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learns_split_by_class_and_always_the_same():
    datasets = pytest.importorskip("sklearn.datasets")
    shipped = datasets.load_digits()
    train, test = data.load_digits()
    images = torch.cat([train.tensors[0], test.tensors[0]])
    labels = torch.cat([train.tensors[1], test.tensors[1]])
    joined = torch.cat([images.flatten(1) * 16, labels[:, None].float()], dim=1)
    expected = np.column_stack([shipped.data, shipped.target])
    assert sorted(joined.tolist()) == sorted(expected.tolist())
    shares = test.tensors[1].bincount() / labels.bincount()
    assert ((shares - 0.2).abs() < 0.01).all()
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    again = data.load_digits(flatten=True)[1]
    assert again.tensors[0].equal(test.tensors[0].flatten(1))
    assert again.tensors[1].equal(test.tensors[1])


@pytest.mark.parametrize(
    ("library", "call", "extra"),
    [
        ("sklearn", "data.load_digits()", "dynvision-snn[digits]"),
        ("h5py", "data.HeidelbergSpikes('x.h5', dt=1.0)", "dynvision-snn[events]"),
    ],
)
def test_a_missing_library_is_an_error_that_says_what_to_install(library, call, extra):
    # None in sys.modules makes Python's own import fail, as if the library were not installed.
    code = f"import sys; sys.modules[{library!r}] = None\nfrom dynvision_snn import data\n{call}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].startswith("dynvision_snn.errors.MissingExtraError")
    assert extra in shown.stderr.splitlines()[-1]


# -- IDX ---------------------------------------------------------------------------------------

IDX_TYPES = [
    (0x08, "B", [0, 255, 7, 1, 2, 3], torch.uint8),
    (0x09, "b", [0, -128, 7, 1, 2, 3], torch.int8),
    (0x0B, "h", [0, -300, 7, 1, 2, 3], torch.int16),
    (0x0C, "i", [0, 70000, 7, 1, 2, 3], torch.int32),
    (0x0D, "f", [0, -1.5, 7, 1, 2, 3], torch.float32),
    (0x0E, "d", [0, 1e-30, 7, 1, 2, 3], torch.float64),
]


def _idx(code: int, kind: str, shape: tuple[int, ...], values: list[float]) -> bytes:
    header = struct.pack(f">2xBB{len(shape)}I", code, len(shape), *shape)
    return header + struct.pack(f">{len(values)}{kind}", *values)


@pytest.mark.parametrize(("code", "kind", "values", "dtype"), IDX_TYPES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_of_every_type_are_read(tmp_path, code, kind, values, dtype, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(_idx(code, kind, (3, 2), values)))
    array = data.read_idx(path)
    assert array.dtype == dtype
    assert array.tolist() == [values[0:2], values[2:4], values[4:6]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected an IDX file"),
        (b"\x89PNG....", "expected an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends within its header"),
        (_idx(8, "B", (3, 2), [1] * 5), "17 bytes; expected 18"),
        (_idx(8, "B", (3, 2), [1] * 7), "19 bytes; expected 18"),
        (gzip.compress(_idx(8, "B", (2,), [1, 2]))[:-6], "cannot be read"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        data.read_idx(path)


def _write_mnist(folder, n_train=3, n_test=2, n_labels=3):
    for part, n, n_part_labels in [("train", n_train, n_labels), ("t10k", n_test, n_test)]:
        images = _idx(8, "B", (n, 2, 2), [0, 51, 102, 255] * n)
        labels = _idx(8, "B", (n_part_labels,), list(range(n_part_labels)))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_mnist_is_read_from_its_folder(tmp_path):
    _write_mnist(tmp_path)
    train, test = data.load_mnist(tmp_path)
    assert (len(train), len(test)) == (3, 2)
    image, label = train[2]
    torch.testing.assert_close(image, torch.tensor([[[0.0, 0.2], [0.4, 1.0]]]))
    assert label.dtype == torch.int64
    assert label == 2


def test_mnist_that_is_incomplete_or_inconsistent_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither train-images-idx3-ubyte nor"):
        data.load_mnist(tmp_path)
    _write_mnist(tmp_path, n_labels=4)
    with pytest.raises(DataError, match=r"labels shape \[4\]"):
        data.load_mnist(tmp_path)


# -- events ------------------------------------------------------------------------------------


def _nmnist(events: list[tuple[int, int, int, int]]) -> bytes:
    """Events (x, y, polarity, microseconds) in the 40-bit format."""
    return b"".join(
        (x << 32 | y << 24 | polarity << 23 | time).to_bytes(5, "big")
        for x, y, polarity, time in events
    )


def test_nmnist_events_are_read_with_their_place_polarity_and_time(tmp_path):
    path = tmp_path / "00001.bin"
    path.write_bytes(_nmnist([(33, 0, 0, 0), (5, 33, 1, 1500), (0, 7, 1, 2**23 - 1)]))
    events = data.read_nmnist(path)
    where = [np.unravel_index(unit, events.shape) for unit in events.units.tolist()]
    assert where == [(0, 0, 33), (1, 33, 5), (1, 7, 0)]
    assert events.times.tolist() == [0.0, 1.5, 8388.607]


def test_nmnist_clock_overflows_are_no_events_and_move_all_later_times(tmp_path):
    path = tmp_path / "00001.bin"
    path.write_bytes(_nmnist([(1, 1, 0, 100), (0, 240, 0, 0), (1, 1, 0, 50), (0, 240, 1, 9)] * 2))
    assert data.read_nmnist(path).times.tolist() == [0.1, 8.242, 16.484, 24.626]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1234", "4 bytes"),
        (_nmnist([(34, 0, 0, 0)]), "34x34"),
        (_nmnist([(0, 34, 0, 0)]), "34x34"),
    ],
)
def test_broken_nmnist_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "00001.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        data.read_nmnist(path)
    with pytest.raises(DataError, match="cannot be read"):
        data.read_nmnist(tmp_path / "absent.bin")


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 5)), max_size=40),
    st.sampled_from([0.1, 0.3, 1.0, 2.5]),
    st.booleans(),
)
def test_frames_count_every_event_in_its_timestep(events, dt, binary):
    times = torch.tensor([microseconds / 1000 for microseconds, _ in events], dtype=torch.float64)
    units = torch.tensor([unit for _, unit in events], dtype=torch.int64)
    frames = data.Events(times, units, (2, 3)).frames(dt, 15.0, binary=binary)
    expected = torch.zeros_like(frames)
    per_step = round(dt * 1000)
    for microseconds, unit in events:
        step = microseconds // per_step
        if step < len(expected):
            expected[step, unit // 3, unit % 3] += 1
    assert len(frames) == -(-15_000 // per_step)
    assert frames.equal(expected.clamp(max=1) if binary else expected)


@given(st.integers(0, 10**7), st.integers(1, 10**4))
def test_a_moment_lies_in_the_timestep_that_exact_integers_say(microseconds, per_step):
    time = torch.tensor([microseconds / 1000], dtype=torch.float64)
    assert containing_steps(time, per_step / 1000).item() == microseconds // per_step


@pytest.mark.parametrize("time", [-0.1, float("nan"), float("inf")])
def test_a_moment_that_is_no_time_is_refused(time):
    with pytest.raises(TimingError, match="A moment is"):
        containing_steps(torch.tensor([0.0, time]), 1.0)
    with pytest.raises(DataError, match="negative or not finite"):
        data.Events(torch.tensor([time]), torch.tensor([0]), (1,))


def test_events_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"\[N\] of both"):
        data.Events(torch.zeros(2), torch.zeros(3).long(), (1,))
    with pytest.raises(DataError, match="expected 0 to 3"):
        data.Events(torch.zeros(1), torch.tensor([4]), (2, 2))


def test_nmnist_comes_out_of_a_loader_time_first(tmp_path):
    for digit in (3, 8):
        (tmp_path / str(digit)).mkdir()
        (tmp_path / str(digit) / "00001.bin").write_bytes(_nmnist([(digit, 2, 1, 4500)] * digit))
    dataset = data.NMNIST(tmp_path, dt=2.0, duration=9.0)
    frames, labels = next(iter(DataLoader(dataset, batch_size=2, collate_fn=data.time_first)))
    assert frames.shape == (dataset.n_timesteps, 2, 2, 34, 34) == (5, 2, 2, 34, 34)
    assert labels.tolist() == [3, 8]
    assert frames[2, 1, 1, 2, 8] == 8
    assert frames.sum() == 11
    with pytest.raises(DataError, match=r"0/00002\.bin"):
        data.NMNIST(tmp_path / "3", dt=1.0)


def test_heidelberg_spikes_are_read_from_their_hdf5_form(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "shd_train.h5"
    with h5py.File(path, "w") as file:
        spikes = file.create_group("spikes")
        times = spikes.create_dataset("times", (2,), dtype=h5py.vlen_dtype(np.float16))
        units = spikes.create_dataset("units", (2,), dtype=h5py.vlen_dtype(np.uint16))
        times[0], units[0] = np.array([0.25, 0.5], np.float16), np.array([699, 0], np.uint16)
        times[1], units[1] = np.array([], np.float16), np.array([], np.uint16)
        file["labels"] = np.array([19, 4], np.uint16)
    dataset = data.HeidelbergSpikes(path, dt=125.0, duration=500.0)
    assert len(dataset) == 2
    frames, label = dataset[0]
    assert label == 19
    assert frames.nonzero().tolist() == [[2, 699]]
    assert dataset[-1][0].sum() == 0
    events, _ = data.read_heidelberg(path, 0)
    assert events.times.tolist() == [250.0, 500.0]
    with pytest.raises(IndexError):
        dataset[2]
    with pytest.raises(DataError, match="no sample 2"):
        data.read_heidelberg(path, 2)


def test_files_that_are_no_heidelberg_files_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    for name in ("text.h5", "other.h5", "absent.h5"):
        with pytest.raises(DataError, match="cannot be read"):
            data.HeidelbergSpikes(tmp_path / name, dt=1.0)
