"""Terms beside score matching: idempotence, rewards, and bands of noise levels."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import pytest
import torch
from tests.core.extension_cases import NOW, ByLevel, drawn, generator, given_to, run
from tests.core.score_cases import PATH, flow
from torch import nn

from fewstep.core import paths
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made, Term
from fewstep.core.objectives.score.idempotence import Idempotence, project
from fewstep.core.objectives.score.intervals import Band, Within, bands
from fewstep.core.objectives.score.reward import Reward
from fewstep.core.training import Moment

START = 2.0


def made_by(net, count=6):
    z = drawn(count, 3, seed=5)
    t = torch.full((count,), START, dtype=torch.float64)
    return Made(flow(net).x0(START * z, t), t, START * z, z)


class Projection(nn.Module):
    """Takes everything to its last coordinate's axis: a map that is idempotent."""

    def forward(self, x, t):
        x = x * (t[:, None] ** 2 + PATH.sigma_data**2).sqrt()
        return x * torch.tensor([0.0, 0.0, 1.0], dtype=x.dtype)


class TestIdempotence:
    def term(self, net, made, weight=1.0):
        networks = {"student": net}
        term = Idempotence(PATH, "x0", weight)
        return term(networks, made, SampleBatch(made.x), generator(), NOW)

    def test_nothing_to_pay_for_an_idempotent_map(self):
        net = Projection()
        losses = self.term(net, made_by(net))
        assert torch.allclose(losses, torch.zeros_like(losses), atol=1e-28)

    def test_a_linear_map_pays_for_its_gain(self):
        """f(x) = g·x: ‖g·x − x‖² per element, and only the outer g gets a gradient."""
        net = ByLevel([START], [0.4])
        made = made_by(net)
        x = made.x.detach()
        losses = self.term(net, made, 3.0)
        assert torch.allclose(losses, 3 * 0.36 * x.square().mean(1), rtol=1e-11)
        (slope,) = torch.autograd.grad(losses.sum(), net.gains)
        assert torch.allclose(slope, 3 * 2 * (0.4 - 1) * x.square().mean(1).sum()[None], rtol=1e-10)

    def test_projecting_again_changes_nothing(self):
        student, x = flow(Projection()), drawn(4, 3)
        once = project(student, x, START)
        assert torch.allclose(project(student, once, START), once, rtol=1e-12)

    def test_noise_between_projections_is_drawn_with_the_generator(self):
        student, x = flow(Projection()), drawn(4, 3)
        noisy = [project(student, x, START, (0.5, 0.1), generator(seed)) for seed in (1, 1, 2)]
        assert torch.equal(noisy[0], noisy[1])
        assert not torch.equal(noisy[0], noisy[2])
        first = drawn(4, 3, seed=1)
        once = project(student, x, START, (0.5,), generator(1))
        assert torch.allclose(once[:, 2], x[:, 2] + 0.5 * first[:, 2], rtol=1e-12)
        with pytest.raises(ValueError, match="generator is needed for levels other than 0"):
            project(student, x, START, (0.5,))


class TestReward:
    def test_it_moves_the_students_mean_along_the_rewards_gradient(self):
        net = ByLevel([START], [0.1], [0.0])
        made, direction = made_by(net), torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
        term = Reward(lambda x, told: x @ direction, 0.5)
        losses = term({}, made, SampleBatch(made.x), generator(), NOW)
        (slope,) = torch.autograd.grad(losses.mean(), net.shifts)
        assert torch.allclose(slope, -0.5 * direction.sum()[None], rtol=1e-12)
        assert torch.allclose(losses, -0.5 * (made.x @ direction), rtol=1e-12)

    def test_it_can_have_enough_and_wait(self):
        net = ByLevel([START], [1.0])
        made = made_by(net)
        batch = SampleBatch(made.x, conditions={"label": torch.arange(6)})
        term = Reward(lambda x, told: told["label"].double() * x.sum(1) ** 0, enough=2.0, begins=0.6)
        assert not term({}, made, batch, generator(), Moment(0, 0.5)).any()
        late = term({}, made, batch, generator(), Moment(0, 0.6))
        assert late.tolist() == [0, -1, -2, -2, -2, -2]

    def test_a_network_is_frozen_by_name(self):
        net = nn.Linear(3, 1)
        assert Reward(net).frozen() == {"reward": net}

    def test_bad_input_is_named(self):
        made = made_by(ByLevel([START], [1.0]))
        with pytest.raises(ValueError, match=r"begins must lie in \[0, 1\], got 2"):
            Reward(lambda x, told: x, begins=2.0)
        with pytest.raises(ValueError, match="one number per sample"):
            Reward(lambda x, told: x)({}, made, SampleBatch(made.x), generator(), NOW)


class Ones(Term):
    """1 for every sample."""

    name = "ones"

    def __call__(self, networks, made, batch, generator, moment):
        return torch.ones(len(made.x))


@pytest.mark.parametrize(
    "path", [PATH, paths.RectifiedFlow(), paths.VP.linear(), paths.ResShift(steps=15)], ids=str
)
def test_bands_share_out_all_calls(path):
    """Every time is in one band, pure noise and the edges too."""
    edge = path.evaluate(torch.tensor([path.time_at(0.0)], dtype=torch.float64))
    split = bands([0.1, float(edge[2] / edge[0]), 3.0])
    times = [torch.linspace(path.t_min, path.t_max, 500), torch.tensor([path.time_at(0.0), path.t_max])]
    t = torch.cat([part.double() for part in times])
    inside = torch.stack([band.contains(path, t) for band in split])
    assert torch.equal(inside.sum(0), torch.ones(502, dtype=torch.int64))
    x = torch.zeros(502, 1)
    shares = [
        Within(band, path, Ones())({}, Made(x, t, x, x), SampleBatch(x), generator(), NOW) for band in split
    ]
    assert torch.equal(torch.stack(shares).sum(0), torch.ones(502))
    with pytest.raises(ValueError, match=r"0 <= low < high, got 2\.0 and 1\.0"):
        Band(2.0, 1.0)


def test_sign_trains_student_and_fake_score(tmp_path):
    moved, trainer = run("sign", given_to("sign"), drawn(8, 2).float(), tmp_path)
    assert moved == {"student", "fake"}
    assert [term.name for term in trainer.objective.terms] == ["matching", "idempotence"]


@pytest.mark.parametrize("rewarded", [False, True])
def test_flash_dmd_trains_all_three(tmp_path, rewarded):
    reward = (lambda x, told: -x.square().sum(1)) if rewarded else None
    moved, trainer = run("flash-dmd", given_to("flash-dmd"), drawn(8, 2).float(), tmp_path, reward=reward)
    assert moved == {"student", "fake", "head"}
    names = ["matching", "adversarial"] + ["reward"] * rewarded
    assert [term.name for term in trainer.objective.terms] == names


def test_flash_dmd_divides_the_calls(tmp_path):
    """Its terms answer for different samples: those whose call began above the split, and those below."""
    _, trainer = run("flash-dmd", given_to("flash-dmd"), drawn(8, 2).float(), tmp_path, rounds=1)
    objective = trainer.objective
    x = drawn(4, 2).float()
    t = torch.tensor([10.0, 1.0, 0.99, 0.3], dtype=torch.float64)
    networks = objective._all(trainer.networks)
    matched, judged = (
        term(networks, Made(x, t, x, x), SampleBatch(x), generator(), NOW) for term in objective.terms
    )
    assert (matched != 0).tolist() == [True, True, False, False]
    assert (judged != 0).tolist() == [False, False, True, True]
