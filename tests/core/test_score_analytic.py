"""Score distillation of Gaussians, where every score, ratio and gradient is known."""

# pyright: reportArgumentType=false

import pytest
import torch
from tests.core.score_cases import PATH, GaussianDenoiser, flow
from tests.core.test_divergences import gauss_hermite
from torch import nn

from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import ScoreDistillation
from fewstep.core.objectives.score.divergences import DIVERGENCES, RatioWeight
from fewstep.core.objectives.score.fake import FakeScore
from fewstep.core.objectives.score.families import Estimates, Fisher, InnerProduct, PseudoTarget
from fewstep.core.objectives.score.generation import OneStep
from fewstep.core.objectives.score.levels import Anywhere
from fewstep.core.objectives.score.matching import Ratio, ScoreMatching
from fewstep.core.objectives.times import LogNormal
from fewstep.core.training import Moment

M, S, SIGMA = 0.5, 1.2, 0.8


def fisher_gradient(alpha: float, name: str = "reverse-kl") -> float:
    """The loss's derivative by the student's mean, by quadrature, in units of score².

    The factor 2/sigma⁴ turns products of denoisers' differences into those of scores, twice as the square's
    derivative wants it.
    """
    student, teacher = GaussianDenoiser(M, S), GaussianDenoiser()
    frozen = GaussianDenoiser(M, S).requires_grad_(False)
    z, noise, weights = gauss_hermite(64)
    x = student.mean + student.std * z
    t = torch.full((len(x),), SIGMA, dtype=torch.float64)
    x_t = x + SIGMA * noise
    h = DIVERGENCES[name].h(teacher.log_density(x_t, t) - frozen.log_density(x_t, t)).detach()
    real, fake = flow(teacher).x0(x_t, t), flow(frozen).x0(x_t, t)
    loss = (weights * Fisher(alpha, "none")(Estimates(PATH, t, x, real, fake, h))).sum()
    (gradient,) = torch.autograd.grad(2 * loss / SIGMA**4, student.mean)
    return float(gradient)


def true_fisher_gradient(name: str) -> float:
    """d/dm E_p[h(q/p)·(s_p − s_q)²] by the trapezium rule, with p the density itself."""
    mean = torch.tensor(M, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    p, q = S**2 + SIGMA**2, 1 + SIGMA**2
    log_p = -((x - mean) ** 2) / (2 * p) - 0.5 * torch.log(torch.tensor(2 * torch.pi * p))
    log_q = -(x**2) / (2 * q) - 0.5 * torch.log(torch.tensor(2 * torch.pi * q))
    squares = ((x - mean) / p - x / q).square()
    value = torch.trapezoid(log_p.exp() * DIVERGENCES[name].h(log_q - log_p) * squares, x)
    return float(torch.autograd.grad(value, mean)[0])


@pytest.mark.parametrize(
    ("alpha", "wanted"), [(0.0, 0.45045), (0.5, 0.37180), (1.0, 0.29315), (1.2, 0.26169)]
)
def test_alpha_of_the_fisher_divergence(alpha, wanted):
    """Published check values; only alpha = 1/2 has the gradient of the divergence itself."""
    assert fisher_gradient(alpha) == pytest.approx(wanted, abs=1e-5)
    exact = true_fisher_gradient("reverse-kl")
    assert (abs(fisher_gradient(alpha) - exact) < 1e-6) == (alpha == 0.5)


def test_alpha_one_is_exact_with_forward_kl_weights_only():
    assert fisher_gradient(1.0, "forward-kl") == pytest.approx(true_fisher_gradient("forward-kl"), abs=1e-6)
    assert fisher_gradient(1.0, "forward-kl") == pytest.approx(0.231139, abs=1e-6)
    assert fisher_gradient(1.0, "js") == pytest.approx(0.12292, abs=1e-5)
    assert true_fisher_gradient("js") == pytest.approx(0.12879, abs=1e-5)


class AffineStudent(nn.Module):
    """x = m + s·z whatever the time; the input is the scaled start state, start·z."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.std = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.factor = (start**2 + PATH.sigma_data**2) ** 0.5 / start

    def forward(self, x, t):
        return self.mean + self.std * self.factor * x


class ExactFake(nn.Module):
    """The denoiser of what that student makes at this moment."""

    def __init__(self, student: AffineStudent) -> None:
        super().__init__()
        self.student = [student]

    def denoiser(self) -> GaussianDenoiser:
        (student,) = self.student
        return GaussianDenoiser(student.mean.item(), student.std.item()).requires_grad_(False)

    def forward(self, x, t):
        return self.denoiser()(x, t)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (PseudoTarget(), None),
        (InnerProduct(), None),
        (Fisher(1.2), None),
        (Fisher(0.5, "none"), None),
        (Fisher(1.0, "none", huber=0.1), None),
        (PseudoTarget(), "js"),
        (PseudoTarget(), "forward-kl"),
        (Fisher(1.0), "jeffreys"),
    ],
    ids=str,
)
def test_student_finds_the_data(family, name):
    """With exact scores N(1.5, 0.4²) becomes N(0, 1), the teacher's data, within 1e-2."""
    teacher, student = GaussianDenoiser().requires_grad_(False), AffineStudent(2.5)
    fake = ExactFake(student)
    ratio = None
    if name is not None:

        def exact(networks, x, t, conditions):
            return teacher.log_density(x, t) - fake.denoiser().log_density(x, t)

        ratio = Ratio(exact, RatioWeight(name))
    matching = ScoreMatching(flow(teacher), "x0", family, Anywhere(LogNormal(0.0, 0.5)), ratio=ratio)
    objective = ScoreDistillation(PATH, "x0", [matching], generation=OneStep(2.5))
    (phase,) = objective.phases()
    generator, batch = torch.Generator().manual_seed(0), torch.zeros(512, 8, dtype=torch.float64)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):
        losses = phase.loss({"student": student, "fake": fake}, batch, generator, Moment(step, step / 400))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        schedule.step()
    assert abs(student.mean.item()) < 1e-2
    assert abs(student.std.item() - 1) < 1e-2


def test_fake_score_learns_the_students_samples():
    """The denoising loss alone turns the teacher's copy into the denoiser of N(0.3, 0.6²)."""
    net = GaussianDenoiser()
    score = FakeScore(net, "x0")
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        x = 0.3 + 0.6 * torch.randn(512, 1, dtype=torch.float64, generator=generator)
        loss = score.loss(PATH, {"fake": net}, x, SampleBatch(x), generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert float(net.mean) == pytest.approx(0.3, abs=1e-2)
    assert float(net.std) == pytest.approx(0.6, abs=1e-2)
