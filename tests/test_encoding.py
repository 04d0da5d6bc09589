"""Encodings against the libraries' own encoders, closed-form statistics, and plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvision_snn.encoding import BernoulliRate, ConstantCurrent, Encoding, Latency, PoissonRate
from dynvision_snn.errors import EncodingError, PresentationError, TimingError
from dynvision_snn.noise import GaussianNoise, PoissonNoise
from dynvision_snn.presentation import Presentation
from dynvision_snn.presentation_batch import PresentationBatch

# Presentations of null input alone have nothing to supervise.
pytestmark = pytest.mark.filterwarnings("ignore::dynvision_snn.errors.PresentationWarning")

ENCODINGS: list[Encoding] = [
    ConstantCurrent(),
    PoissonRate(100.0),
    BernoulliRate(100.0),
    Latency(tau=5.0),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def always(dt: float, duration: float) -> Presentation:
    return Presentation("1", dt=dt, n_timesteps=round(duration / dt))


# -- against the libraries ------------------------------------------------------------------------


def test_bernoulli_spikes_are_norses_spike_for_spike() -> None:
    encode = pytest.importorskip("norse.torch.functional.encode")
    images = torch.rand(3, 40, generator=seeded(1))
    ours = BernoulliRate(200.0)(images, always(2.0, 100.0), seeded())
    theirs = encode.poisson_encode(images, 50, f_max=200.0, dt=0.002, generator=seeded())
    assert ours.any()
    assert torch.equal(ours, theirs)


def test_bernoulli_spikes_are_as_many_as_snntorchs() -> None:
    spikegen = pytest.importorskip("snntorch.spikegen")
    images = torch.rand(1, 200, generator=seeded(1))
    ours = BernoulliRate(500.0)(images, always(1.0, 400.0), seeded()).mean(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = spikegen.rate(0.5 * images, num_steps=400).mean(0)
    # Each is within some standard errors of 0.5 x.
    error = (images * 0.5 * (1 - images * 0.5) / 400).sqrt()
    assert ((ours - theirs).abs() < 6 * error + 1e-3).all()


def test_latencies_are_those_of_snntorch() -> None:
    spikegen = pytest.importorskip("snntorch.spikegen")
    images = torch.rand(2, 50, generator=seeded(1))
    tau, threshold, dt = 12.0, 0.1, 0.5
    spikes = Latency(tau, threshold)(images, always(dt, 60.0))
    steps, never = spikegen.latency_code(
        images, num_steps=120, tau=tau / dt, threshold=threshold, epsilon=0
    )
    fired = spikes.sum(0) > 0
    assert torch.equal(fired, ~never & (steps < 120))
    assert torch.equal(spikes.argmax(0)[fired], steps[fired].floor().long())
    assert spikes.sum(0).max() == 1


# -- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("encoding", [PoissonRate(80.0), BernoulliRate(80.0)])
def test_a_rate_in_hz_is_that_rate_at_any_timestep(encoding, dt):
    images = torch.tensor([[0.0, 0.25, 1.0]]).repeat(500, 1)
    spikes = encoding(images, always(dt, 1000.0), seeded())
    counts = spikes.sum(0)
    expected = 80 * images[0]
    standard_error = (expected / len(images)).sqrt()
    assert ((counts.mean(0) - expected).abs() <= 5 * standard_error).all()
    # Poisson counts vary as much as their mean; Bernoulli's by 1 - p less.
    p = 0.08 * dt * images[0] if isinstance(encoding, BernoulliRate) else 0
    assert torch.allclose(counts.var(0), expected * (1 - p), rtol=0.3)
    if isinstance(encoding, BernoulliRate):
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "encoding",
    [BernoulliRate(3.0), PoissonRate(3.0), ConstantCurrent(null_noise=PoissonNoise(3.0))],
    ids=["Bernoulli", "Poisson", "noise"],
)
def test_a_rate_is_that_rate_in_half_precision(encoding, dtype):
    n_units, seconds = 4000, 1.0
    shown = "0" if encoding.null_noise else "1"
    p = Presentation(shown, dt=1.0, n_timesteps=int(1000 * seconds))
    spikes = encoding(torch.ones(1, n_units, dtype=dtype), p, seeded())
    assert spikes.dtype == dtype
    standard_error = math.sqrt(3.0 * seconds / n_units)
    assert abs(float(spikes.double().sum(0).mean()) - 3.0 * seconds) < 5 * standard_error


@given(st.floats(1.0, 5000.0), st.floats(0.05, 5.0))
def test_a_rate_above_one_spike_per_timestep_is_an_error_that_names_the_limit(rate, dt):
    p = Presentation("1", dt=dt)
    limit = 1000 / dt
    if rate > limit * (1 + 1e-5):
        with pytest.raises(EncodingError, match=r"above the limit of 1 / dt = .* Hz.*PoissonRate"):
            BernoulliRate(rate)(torch.zeros(1, 2), p, seeded())
    elif rate < limit:
        BernoulliRate(rate)(torch.zeros(1, 2), p, seeded())


def test_intensities_count_towards_the_limit() -> None:
    p = Presentation("1", dt=1.0)
    BernoulliRate(500.0)(torch.full((1, 2), 2.0), p, seeded())
    with pytest.raises(EncodingError, match="1500 Hz is above the limit of 1 / dt = 1000 Hz"):
        BernoulliRate(500.0)(torch.full((1, 2), 3.0), p, seeded())
    assert BernoulliRate(1000.0)(torch.ones(1, 9), p, seeded()).all()


# -- schedules ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.floats(0.2, 3.0))
@settings(deadline=None)
def test_every_encoding_follows_the_presentation(pattern, dt):
    p = Presentation(pattern, dt=dt)
    images = torch.rand(*([2] if p.n_stimuli > 1 else []), 3, 4, generator=seeded(1)) + 0.05
    for encoding in ENCODINGS:
        encoded = encoding(images, p, seeded())
        assert encoded.shape == (len(pattern), 3, 4)
        assert encoded.dtype == images.dtype
        null = torch.tensor([entry == 0 for entry in pattern])
        assert not encoded[null].any()
        one_by_one = torch.stack(list(encoding.steps(images, p, seeded())))
        assert torch.equal(one_by_one, encoded)
        assert torch.equal(encoding(images, p, seeded()), encoded)  # seeded
    assert torch.equal(ConstantCurrent()(images, p), p.present(images))


def test_latency_starts_anew_at_every_onset_and_ends_with_its_stimulus() -> None:
    p = Presentation("0110122", dt=1.0)
    images = torch.stack([torch.tensor([[1.0, 0.7]]), torch.tensor([[0.7, 1.0]])])
    encoding = Latency(tau=1.0, threshold=0.5)  # at 0.69 ms and 1.25 ms
    spikes = encoding(images, p).squeeze(1).tolist()
    assert spikes == [
        [0, 0],
        [1, 0],
        [0, 1],
        [0, 0],
        [1, 0],  # its unit 1 would come after the stimulus
        [0, 1],
        [1, 0],
    ]


def test_null_input_of_another_value_is_encoded_like_an_image() -> None:
    p = Presentation("0" * 500, dt=1.0, null_value=0.5)
    spikes = PoissonRate(100.0)(torch.zeros(1, 200), p, seeded())
    assert float(spikes.sum(0).mean()) == pytest.approx(25.0, rel=0.05)
    current = ConstantCurrent(2.0)(torch.zeros(1, 2), Presentation("0", dt=1.0, null_value=0.5))
    assert (current == 1.0).all()


# -- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [ConstantCurrent, PoissonRate, BernoulliRate, Latency])
def test_noise_is_on_null_input_alone(encoding):
    p = Presentation("0110", dt=1.0)
    images = torch.rand(3, 4, generator=seeded(1))
    noise = GaussianNoise(1.0)
    plain = encoding(1.0)(images, p, seeded())
    noisy = encoding(1.0, null_noise=noise)(images, p, seeded())
    assert (noisy[[0, 3]] != 0).all()
    if encoding in (ConstantCurrent, Latency):
        assert torch.equal(noisy[1:3], plain[1:3])
    assert set(noisy[1:3].unique().tolist()) <= set(plain[1:3].unique().tolist()) | {0.0, 1.0}


@pytest.mark.parametrize("dt", [0.5, 2.0])
@pytest.mark.parametrize("tau", [0.0, 10.0])
def test_gaussian_noise_has_its_deviation_and_correlation_in_ms(tau, dt):
    steps = GaussianNoise(0.7, correlation_time=tau).steps(torch.zeros(5000), dt, seeded())
    values = torch.stack([next(steps) for _ in range(21)])
    assert float(values.mean()) == pytest.approx(0.0, abs=0.03)
    assert torch.allclose(values.std(1), torch.tensor(0.7), rtol=0.05)
    for lag in (1, 20):
        expected = math.exp(-lag * dt / tau) if tau else 0.0
        measured = float((values[0] * values[lag]).mean()) / 0.7**2
        assert measured == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("dt", [0.5, 2.0])
def test_poisson_noise_has_its_rate_in_hz(dt):
    steps = PoissonNoise(20.0, amplitude=3.0).steps(torch.zeros(2000), dt, seeded())
    total = torch.stack([next(steps) for _ in range(round(500 / dt))]).sum(0)
    assert float(total.mean()) == pytest.approx(30.0, rel=0.05)  # 10 spikes of 3
    assert float((total / 3).var()) == pytest.approx(10.0, rel=0.15)


def test_noise_makes_a_current_need_a_generator_only_where_there_is_null_input() -> None:
    encoding = ConstantCurrent(null_noise=PoissonNoise(5.0))
    images = torch.ones(1, 2)
    encoding(images, Presentation("11", dt=1.0))
    with pytest.raises(EncodingError, match="no generator"):
        encoding(images, Presentation("01", dt=1.0))


# -- bad input ------------------------------------------------------------------------------------


def test_a_random_encoding_without_a_generator_is_refused_at_once() -> None:
    for encoding in (PoissonRate(10.0), BernoulliRate(10.0)):
        with pytest.raises(EncodingError, match=r"no generator.*manual_seed"):
            encoding.steps(torch.ones(1, 2), Presentation("1", dt=1.0))


def test_a_generator_on_another_device_is_refused() -> None:
    images = torch.ones(1, 2, device="meta")
    with pytest.raises(EncodingError, match="The generator is on cpu and the images on meta"):
        BernoulliRate(10.0).steps(images, Presentation("1", dt=1.0), seeded())


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_intensities_that_are_no_rates_are_refused(bad):
    images = torch.tensor([[0.5, bad]])
    for encoding in (PoissonRate(10.0), BernoulliRate(10.0), Latency(5.0)):
        with pytest.raises(EncodingError, match="at least 0"):
            encoding(images, Presentation("1", dt=1.0), seeded())


def test_bytes_are_refused_with_the_way_out() -> None:
    with pytest.raises(EncodingError, match="/ 255"):
        ConstantCurrent()(torch.ones(1, 2, dtype=torch.uint8), Presentation("1", dt=1.0))


def test_images_that_do_not_fit_the_presentation_are_refused() -> None:
    with pytest.raises(PresentationError, match=r"2 stimuli|stimulus 2"):
        ConstantCurrent()(torch.ones(3, 1, 2), Presentation("12", dt=1.0))


@pytest.mark.parametrize(
    "build",
    [
        lambda: PoissonRate(-1.0),
        lambda: BernoulliRate(math.nan),
        lambda: ConstantCurrent(math.inf),
        lambda: Latency(5.0, threshold=0.0),
        lambda: Latency(5.0, threshold=-1.0),
        lambda: GaussianNoise(-0.5),
        lambda: PoissonNoise(math.inf),
        lambda: PoissonNoise(1.0, amplitude=math.nan),
    ],
)
def test_parameters_that_cannot_be_are_refused_when_built(build):
    with pytest.raises(EncodingError):
        build()


def test_times_that_cannot_be_are_refused_when_built() -> None:
    with pytest.raises(TimingError):
        Latency(-1.0)
    with pytest.raises(TimingError):
        GaussianNoise(1.0, correlation_time=math.nan)


# -- a presentation for each sample ---------------------------------------------------------------

own_patterns = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4)


def batch_of(patterns, dt=1.0, extra=0):
    ones = [Presentation(pattern, dt) for pattern in patterns]
    longest = max(one.n_timesteps for one in ones)
    return PresentationBatch(ones, longest + extra, n_stimuli=2)


@settings(deadline=None)
@given(own_patterns, st.integers(0, 2), st.integers(0, 100))
@pytest.mark.parametrize("encoding", [ConstantCurrent(0.5), Latency(tau=3.0, threshold=0.2)])
def test_a_batch_without_randomness_is_its_samples_encoded_alone(encoding, patterns, extra, seed):
    batch = batch_of(patterns, extra=extra)
    images = torch.rand(2, len(patterns), 5, generator=seeded(seed))
    together = encoding(images, batch)
    assert together.shape == (batch.n_timesteps, len(patterns), 5)
    for sample, one in enumerate(batch):
        mine = images[:, sample : sample + 1]
        alone = encoding(mine if one.n_stimuli > 1 else mine[0], one)
        assert torch.equal(together[: one.n_timesteps, sample], alone[:, 0])
        assert not together[one.n_timesteps :, sample].any()


@pytest.mark.parametrize("noise", [None, GaussianNoise(0.3, 4.0), PoissonNoise(300.0)])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_batch_of_one_presentation_is_that_presentation(encoding, noise):
    encoding = replace(encoding, null_noise=noise)
    p = Presentation("0011001", 2.0)
    images = torch.rand(3, 5, generator=seeded(1))
    shared = encoding(images, p, seeded())
    assert torch.equal(encoding(images, PresentationBatch([p] * 3), seeded()), shared)


@pytest.mark.parametrize("encoding", [PoissonRate(150.0), BernoulliRate(150.0)])
def test_rates_follow_each_samples_own_schedule(encoding):
    ones = [
        Presentation.from_phases([("before", onset, 0), ("shown", 400.0, 1)], dt=1.0)
        for onset in (100.0, 300.0)
    ]
    batch = PresentationBatch(ones, 900)
    spikes = encoding(torch.ones(2, 500), batch, seeded()).mean(2)
    for sample, one in enumerate(ones):
        (onset,) = one.onsets
        shown = slice(onset, one.n_timesteps)
        # 400 ms at 150 Hz, in 500 units: a standard error of about 0.35 spikes.
        assert spikes[shown, sample].sum() == pytest.approx(60.0, abs=1.5)
        assert spikes[:onset, sample].sum() == spikes[one.n_timesteps :, sample].sum() == 0


@pytest.mark.parametrize("noise", [GaussianNoise(0.3, 5.0), PoissonNoise(400.0)])
def test_noise_is_on_each_samples_null_input_alone(noise):
    batch = batch_of(["0101", "110", "000"], extra=2)
    inputs = ConstantCurrent(null_noise=noise)(torch.zeros(2, 3, 400), batch, seeded())
    noisy = inputs.abs().sum(2) > 0
    null = (batch.stimulus_at == 0) & batch.active_mask
    assert torch.equal(noisy, null)


def test_each_samples_noise_goes_on_from_where_it_was():
    """Its correlation from one of its null timesteps to the next does not see the others'."""
    batch = batch_of(["01110", "00000"])
    noise = GaussianNoise(1.0, 5.0)
    inputs = ConstantCurrent(null_noise=noise)(torch.zeros(2, 2, 40_000), batch, seeded())
    decay = math.exp(-1 / 5)
    assert (inputs[0, 0] * inputs[4, 0]).mean() == pytest.approx(decay, abs=0.03)
    assert (inputs[0, 1] * inputs[4, 1]).mean() == pytest.approx(decay**4, abs=0.03)


@pytest.mark.filterwarnings("error")
def test_intensities_of_padding_count_too():
    ones = [Presentation("11", 1.0, null_value=-1.0), Presentation("1", 1.0, null_value=-1.0)]
    with pytest.raises(EncodingError, match="at least 0"):
        PoissonRate(10.0)(torch.ones(2, 3), PresentationBatch(ones), seeded())
    PoissonRate(10.0)(torch.ones(2, 3), PresentationBatch(ones[:1] * 2), seeded())
