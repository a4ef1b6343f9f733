"""Training-free restoration: exact where the answer is known, consistent with the observation everywhere."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from fewstep.core import paths
from fewstep.core.guidance import AveragePool, Mask
from fewstep.core.models import DiffusionModel, DiffusionModelConfig
from fewstep.core.wrapping import as_denoiser
from fewstep.restoration.methods.blur import Blur
from fewstep.restoration.methods.training_free import (
    PosteriorGuided,
    TrainingFree,
    TrainingFreeConfig,
)

PATH = paths.VP.cosine()
VARIANCE = 0.3


def gaussian(x: Tensor, t) -> Tensor:
    """The exact denoiser of data N(0, VARIANCE)."""
    a, _, sigma = PATH.coefficients(float(t))
    return x * a * VARIANCE / (a * a * VARIANCE + sigma * sigma)


def tiny_prior() -> DiffusionModel:
    torch.manual_seed(0)
    options = {"shape": (3, 8, 8), "width": 16, "depth": 1}
    prior = DiffusionModel(DiffusionModelConfig((3, 8, 8), "mlp", options, PATH.to_config(), "edm"))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return prior.eval()


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["pool", "mask"])
def test_posterior_guidance_is_the_exact_mean_for_gaussian_data(kind, noise):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    known = (torch.rand(1, 4, 4, generator=generator) < 0.5).float()
    operator = AveragePool(2) if kind == "pool" else Mask(known)
    units = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    matrix = operator.forward(units).flatten(1).T
    y = operator.forward(torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64))
    t = 0.6
    a, _, sigma = PATH.coefficients(t)
    guided = PosteriorGuided(as_denoiser(gaussian, PATH), operator, y, 1.0, noise, VARIANCE)(x, t)
    # What x0 may be, given the state alone, is N(mean, spread); then it is told the rows that see something.
    mean = gaussian(x, t).flatten(1)
    spread = VARIANCE * sigma**2 / (a * a * VARIANCE + sigma**2)
    seen = matrix.abs().sum(1) > 0
    rows = matrix[seen]
    gain = spread * rows.T @ torch.linalg.inv(spread * rows @ rows.T + noise**2 * torch.eye(len(rows)))
    exact = mean + (y.flatten(1)[:, seen] - mean @ rows.T) @ gain.T
    assert torch.allclose(guided.flatten(1), exact, atol=1e-10)


def test_blur_agrees_with_its_adjoint_and_pseudo_inverse():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 3, 10, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    blur = Blur(1.2)
    assert torch.allclose((blur.forward(x) * y).sum(), (x * blur.adjoint(y)).sum(), atol=1e-10)
    assert torch.allclose(blur.forward(blur.pseudo_inverse(blur.forward(x))), blur.forward(x), atol=1e-10)
    assert torch.allclose(blur.filtered(x, lambda s: s), blur.forward(x), atol=1e-12)
    assert torch.allclose(blur.filtered(x, lambda s: (s > 0).double()), blur.project(x), atol=1e-10)
    # An impulse is spread as a Gaussian of that standard deviation, as far as frequencies are kept.
    impulse = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    impulse[..., 16, 16] = 1
    made = blur.forward(impulse)[0, 0].sum(0)
    place = torch.arange(32.0).double() - 16
    assert made.sum() == pytest.approx(1.0)
    assert (made * place**2).sum().sqrt() == pytest.approx(1.2, rel=0.02)


def model(operator: str, method: str, **options) -> TrainingFree:
    config = TrainingFreeConfig(operator=operator, method=method, steps=6, **options)
    return TrainingFree(config, tiny_prior()).eval()


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
def test_super_resolution_keeps_every_mean(solver):
    made = model("average-pool", "ddnm", scale=4)
    lq = torch.rand(2, 3, 2, 2) * 0.2 - 0.1
    states = []
    restored = made.restore(lq, solver=solver, on_step=lambda info: states.append(info.x.clone()))
    # Means are kept before values are clamped to what a picture can hold.
    assert torch.allclose(AveragePool(4).forward(states[-1]), lq, atol=1e-5)
    assert torch.equal(restored, states[-1].clamp(-1, 1))
    assert restored.shape == (2, 3, 8, 8)


def test_measurements_are_kept():
    made = model("compressed-sensing", "ddnm", operator_options={"block": 4, "ratio": 0.5})
    truth = torch.rand(1, 3, 8, 8) * 0.2 - 0.1
    states = []
    made.restore(truth, on_step=lambda info: states.append(info.x.clone()))
    operator = made.operator()
    assert torch.allclose(operator.forward(states[-1]), operator.forward(truth), atol=1e-5)
    assert not torch.allclose(states[-1], truth, atol=1e-2)


def test_known_pixels_are_kept_and_holes_do_not_matter():
    made = model("mask", "ddnm")
    lq, mask = torch.rand(1, 3, 8, 8) - 0.5, torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    restored = made.restore(lq, mask=mask)
    hole = mask.expand_as(lq) > 0
    assert torch.equal(restored[~hole], lq[~hole])
    assert torch.allclose(made.restore(torch.where(hole, 9.0, lq), mask=mask), restored, atol=1e-6)


@pytest.mark.parametrize("method", ["dps", "flowchef"])
@pytest.mark.parametrize("operator", ["average-pool", "blur"])
def test_guided_samples_lie_nearer_to_the_observation(method, operator):
    scale = 2 if operator == "average-pool" else 1
    truth = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) - 0.5
    lq = model(operator, method, scale=scale).operator().forward(truth)
    gaps = []
    for strength in (0.0, 1.0):
        made = model(operator, method, scale=scale, strength=strength)
        restored = made.restore(lq, seed=3)
        gaps.append(float((made.operator().forward(restored) - lq).square().mean()))
    assert gaps[1] < 0.5 * gaps[0]


def test_a_checkpoint_brings_its_prior(tmp_path):
    prior = tiny_prior()
    config = TrainingFreeConfig(scale=4, steps=3, prior=asdict(prior.config))
    made = TrainingFree(config, prior).eval()
    made.save_pretrained(tmp_path)
    lq = torch.rand(1, 3, 2, 2) - 0.5
    assert torch.equal(TrainingFree.from_pretrained(tmp_path).restore(lq), made.restore(lq))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="method must be one of 'ddnm', 'dps', 'flowchef', got 'ddrm'"):
        TrainingFreeConfig(method="ddrm")
    with pytest.raises(ValueError, match="scale must be 1 for operator 'blur'"):
        TrainingFreeConfig(operator="blur", scale=2)
    with pytest.raises(ValueError, match="variance above 0"):
        TrainingFreeConfig(variance=0.0)
    with pytest.raises(ValueError, match="sigma and tolerance"):
        Blur(0.0)
    made = model("mask", "ddnm")
    with pytest.raises(ValueError, match="mask must be given"):
        made.restore(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="mode must be one of 'sample'"):
        made.restore(torch.zeros(1, 3, 8, 8), mode="mean", mask=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="lq must have 3 channels as the model, got 1"):
        model("blur", "ddnm").restore(torch.zeros(1, 1, 8, 8))
