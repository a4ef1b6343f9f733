"""Guidance in score distillation, noise levels, normalisers, teachers in turn, and bad arguments."""

# pyright: reportArgumentType=false, reportCallIssue=false

import pytest
import torch
from tests.core.score_cases import PATH, GaussianDenoiser, flow, material
from torch import nn

from fewstep.core import paths
from fewstep.core.clock import clock_at, spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives import methods
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.backtrack import TeacherPath, record_degradation
from fewstep.core.objectives.score.base import Made, ScoreDistillation
from fewstep.core.objectives.score.fake import FakeScore
from fewstep.core.objectives.score.families import Fisher, InnerProduct, PseudoTarget
from fewstep.core.objectives.score.generation import OneStep, SeveralSteps
from fewstep.core.objectives.score.levels import Anywhere, BelowStart, Karras
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.objectives.score.normalisers import NORMALISERS, normaliser
from fewstep.core.objectives.score.regression import Regression
from fewstep.core.objectives.score.teacher_guidance import GuidanceAugmentation, TeacherGuidance
from fewstep.core.objectives.times import Fixed, Uniform
from fewstep.core.sampling import Sampling
from fewstep.core.training import Moment

LEVEL = Anywhere(Fixed(0.8))
NULL = {"label": torch.tensor([2])}


class Labelled(nn.Module):
    """A denoiser of N(shift[label], 1)."""

    def __init__(self, *shifts: float) -> None:
        super().__init__()
        self.shifts = nn.Parameter(torch.tensor(shifts, dtype=torch.float64), requires_grad=False)

    def forward(self, x, t, label):
        s, mean = spread(t, x), spread(self.shifts[label], x)
        return mean + (x * (s**2 + PATH.sigma_data**2).sqrt() - mean) / (1 + s**2)


TEACHER, FAKE = Labelled(1.0, -1.0, 0.2), Labelled(0.5, -0.3, 0.1)
BATCH = SampleBatch(torch.zeros(6, 3), conditions={"label": torch.tensor([0, 1, 0, 1, 0, 0])})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient(term, fake=FAKE, batch=BATCH):
    """By x, at fixed draws."""
    x = torch.randn(6, 3, dtype=torch.float64, generator=seeded(5), requires_grad=True)
    made = Made(x, torch.full((6,), 2.5, dtype=torch.float64), x.detach(), x.detach())
    loss = term({"fake": fake}, made, batch, seeded(), Moment())
    assert loss.shape == (6,)
    return torch.autograd.grad(loss.sum(), x)[0]


def test_guided_gradient_splits_into_matching_and_augmentation():
    """At the same times and without a normaliser both parts add up to guided distribution matching."""
    guided = TeacherGuidance(NULL, 3.0)
    whole = gradient(ScoreMatching(flow(TEACHER), "x0", InnerProduct(), LEVEL, guided))
    matching = gradient(ScoreMatching(flow(TEACHER), "x0", InnerProduct(), LEVEL))
    augmentation = gradient(GuidanceAugmentation(flow(TEACHER), guided, InnerProduct(), LEVEL))
    torch.testing.assert_close(whole, matching + augmentation, rtol=0, atol=1e-12)
    # (omega − 1)·(D_none − D_given), which for these teachers is the difference of their means, damped.
    expected = 2 * (TEACHER.shifts[2] - TEACHER.shifts[BATCH.conditions["label"]]) * (1 - 1 / (1 + 0.8**2))
    torch.testing.assert_close(augmentation, spread(expected, augmentation).expand(6, 3))


def test_guidance_of_one_is_none():
    plain = gradient(ScoreMatching(flow(TEACHER), "x0", PseudoTarget(), LEVEL))
    guided = gradient(ScoreMatching(flow(TEACHER), "x0", PseudoTarget(), LEVEL, TeacherGuidance(NULL, 1.0)))
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-14)


def test_random_scales():
    """Uniform in their range, one per sample; the same for both networks: so equal ones agree."""
    guided = TeacherGuidance(NULL, 2.0, 6.0, ("teacher", "fake"))
    scales = guided.scales(20_000, seeded(), torch.device("cpu"))
    assert float(scales.min()) >= 2
    assert float(scales.max()) <= 6
    assert float(scales.mean()) == pytest.approx(4, abs=0.03)
    assert float(scales.std()) == pytest.approx(4 / 12**0.5, abs=0.02)
    same = gradient(ScoreMatching(flow(TEACHER), "x0", InnerProduct(), LEVEL, guided), fake=TEACHER)
    assert same.abs().max() < 1e-14
    only = TeacherGuidance(NULL, 2.0, 6.0)
    other = gradient(ScoreMatching(flow(TEACHER), "x0", InnerProduct(), LEVEL, only), fake=TEACHER)
    assert other.abs().min() > 1e-3


@pytest.mark.parametrize(
    "path", [paths.EDM(), paths.RectifiedFlow(), paths.VP.linear()], ids=lambda p: str(p)[:6]
)
def test_levels_below_the_start(path):
    """Uniform on the clock from the clean end to the student's call."""
    start = path.time_at(torch.tensor([-1.0, 0.5], dtype=torch.float64)).repeat(4000)
    x = torch.zeros(8000, 1)
    t = BelowStart()(path, Made(x, start, x, x), seeded())
    share = clock_at(path, t) / clock_at(path, start)
    assert float(share.max()) <= 1 + 1e-9
    assert float(share.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(share.std()) == pytest.approx(12**-0.5, abs=0.01)


def test_students_of_every_path_begin_at_the_same_level():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    for path in (paths.EDM(), paths.RectifiedFlow(), paths.VP.linear(), paths.VP.from_betas(betas)):
        start = Sampling("consistency", 1, kappa=2.5).grid(path)[0]
        a, _, sigma = path.coefficients(start)
        assert sigma / a == pytest.approx(2.5, rel=0.02 if path.is_discrete else 1e-9)
        assert start == round(start) or not path.is_discrete


def test_karras_range():
    """SiD's range: from the smallest level to 24.4, which is 0.8 of the way to 80."""
    t = Karras()(paths.EDM(), 10_000, seeded())
    assert float(t.min()) == pytest.approx(0.002, rel=0.05)
    assert 24 < float(t.max()) < 24.42
    table = paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    drawn = Karras(0.02, 0.98)(table, 1000, seeded())
    assert torch.equal(drawn, drawn.round())
    assert drawn.max() <= 999


@pytest.mark.parametrize("name", NORMALISERS)
def test_normalisers(name):
    x, real, fake = (torch.randn(4, 5, dtype=torch.float64, generator=seeded(i)) for i in range(3))
    path = paths.VP.linear()
    t = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    a, _, sigma = path.evaluate(t)
    wanted = {
        "none": torch.ones(4, dtype=torch.float64),
        "dmd": 1 / (x - real).abs().mean(1),
        "vsd": a / sigma * (1 - a**2),
        "eps": a / sigma,
        "snr": a**2 / sigma**2,
        "tdm-huber": ((fake - real).square().sum(1) + 5 * 0.00054**2).rsqrt(),
    }
    torch.testing.assert_close(NORMALISERS[name](path, t, x, real, fake), wanted[name])


class ConstantNoise(nn.Module):
    """A float32 network that predicts the same noise everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value), requires_grad=False)

    def forward(self, x, t):
        return torch.zeros_like(x) + self.value


def test_double_precision():
    """x0 of a noise prediction is a small difference of large numbers; formed in float64 nothing is lost."""
    step, sigma = 2.0**-20, 80.0
    teacher, fake = FlowMap(ConstantNoise(0.5 + step), PATH, "eps"), ConstantNoise(0.5)
    errors = {}
    for dtype in (None, torch.float64):
        term = ScoreMatching(teacher, "eps", InnerProduct(), Anywhere(Fixed(sigma)), dtype=dtype)
        x = torch.randn(6, 3, generator=seeded()).requires_grad_()
        loss = term({"fake": fake}, Made(x, torch.ones(6), x, x), SampleBatch(x), seeded(), Moment())
        assert loss.dtype is torch.float32
        (found,) = torch.autograd.grad(loss.sum(), x)
        errors[dtype] = float((found / (sigma * step) - 1).abs().max())
    assert errors[torch.float64] < 1e-6
    assert errors[None] > 1e-2


def test_teachers_take_turns():
    first, second, last = (flow(GaussianDenoiser(mean)) for mean in (0.0, 1.0, 2.0))
    way = TeacherPath.spread_over([first, second, last], until=0.5)
    for progress, flow_then in ((0.0, first), (0.24, first), (0.25, second), (0.5, last), (1.0, last)):
        assert way.at(Moment(0, progress)) is flow_then
    assert list(ScoreMatching(way, "x0").frozen()) == ["teacher-0", "teacher-1", "teacher"]
    assert ScoreMatching(way, "x0").frozen()["teacher"] is last.net


def test_degradation_leads_from_the_student_to_the_teacher():
    """The recorded denoisers of N(2, 0.3²) samples lie between the student's and the teacher's N(0, 1)."""
    teacher = flow(GaussianDenoiser())

    def make(generator):
        x = 2 + 0.3 * torch.randn(256, 1, dtype=torch.float64, generator=generator)
        return x, SampleBatch(x)

    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    nets = record_degradation(teacher, make, 300, 3, seeded(), optimizer=adam)
    means = [net.mean.item() for net in nets]
    assert means[0] == pytest.approx(2, abs=0.02)
    assert nets[0].std.item() == pytest.approx(0.3, abs=0.02)
    assert means == sorted(means, reverse=True)
    assert 0 < means[-1] < 1.99
    assert teacher.net.mean.item() == 0


def test_judge_speaks_up_when_it_begins():
    given = material()
    objective = methods.get("uni-instruct").make(given, gan_begins=0.5)
    networks = {"student": given.student, **objective.modules()}
    loss = objective.phases()[1].loss
    batch = {"x0": torch.randn(4, 2, generator=seeded())}
    assert "adversarial" not in loss(networks, batch, seeded(), Moment(0, 0.49))
    assert "adversarial" in loss(networks, batch, seeded(), Moment(0, 0.5))


def test_regression_needs_pairs():
    given = material()
    objective = methods.get("dmd").make(given, regression=0.25)
    networks = {"student": given.student, **objective.modules()}
    x0 = torch.randn(4, 2, generator=seeded())
    loss = objective.phases()[1].loss
    parts = loss(networks, {"x0": x0, "noise": x0.flip(0)}, seeded(), Moment())
    torch.testing.assert_close(parts["loss"].detach(), parts["matching"] + parts["regression"])
    with pytest.raises(ValueError, match="batch must hold the noise"):
        loss(networks, x0, seeded(), Moment())


BAD = [
    (lambda: normaliser("l2"), "normaliser must be one of none, dmd.*got 'l2'"),
    (lambda: Fisher(huber=0.0), "huber must be None or positive, got 0.0"),
    (lambda: Karras(0.5, 0.2), "first < last must lie in"),
    (lambda: Karras(lowest=0.0), "lowest must lie in"),
    (lambda: Sampling(kappa=0.0), "kappa must be positive"),
    (lambda: Sampling(kappa=2.5, start=1.0), "without start, got kappa=2.5, start=1.0"),
    (lambda: TeacherGuidance({}, 2.0), "null must name the conditions"),
    (lambda: TeacherGuidance(NULL, 3.0, 2.0), "highest must be at least scale=3.0, got 2.0"),
    (lambda: TeacherGuidance(NULL, 3.0, networks=("student",)), "networks must be of 'teacher' and 'fake'"),
    (lambda: SeveralSteps((1.0, 2.0)), r"times must be decreasing, got \(1.0, 2.0\)"),
    (lambda: TeacherPath(((flow(TEACHER), 0.1),)), "increasing shares of the run from 0 on"),
    (lambda: FakeScore(FAKE, "x0", updates=0), "updates must be at least 1, got 0"),
    (lambda: FakeScore(FAKE, "x0", weight="flat"), "weight must be one of"),
    (lambda: ScoreDistillation(PATH, "x0", [], generation=OneStep()), "terms must be at least one"),
    (
        lambda: ScoreDistillation(PATH, "x0", [Regression(), Regression()], generation=OneStep()),
        "different names, got .'regression', 'regression'.",
    ),
    (lambda: record_degradation(flow(TEACHER), lambda g: None, 2, 3, seeded()), "stages must lie in"),
    (
        lambda: methods.get("dmd").make(material(), guidance_scale=4.0),
        "guidance needs a teacher with classes",
    ),
    (lambda: methods.get("fdistill").make(material(), divergence="x"), "divergence must be one of"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_teacher_without_module_cannot_be_recorded():
    with pytest.raises(TypeError, match=r"teacher\.net must be a torch\.nn\.Module"):
        record_degradation(FlowMap(lambda x, t: x, PATH, "x0"), lambda g: None, 2, 1, seeded())


def test_times_stay_where_networks_may_be_asked():
    path = paths.RectifiedFlow()
    t = Anywhere(Uniform())(path, Made(*(torch.zeros(9, 1),) * 4), seeded())
    assert t.shape == (9,)
    assert float(Karras(0.0, 1.0)(path, 5000, seeded()).max()) <= path.t_max
