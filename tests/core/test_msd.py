"""Several students: who serves what, and the score that a smaller one begins with."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import numpy as np
import pytest
import torch
from tests.core.extension_cases import NOW, drawn, generator, given_to, run, small_teacher
from tests.core.score_cases import PATH, GaussianDenoiser, flow
from torch import nn

from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.score.students import (
    ConditionFilter,
    Filtered,
    Students,
    TeacherScoreMatching,
    partition,
)

BATCH = {
    "x0": torch.arange(5.0)[:, None],
    "label": torch.tensor([0, 1, 2, 1, 0]),
    "scale": torch.tensor(3.0),
    "name": "all",
}


class TestFilter:
    def test_it_keeps_the_batch_s_size(self):
        kept = ConditionFilter((1, 2)).filtered(BATCH)
        assert kept["x0"].flatten().tolist() == [1, 2, 3, 1, 2]
        assert kept["label"].tolist() == [1, 2, 1, 1, 2]
        assert (float(kept["scale"]), kept["name"]) == (3.0, "all")

    def test_partitions_cover_everything_once(self):
        for students in range(1, 8):
            parts = partition(range(7), students)
            assert [value for part in parts for value in part.values] == list(range(7))
            assert {len(part.values) for part in parts} <= {7 // students, -(-7 // students)}

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="no sample of this batch has label in \\(9,\\)"):
            ConditionFilter((9,)).filtered(BATCH)
        with pytest.raises(ValueError, match="must hold the condition 'kind'; it holds x0, label"):
            ConditionFilter((9,), "kind").filtered(BATCH)
        with pytest.raises(TypeError, match="needs a batch with the condition 'label'"):
            ConditionFilter((9,)).filtered(BATCH["x0"])
        with pytest.raises(ValueError, match="at least one value"):
            ConditionFilter(())
        with pytest.raises(ValueError, match=r"students must lie in \[1, 3\]"):
            partition(range(3), 4)


class Constant(nn.Module):
    """A network that says which one it is."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t, label=None):
        return torch.full_like(x, self.value)


class TestStudents:
    def test_each_sample_is_answered_by_its_own(self):
        both = Students([Constant(1.0), Constant(2.0)], partition(range(4), 2))
        label = torch.tensor([3, 0, 1, 2])
        assert both(torch.zeros(4, 2), torch.ones(4), label=label)[:, 0].tolist() == [2, 1, 1, 2]

    def test_it_is_what_the_networks_say_alone(self):
        nets = [MLP(MLPConfig(width=8, depth=1, embedding=8, classes=4)) for _ in range(2)]
        for net in nets:
            nn.init.normal_(net.last.weight)
        x, t, label = torch.randn(6, 2), torch.rand(6), torch.tensor([0, 3, 1, 2, 2, 0])
        answers = torch.stack([net(x, t, label=label) for net in nets])
        together = Students(nets, partition(range(4), 2))(x, t, label=label)
        assert torch.allclose(together, answers[label // 2, torch.arange(6)], atol=1e-6)

    def test_bad_input_is_named(self):
        nets, parts = [Constant(1.0), Constant(2.0)], partition(range(4), 2)
        with pytest.raises(ValueError, match=r"label \[7\] is served by no student"):
            Students(nets, parts)(torch.zeros(2, 1), torch.ones(2), label=torch.tensor([0, 7]))
        with pytest.raises(ValueError, match="must not overlap"):
            Students(nets, (ConditionFilter((0, 1)), ConditionFilter((1, 2))))
        with pytest.raises(ValueError, match="2 networks need as many filters"):
            Students(nets, parts[:1])


class TestTeacherScore:
    def test_the_teacher_is_the_minimiser(self):
        """The loss of the teacher's own function is 0 on any data, its slope too; others pay."""
        teacher = GaussianDenoiser(std=0.7, mean=0.2)
        objective = TeacherScoreMatching(PATH, "x0", flow(teacher))
        x0 = 3 * drawn(64, 2)
        same, other = GaussianDenoiser(std=0.7, mean=0.2), GaussianDenoiser(std=0.9, mean=0.2)
        loss = objective.loss(same, x0, generator(), NOW)
        assert float(loss.detach()) < 1e-28
        assert all(float(g.abs()) < 1e-13 for g in torch.autograd.grad(loss, list(same.parameters())))
        loss = objective.loss(other, x0, generator(), NOW)
        assert loss > 0.01
        assert torch.autograd.grad(loss, other.std)[0] > 0

    def test_the_weight_counts(self):
        teacher, other, x0 = GaussianDenoiser(std=0.7), GaussianDenoiser(std=0.9), drawn(8, 2)
        plain, weighted = (
            TeacherScoreMatching(PATH, "x0", flow(teacher), times=_ones, weight=weight)
            for weight in ("uniform", "snr+1")
        )
        losses = [part.loss(other, x0, generator(), NOW) for part in (plain, weighted)]
        assert torch.allclose(losses[1], 2 * losses[0], rtol=1e-12)

    def test_a_smaller_student_learns(self, tmp_path):
        given = given_to("msd", small_teacher(classes=3))
        torch.manual_seed(1)
        small = MLP(MLPConfig(width=8, depth=1, embedding=8, classes=3))
        objective = methods.get("msd").make(given, stage="teacher-score")
        optimizer, losses = torch.optim.Adam(small.parameters(), 1e-2), []
        for step in range(150):
            batch = {"x0": drawn(64, 2, seed=step).float(), "label": torch.arange(64) % 3}
            (phase,) = objective.phases()
            loss = phase.loss({"student": small}, batch, generator(step), NOW)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])


def _ones(path, count, generator, device="cpu"):
    return torch.ones(count, dtype=torch.float64)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("teacher-score", set()),  # a copy of the teacher is where it should be
        ("distribution", {"student", "fake"}),
        ("adversarial", {"student", "fake", "head"}),
    ],
)
def test_every_stage_trains(tmp_path, stage, expected):
    given = given_to("msd", small_teacher(classes=3))
    batch = {"x0": drawn(8, 2).float(), "label": torch.tensor([0, 1, 2, 1, 0, 2, 1, 1])}
    moved, trainer = run("msd", given, batch, tmp_path, stage=stage, labels=(1, 2))
    assert moved == expected
    assert isinstance(trainer.objective, Filtered)


def test_the_others_conditions_do_not_matter(tmp_path):
    """What is filtered out may be anything: the student is the same."""
    states = []
    for value in (0.0, 50.0):
        x0 = drawn(4, 2).float()
        x0[0] = value
        batch = {"x0": x0, "label": torch.tensor([0, 1, 2, 1])}
        given = given_to("msd", small_teacher(classes=3))
        _, trainer = run("msd", given, batch, tmp_path / str(value), labels=(1, 2), fake_updates=1)
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
