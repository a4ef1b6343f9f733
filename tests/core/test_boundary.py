"""The search for a best start: known optima, every family and method, files, bad input."""

import pytest
import torch
from tests.core.solver_problems import smooth_mixture

from fewstep.core import paths, sample
from fewstep.core.starts import BestStart, best_candidate, best_start
from fewstep.core.weights import CheckpointError

PATH = paths.EDM()


def ball(x, t):
    return x / (1 + t * t)


def end_of(x):
    """A linear sampler, so that the best start is known: the samples are gain·x."""
    return sample(ball, PATH, "ddim", 4, x=x, grad=torch.is_grad_enabled())


GAIN = end_of(torch.ones(1, 1, 2, dtype=torch.float64))[0, 0, 0].item()
TARGET = torch.tensor([[[1.0, 2.0], [-1.0, 0.5]]], dtype=torch.float64)


def loss(x):
    return (end_of(x) - TARGET).square().mean()


@pytest.mark.parametrize("method", ["gradient", "evolution"])
def test_a_fixed_start_reaches_the_target(method):
    found = best_start(
        loss,
        (1, 2, 2),
        family="point",
        method=method,
        steps=75,
        lr=0.2 / GAIN,
        radius=0.1 / GAIN,
        dtype=torch.float64,
    )
    assert found.scale == 0.0
    assert (GAIN * found.shift - TARGET).abs().max() < 0.05
    assert (end_of(found.draw((3, 2, 2), dtype=torch.float64)) - TARGET).abs().max() < 0.05
    assert len(found.losses) == 76


@pytest.mark.parametrize(("family", "wanted"), [("pixel", TARGET), ("channel", TARGET.mean(2, keepdim=True))])
def test_a_shift_is_the_mean_error(family, wanted):
    """With noise around it the best shift undoes the mean error: (mean target − gain·mean noise)/gain."""
    noise_free = lambda x: (end_of(x).mean(0, keepdim=True) - TARGET).square().mean()  # noqa: E731
    found = best_start(
        noise_free, (512, 2, 2), family=family, scale=80.0, steps=60, lr=0.2 / GAIN, dtype=torch.float64
    )
    assert found.shift.shape == ((1, 2, 2) if family == "pixel" else (1, 2, 1))
    # 4 standard errors of the mean of 512 (1024) normal values of deviation gain·80
    spread = GAIN * 80.0 / 512**0.5
    assert (GAIN * found.shift - wanted).abs().max() < 4 * spread + 0.02


def test_the_best_of_all_steps_is_returned():
    found = best_start(loss, (1, 2, 2), family="point", steps=33, lr=20.0 / GAIN, dtype=torch.float64)
    assert loss(found.shift).item() == pytest.approx(min(found.losses), rel=1e-12)
    assert min(found.losses) < found.losses[-1]  # so large a step overshoots


def test_a_few_steps_from_a_good_start_beat_drawn_ones():
    """On a mixture: 3 calls from the searched start end nearer to the reference than from any of 64 seeds."""
    mixture = smooth_mixture()
    denoise = mixture.denoiser(PATH)
    reference = mixture.draw(1, (3, 2, 2), torch.Generator().manual_seed(0))

    def error(x):
        got = sample(denoise, PATH, "dpmpp-2m", 3, x=x, grad=torch.is_grad_enabled())
        return (got - reference).square().mean()

    found = best_start(error, (1, 3, 2, 2), family="point", scale=80.0, steps=60, lr=8.0, dtype=torch.float64)
    drawn = 80.0 * torch.randn(64, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert min(found.losses) < 0.5 * min(error(x[None]).item() for x in drawn)


@pytest.mark.parametrize("halvings", [0, 3])
def test_best_candidate(halvings):
    """References are one point plus noise; the candidate whose sample is nearest to the point wins."""
    references = TARGET + 0.01 * torch.randn(
        16, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    asked = []

    def distance(x, part):
        asked.append(len(part))
        return (end_of(x) - references[part.start : part.stop]).square().mean((1, 2)).sum()

    found = best_candidate(
        distance,
        (1, 2, 2),
        16,
        candidates=32,
        halvings=halvings,
        scale=2.0 / GAIN,
        seed=5,
        dtype=torch.float64,
    )
    starts = [
        BestStart(torch.zeros(1, 2, 2), 2.0 / GAIN).draw((1, 2, 2), 5 + i, torch.float64) for i in range(32)
    ]
    nearest = min(range(32), key=lambda i: distance(starts[i], range(16)).item())
    assert torch.equal(found.shift, starts[nearest])
    assert found.losses[0] == pytest.approx(distance(found.shift, range(16)).item() / 16, rel=1e-9)
    calls = asked[:-33]
    assert sum(calls) == (32 * 16 if halvings == 0 else 32 * 2 + 16 * 2 + 8 * 4 + 4 * 8)
    assert found.scale == 0.0


def test_a_point_is_repeated_on_larger_samples():
    start = BestStart(torch.arange(6.0).reshape(1, 1, 2, 3), 0.0)
    got = start.draw((2, 1, 3, 4))
    assert got[1, 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 3], [0, 1, 2, 0]]


def test_saved_and_loaded(tmp_path):
    found = best_start(loss, (1, 2, 2), family="pixel", scale=3.0, steps=5, dtype=torch.float64)
    found.save(tmp_path / "start.safetensors")
    other = BestStart.load(tmp_path / "start.safetensors")
    assert torch.equal(other.draw((4, 2, 2), seed=3), found.draw((4, 2, 2), seed=3))
    assert other.losses == found.losses
    with pytest.raises(CheckpointError, match="is not a file"):
        BestStart.load(tmp_path / "missing.safetensors")


SHAPE = (1, 2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: best_start(loss, SHAPE, family="line"), "family must be one of 'point', 'pixel', 'channel'"),
        (lambda: best_start(loss, SHAPE, method="luck"), "method must be one of 'gradient', 'evolution'"),
        (lambda: best_start(loss, SHAPE, steps=0), "steps and population must be at least 1"),
        (lambda: best_start(loss, SHAPE, lr=0.0), "lr and radius must be above 0"),
        (lambda: best_start(end_of, SHAPE), "objective must return one finite number"),
        (lambda: best_start(lambda x: x.sum() * torch.nan, SHAPE), "objective must return one finite number"),
        (lambda: best_candidate(lambda x, part: 0.0, (2, 1, 2), 4), "shape must be that of one start"),
        (
            lambda: best_candidate(lambda x, part: 0.0, SHAPE, 0),
            "candidates and references must be at least 1",
        ),
        (lambda: BestStart(torch.zeros(1, 3, 2), 1.0).draw((2, 2, 2)), "does not fit the start"),
        (lambda: BestStart(torch.zeros(1, 3, 2), 1.0).draw((2, 3)), "does not fit the start"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
