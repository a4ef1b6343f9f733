"""Progressive distillation: exact teachers, stages, and a run that resumes in the middle of one."""

from typing import Any

import pytest
import torch
from tests.core.trajectory_cases import GaussianMap, told_path
from torch import nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.curricula import stage_lengths
from fewstep.core.objectives.trajectory.progressive import (
    HalvedSteps,
    ProgressiveDistillation,
    half_grid,
    x0_between,
)
from fewstep.core.sampling import Sampling
from fewstep.core.training import Moment, Trainer, TrainerConfig

PATHS = {name: told_path(name) for name in ("edm", "vp", "flow")}


def network():
    return MLP(MLPConfig((2,), 16, 1, 8))


def make(path=None, start=4, end=1, decay=0.9, seed=0, **options) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    net, teacher = network(), network()
    flow = FlowMap(teacher, path or paths.EDM(), "edm")
    objective = ProgressiveDistillation(
        path or paths.EDM(), "edm", flow, net, start=start, end=end, decay=decay, **options
    )
    return net, objective


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("grid", ["clock", "karras"])
def test_a_linear_teacher_leaves_no_loss(path, grid):
    """A7: towards a single point two steps of DDIM are one; with Gaussian data they are not."""
    point = torch.tensor([0.3, -0.7], dtype=torch.float64)
    flow = FlowMap(lambda x, t: point.expand_as(x), path, "x0")
    batch = SampleBatch(point.expand(64, 2))
    generator = torch.Generator().manual_seed(0)
    rule = HalvedSteps(grid, weight="uniform")
    for steps in (8, 1):
        assert float(rule(flow, flow, batch, steps, generator).max()) < 1e-20
    curved = FlowMap(GaussianMap(path), path, "x0")
    assert float(rule(curved, curved, batch, 4, generator).detach().mean()) > 1e-4


@pytest.mark.parametrize("path", [*PATHS.values(), paths.ResShift()], ids=[*PATHS, "resshift"])
def test_x0_between_inverts_a_jump(path):
    x, x0, y = torch.randn(3, 8, 2, dtype=torch.float64)
    flow = FlowMap(lambda x, t: x, path, "x0", {"y": y} if path.uses_y else None)
    t = torch.full((8,), path.t_max, dtype=torch.float64)
    s = torch.full((8,), path.time_at(1.0), dtype=torch.float64)
    assert (x0_between(flow, x, t, flow.moved(x, t, s, x0), s) - x0).abs().max() < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_students_are_sampled_on_the_grid_they_were_trained_on(steps):
    for path in (paths.EDM(), paths.RectifiedFlow()):
        trained = half_grid(path, "clock", steps, "cpu")[::2]
        used = Sampling("ode", steps, spacing="clock", solver="ddim").grid(path)
        assert trained.tolist() == pytest.approx(used, rel=1e-9, abs=1e-12)


def test_stages():
    """8, 4: one length each; 2, 1: two."""
    assert (stage_lengths(8, 1), stage_lengths(8, 2), stage_lengths(8, 4), stage_lengths(8, 8)) == (
        6,
        4,
        2,
        1,
    )
    _, objective = make(start=8)
    seen = [
        objective._plan[objective.stage_at(Moment(0, p))][1] for p in (0, 0.16, 0.17, 0.34, 0.66, 0.67, 1)
    ]
    assert seen == [8, 8, 4, 2, 2, 1, 1]


def test_the_next_stage_is_taught_by_the_average():
    net, objective = make(decay=0.5)
    networks = {"student": net, **objective.modules()}
    batch, generator = torch.randn(16, 2), torch.Generator().manual_seed(0)
    (phase,) = objective.phases()
    assert float(phase.loss(networks, batch, generator, Moment(0, 0.0))["steps"]) == 4
    with torch.no_grad():
        net.last.weight += 1
    objective.after_update("train", networks, Moment(0, 0.1))
    assert objective.steps == 4
    assert float(objective.previous.net.last.weight.abs().max()) == 0
    objective.after_update("train", networks, Moment(1, 0.2))
    assert objective.steps == 2
    assert torch.allclose(objective.previous.net.last.weight, torch.tensor(0.75))
    logged = phase.loss(networks, batch, generator, Moment(2, 0.3))
    assert float(logged["steps"]) == 2
    logged["loss"].backward()
    assert objective.previous.net.last.weight.grad is None


def draw(rng):
    return torch.from_numpy(rng.standard_normal((8, 2))).float()


def run(folder, max_steps, seed=0):
    net, objective = make(seed=seed)
    config = TrainerConfig(
        max_steps=30, batch_size=8, save_every_steps=1, tensorboard=False, device="cpu", learning_rate=1e-2
    )
    trainer = Trainer(net, objective, draw, folder=folder, config=config)
    if max_steps < 30:
        stop = trainer.objective.after_update

        def interrupted(phase, networks, moment):
            stop(phase, networks, moment)
            if moment.step == max_steps:
                raise KeyboardInterrupt

        trainer.objective.after_update = interrupted
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    else:
        trainer.fit()
    return net, objective


def test_a_run_resumes_within_a_stage(tmp_path):
    """Stopped in the second stage and taken up by new objects: bit for bit the same networks."""
    whole, kept = run(tmp_path / "whole", 30)
    assert kept.steps == 1
    run(tmp_path / "parts", 10)
    again, resumed = run(tmp_path / "parts", 30, seed=5)
    # The teacher of the first stage belongs to the caller; in the second it is not asked any more.
    for ours, theirs in ((again, whole), (resumed.previous, kept.previous), (resumed.average, kept.average)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
    assert (resumed.previous.stage, resumed.steps) == (kept.previous.stage, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: make(start=6), "start must be a power of 2, got 6"),
        (lambda: make(start=2, end=4), "end must be at most start=2, got 4"),
        (lambda: make(decay=1.0), "decay must lie in \\[0, 1\\), got 1.0"),
        (lambda: HalvedSteps("fancy"), "grid must be one of .* got 'fancy'"),
        (lambda: HalvedSteps(weight="best"), "weight must be one of"),
        (
            lambda: half_grid(paths.ResShift(), "clock", 8, "cpu"),
            "16 steps are too many for the grid 'clock'",
        ),
    ],
)
def test_bad_input(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_modules_are_saved_and_the_teacher_is_frozen():
    net, objective = make()
    assert set(objective.modules()) == {"previous", "average"}
    assert objective.frozen() == (objective.teacher.net,)
    assert not any(p.requires_grad for m in objective.modules().values() for p in m.parameters())
    assert isinstance(net, nn.Module)
