"""Learning from the teacher's result, on paths with and without a degraded input."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import copy

import pytest
import torch
from tests.core.extension_cases import NOW, ByLevel, drawn, generator, run
from tests.core.score_cases import PATH, GaussianDenoiser, flow
from torch import nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.methods.base import Material
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made
from fewstep.core.objectives.score.levels import Anywhere
from fewstep.core.objectives.score.time_aware import PerturbedScore, Taught, TeacherRegression, WithTeacher
from fewstep.core.objectives.times import Fixed

SHIFT = paths.ResShift(steps=6)


class Restorer(nn.Module):
    """x0 = weight·x + bias, with features: a stand-in for a restoration network."""

    def __init__(self):
        super().__init__()
        self.body = MLP(MLPConfig(shape=(3,), width=16, depth=1, embedding=8))
        nn.init.normal_(self.body.last.weight, std=0.2)

    def forward(self, x, t):
        return self.body(x, t)

    def features(self, x, t):
        return self.body.features(x, t)


def on_shift():
    torch.manual_seed(0)
    net = Restorer().requires_grad_(False)
    return FlowMap(net, SHIFT, "x0")


def degraded(count=8):
    x0 = drawn(count, 3).float()
    return {"x0": x0, "y": x0 + 0.3 * drawn(count, 3, seed=1).float()}


class TestTeacher:
    def test_its_result_is_the_exact_flow_for_gaussian_data(self):
        """From sigma = 2 to 0 on EDM's path: x·s0/sqrt(4 + s0²), to the order of the solver."""
        teacher, batch = flow(GaussianDenoiser(std=0.6)), SampleBatch(drawn(4, 2))
        errors = {}
        for order in (1, 2):
            for steps in (40, 80):
                made = WithTeacher(teacher, 2.0, steps, "log", order)(teacher, batch, generator(), NOW)
                exact = made.state * 0.6 / (4 + 0.36) ** 0.5
                errors[order, steps] = float((made.target - exact).abs().max())
        assert 1.6 < errors[1, 40] / errors[1, 80] < 2.6
        assert 3.0 < errors[2, 40] / errors[2, 80] < 5.5
        assert errors[2, 80] < 1e-3

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [(15, [5, 4, 3, 2, 1, 0, -1]), (3, [5, 3, 1, -1]), (1, [5, -1])],
    )
    def test_a_table_is_walked_by_whole_times(self, steps, expected):
        assert WithTeacher(on_shift(), steps=steps).times(on_shift()) == expected

    def test_the_last_step_ends_clean_on_a_path_with_y(self):
        """In one step the result is the teacher's own estimate; y has left the state."""
        teacher, batch = on_shift(), SampleBatch.read(degraded())
        told = teacher.given(y=batch.y)
        made = WithTeacher(teacher, steps=1)(told, batch, generator(), NOW)
        assert torch.allclose(made.target, told.x0(made.state, made.start), atol=1e-6)
        _, b, sigma = SHIFT.coefficients(SHIFT.t_max)
        assert torch.allclose(made.state, b * batch.y + sigma * made.noise, atol=1e-6)

    def test_it_is_asked_once_and_only_if_wanted(self):
        calls = []
        x = torch.zeros(1)

        def solve():
            calls.append(1)
            return x

        made = Taught(x, x, x, x, solve)
        assert not calls
        assert made.target is made.target
        assert len(calls) == 1


class TestTerms:
    def test_reaching_the_result_leaves_nothing_to_pay(self):
        teacher, x = flow(GaussianDenoiser()), drawn(5, 2)
        t = torch.full((5,), 2.0, dtype=torch.float64)
        made, batch = Taught(x, t, x, x, x.clone), SampleBatch(x)
        for term in (TeacherRegression(), PerturbedScore(teacher)):
            assert not term({}, made, batch, generator(), NOW).any()

    def test_the_view_of_a_linear_teacher(self):
        """D(x) = g·x at one level: the same noise cancels, g²·mean (x − x*)²; gradients pass the teacher."""
        teacher = flow(ByLevel([0.3], [0.7], [0.2]))
        x, wanted = drawn(5, 2).requires_grad_(), drawn(5, 2, seed=1)
        t = torch.full((5,), 2.0, dtype=torch.float64)
        term = PerturbedScore(teacher, Anywhere(Fixed(0.3)), weight=2.0)
        losses = term({}, Taught(x, t, x, x, lambda: wanted), SampleBatch(x), generator(), NOW)
        assert torch.allclose(losses, 2 * 0.49 * (x - wanted).square().mean(1), rtol=1e-10)
        (slope,) = torch.autograd.grad(losses.sum(), x)
        assert torch.allclose(slope, 2 * 0.49 * (x - wanted).detach(), rtol=1e-10)

    def test_its_levels_are_the_cleanest_third(self):
        seen = []

        class Spy(GaussianDenoiser):
            def forward(self, x, t):
                seen.append(t)
                return super().forward(x, t)

        x = drawn(500, 1)
        t = torch.full((500,), 4.0, dtype=torch.float64)
        PerturbedScore(flow(Spy()))({}, Taught(x, t, x, x, lambda: x), SampleBatch(x), generator(), NOW)
        tau = torch.cat(seen) / (1 + torch.cat(seen))
        assert 0.25 < float(tau.max()) <= 0.8 / 3 + 1e-9

    def test_bad_input_is_named(self):
        x = torch.zeros(2, 1)
        made, batch = Made(x, x[:, 0].double(), x, x), SampleBatch(x)
        with pytest.raises(TypeError, match="needs samples made WithTeacher, got Made"):
            TeacherRegression()({}, made, batch, generator(), NOW)
        teacher = flow(GaussianDenoiser())
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            WithTeacher(teacher, steps=0)


def material():
    teacher = on_shift()
    student = copy.deepcopy(teacher.net).requires_grad_(True)
    sampling = methods.get("tad-sr").sampling
    return Material(SHIFT, "x0", student, teacher, (3,), 10, sampling=sampling)


@pytest.mark.parametrize(("gan_weight", "expected"), [(0.0, {"student"}), (0.02, {"student", "head"})])
def test_the_method_trains_on_a_path_with_y(tmp_path, gan_weight, expected):
    given = material()
    before = copy.deepcopy(given.teacher.net.state_dict())
    moved, _ = run("tad-sr", given, degraded(), tmp_path, gan_weight=gan_weight)
    assert moved == expected
    after = given.teacher.net.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_student_comes_nearer_to_its_teachers_result(tmp_path):
    given = material()
    objective = methods.get("tad-sr").make(given, gan_weight=0.0)
    batch = SampleBatch.read(degraded(64))

    def distance():
        made = objective._make({"student": given.student}, batch, generator(9), NOW)
        return float((made.x - made.target).detach().square().mean())

    before = distance()
    run("tad-sr", given, degraded(64), tmp_path, rounds=60, gan_weight=0.0)
    assert distance() < 0.5 * before


def test_it_works_without_y(tmp_path):
    torch.manual_seed(0)
    teacher = FlowMap(Restorer().requires_grad_(False), PATH, "x0")
    student = copy.deepcopy(teacher.net).requires_grad_(True)
    sampling = methods.get("tad-sr").sampling
    given = Material(PATH, "x0", student, teacher, (3,), 10, sampling=sampling)
    moved, _ = run("tad-sr", given, drawn(8, 3).float(), tmp_path, rounds=1)
    assert moved == {"student", "head"}
