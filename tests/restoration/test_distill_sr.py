"""One-call students: what they are shown is what the teacher draws, and they come nearer to it."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.time_aware import Taught
from fewstep.core.training import Moment
from fewstep.restoration.distill_sr import (
    OneCallRecipe,
    OneCallValidation,
    distill_one_call,
    one_call_objective,
    student_batch,
)
from fewstep.restoration.methods.resshift import ResShift, ResShiftConfig
from fewstep.restoration.nets.edsr import ConditionalEDSR
from fewstep.restoration.one_call import TrunkFeatures

PLAIN = OneCallRecipe(adversarial=0.0, perturbed=0.0)


@pytest.fixture(scope="module")
def teacher(tiny_model) -> ResShift:
    """The small model with smaller weights, so that nothing that it draws is clamped."""
    made = copy.deepcopy(tiny_model)
    for parameter in made.parameters():
        parameter.data.mul_(0.5)
    return made


def some_batch(count: int = 2, side: int = 8) -> dict[str, Tensor]:
    # Small values, so that nothing is clamped.
    generator = torch.Generator().manual_seed(1)
    lq = 0.1 * torch.randn(count, 3, side, side, generator=generator)
    x0 = 0.1 * torch.randn(count, 3, 4 * side, 4 * side, generator=generator)
    return student_batch({"x0": x0, "lq": lq})


def made_by(teacher: ResShift, net: torch.nn.Module, batch: dict[str, Tensor], noise: Tensor) -> Taught:
    objective = one_call_objective(teacher, PLAIN)
    read = SampleBatch.read({**batch, "noise": noise})
    student = read.flow_map(net, teacher.path, "x0")
    made = objective.generation(student, read, torch.Generator(), Moment())
    assert isinstance(made, Taught)
    return made


def test_the_target_is_the_teachers_sample_from_the_same_noise(teacher):
    batch, noise = some_batch(), 0.1 * torch.randn(2, 3, 32, 32)
    made = made_by(teacher, teacher.net, batch, noise)
    drawn = teacher.restore(batch["lq"], solver="ddim", noise=lambda like: noise)
    assert drawn.abs().max() < 1
    assert torch.allclose(made.target, drawn, atol=1e-5)
    assert not made.target.requires_grad


def test_the_student_is_asked_at_the_published_start(teacher):
    batch, noise = some_batch(), 0.1 * torch.randn(2, 3, 32, 32)
    made = made_by(teacher, teacher.net, batch, noise)
    kappa, root = 0.5, 0.99
    assert torch.allclose(made.state, batch["y"] + kappa * root * noise, atol=1e-6)
    one = teacher.restore(batch["lq"], mode="sample", steps=1, noise=lambda like: noise)
    assert torch.allclose(made.x, one, atol=1e-5)


def test_batches_hold_the_degraded_end_of_the_path(teacher):
    batch = some_batch()
    assert torch.equal(batch["y"], teacher.prior(batch["lq"]))


def test_all_terms_and_the_judge_train_what_they_should(tiny_model):
    torch.manual_seed(0)
    objective = one_call_objective(tiny_model, OneCallRecipe(judge_every=1, judge_begins=0.0))
    student = ConditionalEDSR(width=8, blocks=1)
    student.load_state_dict(tiny_model.net.state_dict())
    networks = {"student": student, **objective.modules()}
    fake, main = objective.phases()
    batch, generator = some_batch(), torch.Generator().manual_seed(0)
    losses = main.loss(networks, batch, generator, Moment(0, 0.5))
    assert isinstance(losses, dict)
    assert {"regression", "perturbed-score", "adversarial"} <= losses.keys()
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in student.body.parameters())
    student.zero_grad()
    judged = fake.loss(networks, batch, generator, Moment(0, 0.5))
    assert isinstance(judged, dict)
    judged["loss"].backward()
    assert all(parameter.grad is None for parameter in student.parameters())
    assert any(parameter.grad is not None for parameter in networks["head"].parameters())
    assert all(not p.requires_grad for net in objective.frozen() for p in net.parameters())


def test_a_judge_sees_every_nth_block():
    net = ConditionalEDSR(width=8, blocks=5)
    features = TrunkFeatures(net, 2)
    maps = features(torch.zeros(1, 3, 16, 24), torch.zeros(1), torch.zeros(1, 3, 4, 6))
    assert [tuple(each.shape) for each in maps] == [(1, 8, 4, 6)] * 2
    assert features.widths == (8, 8)
    assert not any(block._forward_hooks for block in net.body)
    assert len(TrunkFeatures(net, 9).places) == 1


def test_a_student_comes_nearer_to_the_teachers_sample(teacher):
    torch.manual_seed(0)
    objective = one_call_objective(teacher, PLAIN)
    student = ConditionalEDSR(width=8, blocks=1)
    student.load_state_dict(teacher.net.state_dict())
    (phase,) = objective.phases()
    batch = some_batch(2, 6)
    held_out = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(9))

    def error() -> float:
        with torch.no_grad():
            made = made_by(teacher, student, batch, held_out)
            return float((made.x - made.target).abs().mean())

    before = error()
    adam = torch.optim.Adam(student.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(80):
        losses = phase.loss({"student": student}, batch, generator, Moment(step, 0.0))
        loss = losses if isinstance(losses, Tensor) else losses["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert error() < 0.5 * before


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_a_run_leaves_a_checkpoint_and_goes_on_only_with_its_recipe(tiny_model, photographs, tmp_path):
    recipe = OneCallRecipe(patch=32, batch_size=2, max_updates=2, precision="no", judge_every=1)
    result = distill_one_call(tiny_model, photographs, photographs, tmp_path, recipe, device="cpu")
    # A judge's update and a student's update each time.
    assert result.step == 4
    student = ResShift.from_pretrained(tmp_path / "model")
    assert student.config == tiny_model.config
    assert any(
        not torch.equal(a, b) for a, b in zip(student.parameters(), tiny_model.parameters(), strict=True)
    )
    measured = OneCallValidation.from_files(tiny_model, sorted(photographs.iterdir()))(student.net)
    assert measured == pytest.approx(result.metrics, abs=1e-6)
    with pytest.raises(ValueError, match="another recipe"):
        distill_one_call(tiny_model, photographs, photographs, tmp_path, OneCallRecipe(), device="cpu")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="perturbed must not be negative"):
        OneCallRecipe(perturbed=-1.0)
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        OneCallRecipe(share=0.0)
    with pytest.raises(ValueError, match="must not both be 0"):
        OneCallRecipe(regression=0.0, perturbed=0.0)
    latent = ResShift(ResShiftConfig(first_stage="identity"), network=torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(TypeError, match="teacher must have a ConditionalEDSR, it has a Conv2d"):
        one_call_objective(latent, PLAIN)
