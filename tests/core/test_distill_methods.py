"""Every method by its name goes through `distill` and leaves a student that can be loaded and sampled."""

from typing import Any

import pytest
import torch
from tests.core.distill_cases import make_data, make_teacher

from fewstep.core import paths
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.distill import Distillation, distill
from fewstep.core.objectives.recipe import DistillRecipe
from fewstep.core.objectives.student import make_material
from fewstep.core.sampling import Sampling

SHAPE = (1, 8, 8)
LABELS = ("a", "b")
CLOCK = Sampling("ode", 2, spacing="clock")


def flow_teacher() -> DiffusionModel:
    """For methods that need rectified flow's times."""
    config = MLPConfig(shape=SHAPE, width=16, depth=1, embedding=8, classes=2)
    return DiffusionModel.with_network(config, paths.RectifiedFlow(), "velocity", LABELS, CLOCK)


@pytest.mark.parametrize("name", methods.names())
def test_a_student_of_every_method(name, tmp_path):
    method = methods.get(name)
    teacher = flow_teacher() if name == "twinflow" else make_teacher(SHAPE, LABELS)
    generator = torch.Generator().manual_seed(0)
    given = {"x0": make_data(48, SHAPE), "label": torch.arange(48) % 2}
    coupled = {**given, "noise": torch.randn(48, *SHAPE, generator=generator)}
    data, pairs = given if "data" in method.needs else None, coupled if "pairs" in method.needs else None
    recipe = DistillRecipe.of(method, name, updates=2, batch_size=4, validation_samples=4)
    done = Distillation(teacher, method, recipe, tmp_path, data, pairs, device="cpu").run()
    assert done.complete
    assert done.result.skipped == 0
    assert all(torch.isfinite(torch.tensor(value)) for value in done.metrics.values())
    loaded = DiffusionModel.from_pretrained(tmp_path)
    label = torch.tensor([1, 0])
    torch.testing.assert_close(loaded.generate(2, label=label), done.student.generate(2, label=label))
    assert loaded.sampling.steps == method.sampling.steps
    before, after = teacher.state_dict(), loaded.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_student_of_boss_is_sampled_at_the_times_it_was_trained_for(tmp_path):
    path = paths.RectifiedFlow()
    torch.manual_seed(0)
    config = MLPConfig(width=8, depth=1, embedding=8)
    teacher = DiffusionModel.with_network(config, path, "velocity", sampling=CLOCK)
    torch.nn.init.normal_(dict(teacher.named_parameters())["net.last.weight"])
    options = {"points": 20, "samples": 8}
    recipe = DistillRecipe("boss", options, steps=3, updates=2)
    student = distill(teacher, data=torch.randn(50, 2), recipe=recipe, folder=tmp_path)
    found: Any = methods.get("boss").make(make_material(teacher, student, 2, {}), **options)
    times = DiffusionModel.from_pretrained(tmp_path).sampling.grid(path)
    assert times == pytest.approx(found.rule.boundaries)
    assert times != pytest.approx([path.t_max * (1 - i / 3) for i in range(4)])
