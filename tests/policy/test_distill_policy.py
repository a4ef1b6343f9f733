"""Students of policies: the pairs that they learn from, and that they come near their teacher."""

import numpy as np
import pytest
import torch
from tests.policy.tiny_policy import demonstrations, tiny_policy

from fewstep.policy.demonstrations import read_demonstrations
from fewstep.policy.distill import PolicyDistillRecipe, distill_policy
from fewstep.policy.loading import load_model
from fewstep.policy.model import PolicyModel
from fewstep.policy.recipe import METHODS
from fewstep.policy.teacher_pairs import TeacherPairs
from fewstep.policy.windows import Windows

FLOW_MAP = {**METHODS["meanflow"], "steps": 1}
TEACHERS = {
    "flow-map": FLOW_MAP,
    "flow": METHODS["flow"],
    "ddpm, which adds noise": {"solver": "ancestral", "grid": "leading", "steps": 20},
}


def teacher_of(**changes) -> PolicyModel:
    """A policy whose chunks depend on noise and observation in a way that no single jump knows."""
    model = tiny_policy(**{"horizon": 4, "n_action_steps": 3, "clip": 0.0, **changes})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(name="windows")
def _windows(tmp_path) -> Windows:
    return Windows(read_demonstrations(demonstrations(tmp_path / "d.npz")), 4, 2, 3, ("state",))


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_pair_is_what_the_teacher_makes_of_its_noise(kind, windows):
    teacher = teacher_of(**TEACHERS[kind])
    batch = TeacherPairs(teacher, windows, 16, steps=5).batch(np.random.default_rng(0))
    pairs = TeacherPairs(teacher, windows, 16, steps=5)
    told, noise = batch["global_cond"], batch["noise"]
    again = pairs.teacher.draw(told, steps=5, noise=lambda _: noise)
    torch.testing.assert_close(batch["x0"], again)
    assert noise.std() == pytest.approx(1, abs=0.2)
    other = pairs.teacher.draw(told, steps=5, noise=lambda _: -noise)
    assert (other - again).abs().max() > 0.05, "the teacher does not look at its noise"


def test_pairs_are_used_as_often_as_asked_and_the_oldest_leave(windows):
    pairs = TeacherPairs(teacher_of(**FLOW_MAP), windows, 8, steps=1, reuse=4, capacity=3)
    rng, seen = np.random.default_rng(0), []
    for update in range(20):
        batch = pairs.batch(rng)
        assert len(batch["x0"]) == 8
        seen.append(pairs.store["noise"].clone())
        assert pairs.count == min(8 + 2 * update, 24)
    changed = (seen[-1] != seen[-2]).flatten(1).any(1)
    assert changed.sum() == 2
    # 24 places, two new ones per update: after twelve updates nothing is left.
    assert not (seen[-1] == seen[-13]).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("teacher", "method", "kind"),
    [
        ("flow-map", "instaflow", "flow-map"),
        ("flow", "instaflow", "ode"),
        ("flow", "online-distillation", "ode"),
    ],
)
def test_a_student_in_one_call_comes_near_its_teacher(teacher, method, kind, tmp_path):
    model = teacher_of(**TEACHERS[teacher])
    recipe = PolicyDistillRecipe(
        method=method,
        teacher_steps=16,
        batch_size=64,
        learning_rate=3e-3,
        ema=0.98,
        max_steps=300,
        rollouts=0,
    )
    distill_policy(
        model, recipe, demonstrations(tmp_path / "d.npz"), tmp_path / "run", obs="state", device="cpu"
    )
    student = load_model(tmp_path / "run" / "model")
    assert (student.config.kind, student.config.steps) == (kind, 1)
    told = torch.rand(64, 10, generator=torch.Generator().manual_seed(2)) * 2 - 1
    wanted = model.draw(told, steps=16, seed=5)
    before = (model.draw(told, steps=1, seed=5) - wanted).square().mean()
    after = (student.draw(told, seed=5) - wanted).square().mean()
    assert after < before / 2
    with pytest.raises(ValueError, match="steps must be at most 1, which this policy learned, got 2"):
        student.draw(told, steps=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"reuse": 0}, "reuse must be at least 1"), ({"teacher_steps": 0}, "teacher_steps must be at least 1")],
)
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        PolicyDistillRecipe(**change)


def test_a_teacher_that_sees_no_noise_is_refused(windows):
    with pytest.raises(ValueError, match="sees no noise"):
        TeacherPairs(tiny_policy(**METHODS["regression"]), windows, 8)
