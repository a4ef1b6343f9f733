"""distill on a tiny teacher with methods whose outcome is known."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.core.distill_cases import (
    BOUNDARY,
    DATA_FREE,
    PAIRED,
    REGRESSION,
    STEPS,
    TWO_TIMES,
    make_data,
    make_teacher,
    two_phases,
)

from fewstep.core.models import DiffusionModel
from fewstep.core.objectives.distill import Distillation, distill
from fewstep.core.objectives.methods.base import Method
from fewstep.core.objectives.recipe import DistillRecipe
from fewstep.core.objectives.student import GuidedNet, build_student, make_material, prediction_of
from fewstep.core.sampling import Sampling
from fewstep.core.training import read_log

CALLS = Sampling("consistency", 1)


def own(method, **values):
    return DistillRecipe.of(method, "own", **values)


def test_the_student_learns_and_is_saved_with_its_recipe(tmp_path):
    data, seen = make_data(), []
    recipe = own(REGRESSION, updates=300)
    student = distill(
        make_teacher(), REGRESSION, data=data, recipe=recipe, folder=tmp_path / "out", on_progress=seen.append
    )
    loaded = DiffusionModel.from_pretrained(tmp_path / "out")
    assert DistillRecipe.load(tmp_path / "out" / "recipe.json") == recipe
    made = loaded.generate(100)
    torch.testing.assert_close(made, student.generate(100))
    # The mean of the data, in one call.
    torch.testing.assert_close(made.mean(0), torch.tensor([1.0, -1.0]), atol=0.1, rtol=0)
    assert [info.updates for info in seen] == list(range(1, 301))
    assert seen[-1].fraction == pytest.approx(299 / 300)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Teacher, {2 * STEPS - 1} calls" in card
    assert "sliced wasserstein" in card


def test_the_weights_with_the_best_metric_are_kept(tmp_path):
    """With a rate that grows out of hand the last weights are not the best ones."""
    recipe = own(REGRESSION, updates=120, learning_rate=0.3, validate_every=10, clip=None)
    done = Distillation(make_teacher(), REGRESSION, recipe, tmp_path, make_data()).run()
    curve = [line["sliced-wasserstein"] for line in read_log(tmp_path / "run", "validate")]
    assert len(curve) == 12
    assert done.metrics["sliced-wasserstein"] == pytest.approx(min(curve), rel=1e-6)
    assert done.result.best == min(curve)


def test_patience_ends_a_run(tmp_path):
    recipe = own(REGRESSION, updates=500, learning_rate=1e-12, patience=2, validate_every=5)
    done = Distillation(make_teacher(), REGRESSION, recipe, tmp_path, make_data()).run()
    assert done.result.stopped == "no_improvement"
    assert done.complete
    assert done.result.step < 500


def test_updates_are_those_of_the_student(tmp_path):
    """The fake moves twice for each of them."""
    recipe = own(DATA_FREE, updates=20, validation_samples=32)
    done = Distillation(make_teacher(), DATA_FREE, recipe, tmp_path).run()
    assert done.result.step == 60
    assert len(read_log(tmp_path / "run", "validate")) == 1


def test_the_optimiser_is_that_of_the_recipe():
    from fewstep.core.objectives.equipped import Equipped

    recipe = own(DATA_FREE, optimizer="radam", betas=(0.0, 0.9), weight_decay=0.25)
    student = build_student(make_teacher(), DATA_FREE, CALLS)
    material = make_material(make_teacher(), student, 1, {})
    for phase in Equipped(two_phases(material), recipe, None).phases():
        assert phase.optimizer is not None
        made = phase.optimizer(student.net.parameters())
        assert isinstance(made, torch.optim.RAdam)
        assert made.defaults["betas"] == (0.0, 0.9)
        assert made.defaults["weight_decay"] == 0.25


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    recipe, teacher, data = own(REGRESSION, updates=30, validate_every=10), make_teacher(), make_data()
    whole = Distillation(teacher, REGRESSION, recipe, tmp_path / "whole", data).run()

    def interrupt(info):
        if info.updates == 13:
            os.kill(os.getpid(), signal.SIGINT)

    part = Distillation(teacher, REGRESSION, recipe, tmp_path / "parts", data, on_progress=interrupt).run()
    assert not part.complete
    assert 13 <= part.result.step < 30
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    rest = Distillation(teacher, REGRESSION, recipe, tmp_path / "parts", data).run()
    assert rest.complete
    for name, value in whole.student.net.state_dict().items():
        assert torch.equal(value, rest.student.net.state_dict()[name]), name


def test_a_complete_run_is_made_again_without_training_and_may_be_made_longer(tmp_path):
    teacher, data = make_teacher(), make_data()
    recipe = own(REGRESSION, updates=10)
    first = Distillation(teacher, REGRESSION, recipe, tmp_path, data).run()
    again = Distillation(teacher, REGRESSION, recipe, tmp_path, data).run()
    assert (again.result.step, again.metrics) == (first.result.step, first.metrics)
    longer = Distillation(teacher, REGRESSION, recipe.with_values(updates=15), tmp_path, data).run()
    assert longer.result.step == 15
    assert DistillRecipe.load(tmp_path / "recipe.json").updates == 15


def test_another_runs_student_is_never_overwritten(tmp_path):
    teacher, data, recipe = make_teacher(), make_data(), own(REGRESSION, updates=5)
    Distillation(teacher, REGRESSION, recipe, tmp_path / "out", data).run()
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    cases = [
        (teacher, recipe.with_values(seed=1), data, r"another recipe \(seed was 0, now 1\)"),
        (make_teacher(seed=3), recipe, data, "another teacher or of other data"),
        (teacher, recipe, make_data(seed=9), "another teacher or of other data"),
    ]
    for model, other, samples, message in cases:
        with pytest.raises(ValueError, match=message):
            Distillation(model, REGRESSION, other, tmp_path / "out", samples).run()
    (tmp_path / "out" / "recipe.json").unlink()
    with pytest.raises(ValueError, match="holds another model"):
        Distillation(teacher, REGRESSION, recipe, tmp_path / "out", data).run()
    loaded = DiffusionModel.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="is the teacher's own"):
        Distillation(loaded, REGRESSION, recipe, tmp_path / "out", data).run()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_pairs_are_trained_on_where_they_are_needed(tmp_path):
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    pairs = {"x0": 0.5 * noise + 2, "noise": noise}
    student = distill(make_teacher(), PAIRED, pairs=pairs, recipe=own(PAIRED, updates=500), folder=tmp_path)
    assert isinstance(student, DiffusionModel)
    made = student.generate(noise=noise)
    # Every noise has its own x0; the data's mean alone would leave their whole spread.
    assert float((made - pairs["x0"]).square().mean().sqrt()) < float(pairs["x0"].std()) / 2


def test_previews_are_pictures(tmp_path):
    shape = (1, 4, 4)
    distill(
        make_teacher(shape),
        REGRESSION,
        data=make_data(64, shape),
        recipe=own(REGRESSION, updates=2),
        folder=tmp_path,
    )
    [file] = (tmp_path / "run" / "previews").glob("*.png")
    assert Image.open(file).size == (39, 39)


def test_a_student_begins_as_its_teacher():
    x, t = 3 * make_data(8), torch.full((8,), 2.0)
    teacher = make_teacher()
    for method in (REGRESSION, TWO_TIMES, BOUNDARY):
        student = build_student(teacher, method, CALLS)
        expected, got = teacher.flow_map().x0(x, t), student.flow_map().x0(x, t)
        torch.testing.assert_close(got, expected, atol=5e-3, rtol=5e-3)
    assert prediction_of(build_student(teacher, BOUNDARY, CALLS)) == "edm-boundary"
    two = build_student(teacher, TWO_TIMES, CALLS)
    assert two.flow_map().takes_target
    torch.testing.assert_close(two.flow_map().x0(x, t, 0.1 * t), teacher.flow_map().x0(x, t))


def test_a_prediction_under_which_the_weights_mean_something_else_is_not_taken():
    teacher = make_teacher()
    other = replace(REGRESSION, prediction="velocity")
    assert prediction_of(build_student(teacher, other, CALLS)) == "edm"


def test_new_weights_do_not_depend_on_the_global_generator():
    teacher = make_teacher()
    torch.manual_seed(5)
    first = build_student(teacher, TWO_TIMES, CALLS, seed=1).net.state_dict()
    torch.manual_seed(6)
    second = build_student(teacher, TWO_TIMES, CALLS, seed=1).net.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_guidance_moves_the_teacher_and_not_its_copies():
    teacher = make_teacher(labels=("a", "b"))
    student = build_student(teacher, DATA_FREE, CALLS)
    material = make_material(teacher, student, 1, {}, guidance=3.0)
    x, t, label = make_data(4), torch.full((4,), 1.5), torch.tensor([0, 1, 1, 0])
    taught = material.taught().given(label=label).x0(x, t)
    plain, null = teacher.flow_map(label).x0(x, t), teacher.flow_map(2).x0(x, t)
    torch.testing.assert_close(taught, null + 3 * (plain - null))
    assert not isinstance(material.copy_of_teacher(), GuidedNet)
    assert all(parameter.requires_grad for parameter in material.copy_of_teacher().parameters())
    with pytest.raises(ValueError, match="guidance needs a teacher with classes"):
        make_material(make_teacher(), student, 1, {}, guidance=2.0)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (REGRESSION, {}, "method own needs data"),
        (PAIRED, {"data": make_data()}, "method own needs pairs"),
        (PAIRED, {"pairs": {"x0": make_data()}}, "pairs must hold the noise"),
        (REGRESSION, {"data": make_data(shape=(3,))}, r"at least 2 samples of shape \(2,\)"),
        (REGRESSION, {"data": {"label": torch.zeros(3)}}, "data must hold x0"),
        (REGRESSION, {"data": {"x0": make_data(9), "label": torch.zeros(3)}}, "9 entries of label"),
        (REGRESSION, {"data": make_data() / 0}, "not finite"),
    ],
)
def test_bad_material_is_refused(tmp_path, method: Method, given, message):
    with pytest.raises(ValueError, match=message):
        Distillation(make_teacher(), method, own(method), tmp_path / "out", **given).run()
    assert not (tmp_path / "out").exists()


def test_labels_must_be_the_models(tmp_path):
    teacher, x0 = make_teacher(labels=("a", "b")), make_data(40)
    for label, message in ((torch.full((40,), 2), r"0 … 1, got 2 … 2"), (torch.zeros(40), "whole numbers")):
        with pytest.raises(ValueError, match=message):
            distill(teacher, REGRESSION, data={"x0": x0, "label": label}, folder=tmp_path)
    with pytest.raises(ValueError, match="guidance needs labels"):
        distill(teacher, REGRESSION, data=x0, recipe=own(REGRESSION, guidance=2.0), folder=tmp_path)
    done = Distillation(make_teacher(), REGRESSION, own(REGRESSION, updates=1), tmp_path,
                        {"x0": x0, "label": torch.zeros(40)}).run()  # fmt: skip
    assert done.notes[0] == "the model has no classes: the labels are not used"
    assert json.loads((tmp_path / "recipe.json").read_text())["updates"] == 1
