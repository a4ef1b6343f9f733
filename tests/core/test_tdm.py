"""Trajectory distribution matching: what the steps are, and where its gradient vanishes."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import pytest
import torch
from tests.core.extension_cases import NOW, ByLevel, drawn, generator, given_to, run
from tests.core.score_cases import PATH, GaussianDenoiser, flow

from fewstep.core import paths
from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made
from fewstep.core.objectives.score.fake import FakeScore
from fewstep.core.objectives.score.families import Estimates, PseudoTarget
from fewstep.core.objectives.score.huber_target import HuberTarget
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.objectives.score.trajectory_matching import (
    Between,
    Chain,
    Diffused,
    Step,
    TrajectoryDistributionMatching,
    TrajectoryMatching,
)
from fewstep.core.sampling import Sampling

STD = 0.8
TIMES = (4.0, 1.0, 0.3)


def exact_gain(t, s):
    """D = gain·x whose straight step t → s is the exact flow of N(0, STD²) on EDM's path."""
    factor = ((s * s + STD**2) / (t * t + STD**2)) ** 0.5
    return (factor - s / t) / (1 - s / t)


def exact_student():
    arrivals = (*TIMES[1:], 0.0)
    return ByLevel(TIMES, [exact_gain(t, s) for t, s in zip(TIMES, arrivals, strict=True)])


def like(count, *shape):
    return SampleBatch(torch.zeros(count, *shape, dtype=torch.float64))


def from_the_marginal(count, size, seed=0):
    """Noise with which the chain begins in the teacher's marginal at TIMES[0], not in pure noise."""
    noise = drawn(count, size, seed=seed) * (1 + (STD / TIMES[0]) ** 2) ** 0.5
    return SampleBatch(noise, noise=noise)


class TestChain:
    def test_steps_are_those_of_ddim_sampling(self):
        """The last step's x0 is what the sampler makes of the same noise."""
        student, noise = flow(exact_student()), drawn(64, 3)
        step = Chain(TIMES)(student, SampleBatch(noise, noise=noise), generator(1), NOW)
        last = step.start == TIMES[-1]
        sampling = Sampling("ode", 3, start=TIMES[0], times=TIMES[1:], solver="ddim")
        samples = sampling.run(student, (3,), noise=noise)
        assert 5 < int(last.sum()) < 60
        assert torch.allclose(step.x[last], samples[last], rtol=1e-12, atol=1e-13)
        assert set(step.arrival.tolist()) == {*TIMES[1:], 0.0}

    def test_only_the_drawn_call_has_a_graph(self):
        net = exact_student()
        step = Chain(TIMES)(flow(net), like(32, 2), generator(), NOW)
        assert not step.state.requires_grad
        per_level = torch.autograd.grad(step.x.sum(), net.gains)[0]
        expected = [float(step.state[step.start == level].sum()) for level in TIMES]
        assert torch.allclose(per_level, torch.tensor(expected, dtype=torch.float64), rtol=1e-10)

    def test_times_must_decrease(self):
        with pytest.raises(ValueError, match=r"times must be decreasing, got \(1.0, 1.0\)"):
            Chain((1.0, 1.0))


@pytest.mark.parametrize(
    ("path", "times"),
    [
        (PATH, (3.0, 0.5, 1.2)),
        (paths.VP.linear(), (0.9, 0.3, 0.5)),
        (paths.RectifiedFlow(), (1.0, 0.4, 0.7)),
        (paths.ResShift(steps=15), (14.0, 3.0, 8.0)),
    ],
    ids=lambda value: type(value).__name__,
)
class TestDiffused:
    def test_it_is_the_arrived_state_noised_on(self, path, times):
        y = drawn(5, 2, 3, seed=7) if path.uses_y else None
        start, arrival, t = (torch.full((5,), time, dtype=torch.float64) for time in times)
        x0, state, fresh = drawn(5, 2, 3), drawn(5, 2, 3, seed=1), drawn(5, 2, 3, seed=2)
        diffused = Diffused.of(path, Step(x0, start, state, state, arrival), t, fresh, y)
        conditions = {} if y is None else {"y": y}
        arrived = FlowMap(lambda x, t: x, path, "x0", conditions).moved(state, start, arrival, x0)
        (a_s, b_s, sigma_s), (a_t, b_t, sigma_t) = path.evaluate(arrival), path.evaluate(t)
        r = a_t / a_s
        delta = (sigma_t**2 - r**2 * sigma_s**2).sqrt()
        origin = 0 if y is None else spread(b_s, x0) * y
        expected = spread(r, x0) * (arrived - origin) + spread(delta, x0) * fresh
        expected = expected if y is None else expected + spread(b_t, x0) * y
        assert torch.allclose(diffused.x, expected, rtol=1e-10, atol=1e-11)
        assert torch.allclose(diffused.freshness, delta / sigma_t, rtol=1e-10)

    @pytest.mark.parametrize("above", ["start", "everything"])
    def test_levels_lie_above_the_arrival(self, path, times, above):
        count = 2000
        start, arrival = (torch.full((count,), time, dtype=torch.float64) for time in times[:2])
        x = torch.zeros(count, 1, dtype=torch.float64)
        drawn_times = Between(above)(path, Step(x, start, x, x, arrival), generator())
        top = times[0] if above == "start" else path.t_max
        assert times[1] <= drawn_times.min()
        assert drawn_times.max() <= top
        reach = (drawn_times.max() - drawn_times.min()) / (top - times[1])
        assert reach > 0.5
        if path.is_discrete:
            assert torch.equal(drawn_times, drawn_times.round())


class TestGradient:
    def gradient(self, term, student, fake, count=64, chain=(4.0,)):
        net = student
        made = Chain(chain)(flow(net), like(count, 3), generator(3), NOW)
        loss = term({"fake": fake}, made, like(count, 3), generator(4), NOW)
        return torch.autograd.grad(loss.mean(), list(net.parameters())), loss

    def test_one_step_over_everything_is_dmd_with_a_huber_distance(self):
        student = ByLevel([4.0], [0.2], [0.1])
        teacher, fake = flow(GaussianDenoiser(std=STD)), GaussianDenoiser(std=0.4)
        family = PseudoTarget("tdm-huber")
        ours = TrajectoryMatching(teacher, "x0", family, Between("everything"))
        theirs = ScoreMatching(teacher, "x0", family, Between("everything"))
        (mine, loss), (other, loss2) = (self.gradient(term, student, fake) for term in (ours, theirs))
        assert torch.allclose(loss, loss2, rtol=1e-12)
        for a, b in zip(mine, other, strict=True):
            assert torch.allclose(a, b, rtol=1e-11)
            assert a.abs() > 1e-4

    def test_it_leads_to_the_teachers_own_trajectories(self):
        """With the exact score of what the student does, its gains become those of the exact flow map."""
        net = exact_student()
        with torch.no_grad():
            net.gains.mul_(torch.tensor([1.3, 0.7, 1.2]))
        teacher = flow(GaussianDenoiser(std=STD))
        term = TrajectoryMatching(teacher, "x0", PseudoTarget("none"), Between("start"))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.04)
        wanted = exact_student().gains.detach()
        for step in range(150):
            optimizer.param_groups[0]["lr"] = 0.04 * (1 - step / 150)
            made = Chain(TIMES)(flow(net), from_the_marginal(256, 4, step), generator(step), NOW)
            loss = term({"fake": _ScoreOf(net)}, made, like(256, 4), generator(1000 + step), NOW)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        assert torch.allclose(net.gains.detach(), wanted, atol=1e-2)

    @pytest.mark.parametrize("target", ["score", "estimate"])
    def test_what_the_fake_score_learns(self, target):
        """On the exact student's way the score of x_t is the teacher's; x0 of the step is something else."""
        fake = GaussianDenoiser(std=STD)
        objective = matching(fake, target)
        step = Chain(TIMES)(flow(exact_student()), from_the_marginal(60_000, 1), generator(), NOW)
        losses = objective.fake_loss({"fake": fake}, step, like(60_000, 1), generator(1))
        for level in TIMES:
            mine = losses[step.start == level]
            (slope,) = torch.autograd.grad(mine.mean(), fake.std, retain_graph=True)
            # The error of a mean of so many slopes, from ten parts of them.
            parts = torch.stack(
                [torch.autograd.grad(part.mean(), fake.std, retain_graph=True)[0] for part in mine.chunk(10)]
            )
            score = abs(float(slope)) / float(parts.std() / 10**0.5)
            if target == "score" or level == TIMES[-1]:
                assert score < 4
            else:
                assert score > 10

    def test_the_last_step_is_plain_denoising(self):
        fake = GaussianDenoiser(std=0.4)
        one = Chain((4.0,))(flow(ByLevel([4.0], [0.2])), like(16, 2), generator(), NOW)
        losses = [
            matching(fake, target).fake_loss({"fake": fake}, one, like(16, 2), generator(2))
            for target in ("score", "estimate")
        ]
        times = Between("everything")(PATH, one, generator(2))
        plain = FakeScore(fake, "x0", lambda *_: times, "truncated-snr")
        rest = generator(2)
        torch.rand(16, dtype=torch.float64, generator=rest)  # that the times have used
        expected = plain.loss(PATH, {"fake": fake}, one.x, like(16, 2), rest)
        assert torch.allclose(losses[0], expected, rtol=1e-10)
        assert torch.allclose(losses[1], expected, rtol=1e-10)


def matching(fake, target):
    term = TrajectoryMatching(flow(GaussianDenoiser(std=STD)), "x0", levels=Between("everything"))
    score = FakeScore(fake, "x0", weight="truncated-snr")
    return TrajectoryDistributionMatching(PATH, "x0", term, Chain(TIMES), score, target=target)


class _ScoreOf(torch.nn.Module):
    """The exact denoiser of the states on the way of a linear student, noised on from where a step arrives.

    With separate intervals, the time tells which step it was.
    """

    def __init__(self, net):
        super().__init__()
        self.net = (net,)

    def forward(self, x, t):
        gains, arrivals = self.net[0].gains.detach(), (*TIMES[1:], 0.0)
        variance, own = torch.tensor(TIMES[0] ** 2 + STD**2, dtype=torch.float64), torch.zeros_like(t)
        for start, arrival, gain in zip(TIMES, arrivals, gains, strict=True):
            factor = arrival / start + (1 - arrival / start) * gain
            variance = variance * factor**2
            inside = (t >= arrival) & (t <= start)
            own = torch.where(inside, variance - arrival**2, own)
        x = x * spread((t**2 + PATH.sigma_data**2).sqrt(), x)
        return spread(own / (own + t**2), x) * x


def test_the_public_loss_element_by_element():
    x, real, fake = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    t = torch.ones(4, dtype=torch.float64)
    losses = HuberTarget(0.3)(Estimates(PATH, t, x, real, fake))
    difference, w = fake - real, (x - real).abs().mean(1, keepdim=True).detach()
    assert torch.allclose(losses, (((difference**2 + 0.09).sqrt() - 0.3) / w).mean(1), rtol=1e-5)
    (slope,) = torch.autograd.grad(losses.sum(), x)
    assert torch.allclose(slope, difference / (difference**2 + 0.09).sqrt() / w / 3, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"huber": 1e-3, "above": "everything", "target": "score"}])
def test_the_method_trains_student_and_fake_score(tmp_path, options):
    given = given_to("tdm")
    moved, trainer = run("tdm", given, drawn(8, 2).float(), tmp_path, **options)
    assert moved == {"student", "fake"}
    assert trainer.objective.generation.times[0] == pytest.approx(10.0)
    assert len(trainer.objective.generation.times) == 4


def test_bad_input_is_named():
    x = torch.zeros(2, 1)
    t = torch.ones(2, dtype=torch.float64)
    term = TrajectoryMatching(flow(GaussianDenoiser()), "x0")
    with pytest.raises(TypeError, match="needs the steps of a Chain, got Made"):
        term({"fake": GaussianDenoiser()}, Made(x, t, x, x), SampleBatch(x), generator(), NOW)
    with pytest.raises(ValueError, match="above must be one of start, everything, got 'below'"):
        Between("below")
    with pytest.raises(ValueError, match="c must be positive, got 0"):
        HuberTarget(0)
    with pytest.raises(ValueError, match="target must be one of score, estimate, got 'noise'"):
        matching(GaussianDenoiser(), "noise")
