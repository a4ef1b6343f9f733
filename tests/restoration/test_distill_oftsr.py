"""Tunable one-call students of ResShift: what they are shown is the teacher's way, and the dial works."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewstep.core.flow_map import FlowMap
from fewstep.core.training import Moment
from fewstep.restoration.distill_oftsr import (
    TunableRecipe,
    at_realism,
    distill_tunable,
    estimates,
    tunable_objective,
    tunable_of,
)
from fewstep.restoration.distill_sr import student_batch
from fewstep.restoration.methods.resshift import ResShift, ResShiftConfig
from fewstep.restoration.methods.tunable_resshift import Towards, TunableConfig, TunableResShift, told_of


@pytest.fixture(scope="module")
def teacher(tiny_model) -> ResShift:
    """The small model with smaller weights, so that nothing that it draws is clamped."""
    made = copy.deepcopy(tiny_model)
    for parameter in made.parameters():
        parameter.data.mul_(0.5)
    return made


def some_batch(count: int = 2, side: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lq = 0.1 * torch.randn(count, 3, side, side, generator=generator)
    x0 = 0.1 * torch.randn(count, 3, 4 * side, 4 * side, generator=generator)
    return student_batch({"x0": x0, "lq": lq})


def way_of(teacher: ResShift, batch: dict[str, Tensor], noise: Tensor) -> tuple[list[Tensor], Tensor]:
    flow = FlowMap(teacher.net, teacher.path, "x0", {"y": batch["y"], "lq": batch["lq"]})
    start = teacher.path.start(noise, batch["y"])
    with torch.no_grad():
        return estimates(flow, start), start


def test_the_way_begins_at_the_mean_and_ends_at_the_teachers_sample(teacher):
    batch, noise = some_batch(), 0.1 * torch.randn(2, 3, 24, 24)
    way, _ = way_of(teacher, batch, noise)
    mean = teacher.restore(batch["lq"], mode="mean", noise=lambda like: noise)
    drawn = teacher.restore(batch["lq"], solver="ddim", noise=lambda like: noise)
    assert len(way) == teacher.config.steps
    assert drawn.abs().max() < 1
    assert torch.allclose(way[0], mean, atol=1e-5)
    assert torch.allclose(way[-1], drawn, atol=1e-5)
    assert not torch.allclose(mean, drawn, atol=1e-2)


def test_a_jump_with_an_estimate_of_the_way_leads_to_the_teachers_state(teacher):
    batch, noise = some_batch(), 0.1 * torch.randn(2, 3, 24, 24)
    way, start = way_of(teacher, batch, noise)
    flow = FlowMap(teacher.net, teacher.path, "x0", {"y": batch["y"], "lq": batch["lq"]})
    state = start
    with torch.no_grad():
        for index, level in enumerate(range(3, -1, -1)):
            t, s = torch.full((2,), float(level)), torch.full((2,), float(level - 1))
            state = flow.jump(state, t, s)
            assert torch.allclose(flow.moved(start, torch.full((2,), 3.0), s, way[index]), state, atol=1e-5)


def test_the_dial_mixes_neighbours_linearly():
    way = [torch.full((4, 1, 1, 1), value) for value in (0.0, 1.0, 5.0)]
    found = at_realism(way, torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64))
    assert found.flatten().tolist() == [0.0, 0.5, 3.0, 5.0]
    assert (told_of(0.0, 4), told_of(1.0, 4)) == (3.0, -1.0)


def test_a_new_student_is_the_teachers_mean(teacher):
    student = tunable_of(teacher, copy.deepcopy(teacher.net))
    lq = some_batch()["lq"]
    assert torch.equal(student.restore(lq, mode="mean"), teacher.restore(lq, mode="mean"))
    assert torch.equal(student.tuned(0.0).restore(lq), student.restore(lq, mode="mean"))
    assert not torch.equal(student.tuned(1.0).restore(lq), student.restore(lq, mode="mean"))


def test_a_trained_student_tells_the_ends_of_the_way_apart(teacher):
    torch.manual_seed(0)
    objective = tunable_objective(teacher, TunableRecipe())
    (phase,) = objective.phases()
    net = Towards(copy.deepcopy(teacher.net).requires_grad_(True))
    batch, noise = some_batch(), torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(9))
    way, _ = way_of(teacher, batch, noise)

    def distance(realism: float, end: int) -> float:
        student = tunable_of(teacher, net.net).tuned(realism)
        drawn = student.restore(batch["lq"], noise=lambda like: noise)
        return float((drawn - way[end].clamp(-1, 1)).abs().mean())

    assert distance(0.0, 0) < 1e-6
    # Before, both ends are the mean.
    assert distance(1.0, 0) < 0.1 * distance(1.0, -1)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(160):
        loss = phase.loss({"student": net}, batch, generator, Moment(step, 0.0))
        assert isinstance(loss, Tensor)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert distance(0.0, 0) < distance(0.0, -1)
    assert distance(1.0, -1) < distance(1.0, 0)
    assert distance(1.0, -1) < distance(0.0, -1)
    assert all(not p.requires_grad for frozen in objective.frozen() for p in frozen.parameters())


def test_a_run_leaves_a_checkpoint_and_goes_on_only_with_its_recipe(tiny_model, tmp_path):
    photographs = tmp_path / "photos"
    photographs.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photographs / "0.png")
    recipe = TunableRecipe(patch=32, batch_size=2, max_updates=2, precision="no")
    run = tmp_path / "run"
    result = distill_tunable(tiny_model, photographs, photographs, run, recipe, device="cpu")
    assert result.step == 2
    assert set(result.metrics) == {"psnr_y_0", "sharpness_0", "psnr_y_1", "sharpness_1"}
    student = TunableResShift.from_pretrained(run / "model")
    assert student.config.realism == 1.0
    assert any(
        not torch.equal(a, b) for a, b in zip(student.parameters(), tiny_model.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="another recipe"):
        distill_tunable(tiny_model, photographs, photographs, run, TunableRecipe(), device="cpu")


def test_bad_input_is_refused(teacher):
    with pytest.raises(ValueError, match=r"realism must lie in \[0, 1\], got 1.5"):
        TunableConfig(realism=1.5)
    with pytest.raises(ValueError, match=r"ends must lie in \[0, 0.5\], got 0.6"):
        TunableRecipe(ends=0.6)
    student = tunable_of(teacher, teacher.net)
    with pytest.raises(ValueError, match=r"realism must lie in \[0, 1\], got -1"):
        student.tuned(-1)
    with pytest.raises(ValueError, match="steps must lie in 1 … 1"):
        student.restore(torch.zeros(1, 3, 4, 4), steps=2)
    other = ResShift(ResShiftConfig(first_stage="identity"), network=torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(TypeError, match="teacher must have a ConditionalEDSR, it has a Conv2d"):
        tunable_objective(other, TunableRecipe())
