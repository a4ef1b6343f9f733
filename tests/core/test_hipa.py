"""HiPA and SwiftBrush: adapters learn, the weights beside them stay."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import copy

import pytest
import torch
from tests.core.extension_cases import NOW, drawn, generator, given_to, run, small_teacher

from fewstep.core.nets.lora import adapters, merge
from fewstep.core.objectives import methods
from fewstep.core.objectives.perceptual import HighFrequency
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.sampling import Sampling


def plain(net):
    return {name: value for name, value in net.state_dict().items() if "low_rank" not in name}


class TestHiPA:
    def test_only_the_adapters_of_the_student_move(self, tmp_path):
        given = given_to("hipa")
        before = copy.deepcopy(plain(given.student))
        moved, _ = run("hipa", given, drawn(8, 2).float(), tmp_path, rank=2, teacher_steps=3)
        assert moved == {"student"}
        assert all(torch.equal(value, before[name]) for name, value in plain(given.student).items())
        assert any(bool(part.up.any()) for part in adapters(given.student).values())

    def test_the_merged_student_has_the_teachers_shape_and_the_same_function(self, tmp_path):
        given = given_to("hipa")
        run("hipa", given, drawn(8, 2).float(), tmp_path, rank=2, teacher_steps=3)
        x, t = drawn(5, 2).float(), torch.full((5,), 0.2)
        with torch.no_grad():
            beside = given.student(x, t)
            merged = merge(given.student)(x, t)
        assert torch.allclose(merged, beside, atol=1e-5)
        assert list(given.student.state_dict()) == list(given.teacher.net.state_dict())

    def test_what_is_fine_counts_more(self):
        """On pictures: the squared error of x* plus `high_frequency` times its fine part."""
        given = given_to("hipa", small_teacher(shape=(1, 4, 4)))
        objective = methods.get("hipa").make(given, rank=2, high_frequency=3.0, teacher_steps=4)
        batch = SampleBatch(drawn(3, 1, 4, 4).float())
        made = objective._make({"student": given.student}, batch, generator(), NOW)
        (term,) = objective.terms
        losses = term({}, made, batch, generator(), NOW)
        x, wanted = made.x, made.target
        expected = (x - wanted).square().flatten(1).mean(1) + 3 * HighFrequency(0.5)(x, wanted)
        assert torch.allclose(losses, expected, rtol=1e-5)
        sampling = Sampling("ode", 4, kappa=2.5)
        taught = sampling.run(given.teacher, (1, 4, 4), noise=made.noise)
        assert torch.allclose(wanted, taught, rtol=1e-4, atol=1e-5)


class TestSwiftBrush:
    def test_teacher_and_fake_score_share_their_weights(self, tmp_path):
        given = given_to("swiftbrush")
        moved, trainer = run("swiftbrush", given, drawn(8, 2).float(), tmp_path, rank=2)
        assert moved == {"student", "fake"}
        fake, teacher = trainer.networks["fake"], given.teacher.net
        shared = dict(fake.named_parameters())
        assert all(weight is shared[name] for name, weight in teacher.named_parameters())
        assert not adapters(teacher)
        assert not adapters(given.student)
        assert any(bool(part.up.any()) for part in adapters(fake).values())

    def test_the_teacher_itself_does_not_change(self, tmp_path):
        given = given_to("swiftbrush")
        before = copy.deepcopy(given.teacher.net.state_dict())
        run("swiftbrush", given, drawn(8, 2).float(), tmp_path, rank=2)
        after = given.teacher.net.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in after.items())

    def test_guidance_reaches_the_teacher_alone(self, tmp_path):
        given = given_to("swiftbrush", small_teacher(classes=3), null_label=3)
        batch = {"x0": drawn(8, 2).float(), "label": torch.arange(8) % 3}
        moved, trainer = run("swiftbrush", given, batch, tmp_path, rank=2, guidance_scale=4.5)
        assert moved == {"student", "fake"}
        assert trainer.objective.terms[0].guidance.networks == ("teacher",)


@pytest.mark.parametrize("name", ["hipa", "swiftbrush"])
def test_bad_input_is_named(name):
    with pytest.raises(ValueError, match=r"rank must be at least 1 .* rank=0"):
        methods.get(name).make(given_to(name), rank=0)
