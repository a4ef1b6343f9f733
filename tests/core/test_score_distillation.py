"""ScoreDistillation: who is trained when, how students make samples, guidance, teachers in turn, methods."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from dataclasses import replace

import pytest
import torch
from tests.core.score_cases import GaussianDenoiser, GoldenDenoiser, flow, material, notes

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives import methods
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made, ScoreDistillation
from fewstep.core.objectives.score.fake import FakeScore
from fewstep.core.objectives.score.families import Fisher, InnerProduct, PseudoTarget
from fewstep.core.objectives.score.generation import OneStep, SeveralSteps
from fewstep.core.objectives.score.levels import Anywhere, Karras
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.objectives.score.regression import Regression
from fewstep.core.objectives.times import Fixed
from fewstep.core.training import Moment, Trainer, TrainerConfig

NAMES = (
    "diff-instruct",
    "vsd",
    "dmd",
    "dmd2",
    "decoupled-dmd",
    "snoopi",
    "sid",
    "sim",
    "fdistill",
    "uni-instruct",
    "disback",
)
GUIDED = ("decoupled-dmd", "snoopi")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made_of(x, start=2.5):
    return Made(x, torch.full((len(x),), start, dtype=torch.float64), x.detach(), x.detach())


def pair():
    values = notes()
    return (GoldenDenoiser(values[f"{who}_p"]).requires_grad_(False) for who in ("teacher", "fake"))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains(name, tmp_path):
    """Two rounds: all that should move does, the teacher does not, no update is skipped; without data too."""
    given = material(classes=3 if name in GUIDED else 0)
    options = {"record_updates": 4, "record_batch": 8} if name == "disback" else {}
    method = methods.get(name)
    objective = method.make(given, **options)
    start = {key: value.clone() for key, value in given.student.state_dict().items()}
    teacher = {key: value.clone() for key, value in given.taught().net.state_dict().items()}
    trained = {key: [p.clone() for p in net.parameters()] for key, net in objective.modules().items()}
    label = {"label": torch.tensor([0, 1, 2, 0])} if name in GUIDED else {}
    updates = sum(phase.updates for phase in objective.phases())
    config = TrainerConfig(max_steps=2 * updates, device="cpu", tensorboard=False, max_bad_steps=0)
    batch = {"x0": torch.randn(4, 2, generator=seeded()), **label}
    result = Trainer(given.student, objective, lambda rng: batch, folder=tmp_path, config=config).fit()
    assert (result.stopped, result.skipped) == ("max_steps", 0)
    assert any(not torch.equal(value, start[key]) for key, value in given.student.state_dict().items())
    assert all(torch.equal(value, teacher[key]) for key, value in given.taught().net.state_dict().items())
    for key, before in trained.items():
        after = objective.modules()[key].parameters()
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), key
    if "data" not in method.needs:
        empty = {"x0": torch.full((4, 2), torch.nan), **label}
        for phase in objective.phases():
            networks = {"student": given.student, **objective.modules()}
            assert torch.isfinite(phase.loss(networks, empty, seeded(), Moment(0, 0.5))["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_students_train_as_they_are_sampled(name):
    """The objective's calls are those of the method's sampling, also for several steps."""
    method, given = methods.get(name), material(classes=3)
    several = replace(method.sampling, steps=3)
    given = replace(given, sampling=several)
    options = {"record_updates": 4, "record_batch": 8} if name == "disback" else {}
    assert method.make(given, **options).generation.times == tuple(several.grid(given.path)[:-1])
    assert several.grid(given.path)[0] == pytest.approx(2.5)


def test_phases():
    given = material()
    fake = FakeScore(given.copy_of_teacher(), "edm", updates=3)
    matching = ScoreMatching(given.taught(), "edm")
    objective = ScoreDistillation(given.path, "edm", [matching], generation=OneStep(2.5), fake=fake)
    assert [(p.name, p.trains, p.updates) for p in objective.phases()] == [
        ("fake", ("fake",), 3),
        ("student", ("student",), 1),
    ]
    assert objective.frozen() == (given.taught().net,)
    alone = ScoreDistillation(given.path, "edm", [Regression()], generation=OneStep())
    assert [p.name for p in alone.phases()] == ["student"]
    assert alone.modules() == {}


def test_fake_phase_has_no_gradient_of_the_student():
    given = material()
    fake = FakeScore(given.copy_of_teacher(), "edm")
    matching = ScoreMatching(given.taught(), "edm")
    objective = ScoreDistillation(given.path, "edm", [matching], generation=OneStep(2.5), fake=fake)
    loss = objective.phases()[0].loss
    networks = {"student": given.student, "fake": fake.net}
    loss(networks, torch.zeros(4, 2), seeded(), Moment())["loss"].backward()
    assert all(p.grad is None for p in given.student.parameters())
    assert any(p.grad is not None for p in fake.net.parameters())


@pytest.mark.parametrize(
    ("family", "reached"), [(Fisher(), True), (PseudoTarget(), False), (InnerProduct(), False)]
)
def test_gradient_through_the_denoisers(family, reached):
    """A Fisher divergence passes through teacher and fake score to x; an integral one takes their values."""
    teacher, fake = pair()
    seen = []
    for net in (teacher, fake):
        net.register_forward_hook(lambda net, given, out: seen.append(out.requires_grad))
    x = torch.randn(3, 2, dtype=torch.float64, generator=seeded(), requires_grad=True)
    term = ScoreMatching(flow(teacher), "x0", family)
    term({"fake": fake}, made_of(x), SampleBatch(x), seeded(), Moment()).sum().backward()
    assert seen == [reached, reached]
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_samples_do_not_depend_on_their_batch():
    teacher, fake = pair()
    x = torch.randn(4, 2, dtype=torch.float64, generator=seeded())
    term = ScoreMatching(flow(teacher), "x0", Fisher(), Anywhere(Fixed(1.0)))
    losses = term({"fake": fake}, made_of(x), SampleBatch(x), seeded(1), Moment())
    changed = torch.cat([x[:2], x[2:] + 5])
    others = term({"fake": fake}, made_of(changed), SampleBatch(changed), seeded(1), Moment())
    assert torch.equal(losses[:2], others[:2])
    assert not torch.isclose(losses[2:], others[2:]).any()


def test_backward_simulation_matches_the_sampler():
    """For each sample the state of the trained call comes from the chain that a sampler would run."""
    student, times = GaussianDenoiser(0.0, 0.5), (2.5, 0.8, 0.2)
    batch = SampleBatch(torch.zeros(4000, 1, dtype=torch.float64))
    made = SeveralSteps(times)(flow(student), batch, seeded(), Moment())
    assert set(made.start.tolist()) == set(times)
    share = (made.start[:, None] == torch.tensor(times, dtype=torch.float64)).double().mean(0)
    assert (share - 1 / 3).abs().max() < 0.03
    torch.testing.assert_close(made.x, flow(student).x0(made.state, made.start))
    assert made.x.requires_grad
    assert not made.state.requires_grad
    scale = 2.5
    for k, time in enumerate(times):
        chosen = made.state[made.start == time]
        assert float(chosen.detach().std()) == pytest.approx(scale, rel=0.06), k
        gain = 0.25 / (0.25 + time**2)
        scale = ((gain * scale) ** 2 + times[min(k + 1, 2)] ** 2) ** 0.5


def test_coupled_noise_is_used():
    noise = torch.randn(3, 2, generator=seeded())
    batch = SampleBatch(torch.zeros(3, 2), noise=noise)
    made = OneStep(2.5)(flow(GaussianDenoiser()), batch, seeded(), Moment())
    assert made.noise is noise
    torch.testing.assert_close(made.state, 2.5 * noise)


def test_path_with_y():
    """On a path with a degraded input the student starts at b·y + sigma·z and everything still runs."""
    path = paths.ResShift()
    x0, y = torch.zeros(3, 2), torch.full((3, 2), 0.7)
    net = torch.nn.Linear(2, 2)
    student = FlowMap(lambda x, t: net(x), path, "x0", {"y": y})
    made = OneStep()(student, SampleBatch(x0, y=y), seeded(), Moment())
    _, b, sigma = path.coefficients(path.t_max)
    torch.testing.assert_close(made.state, b * y + sigma * made.noise)
    fake = FakeScore(_Plain(net), "x0", times=Karras())
    term = ScoreMatching(FlowMap(_Plain(net), path, "x0"), "x0")
    objective = ScoreDistillation(path, "x0", [term], generation=OneStep(), fake=fake)
    for phase in objective.phases():
        networks = {"student": _Plain(net), "fake": fake.net}
        assert torch.isfinite(phase.loss(networks, {"x0": x0, "y": y}, seeded(), Moment())["loss"])


class _Plain(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return self.net(x)
