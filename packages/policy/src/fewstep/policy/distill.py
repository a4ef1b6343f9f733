"""Students of a policy: any method of the core that makes few-step models, told what the policy sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.objectives import methods
from fewstep.core.objectives.method_options import checked_options
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.sampling import Sampling
from fewstep.core.training import CosineSchedule, Trainer, TrainerConfig, TrainResult

from .demonstrations import fitting, observed, read_demonstrations
from .envs.registry import env_spec
from .episodes import Episodes
from .model import PolicyModel
from .objective import Imitation
from .teacher_pairs import TeacherPairs
from .train import Held, digest, remember, split
from .windows import Windows


@dataclass(frozen=True)
class PolicyDistillRecipe:
    """What a distillation depends on.

    Args:
        method: a name of the core's `methods.names()`, such as "meanflow", "cd", "dmd2".
        options: of the method.
        steps: network calls of the student (0: the method's own number).
        teacher_steps: network calls of the teacher for a chunk, of methods that learn from pairs
            ("instaflow", "reflow" …; see `TeacherPairs`).
        reuse: how often such a pair is used, on average.
        batch_size: windows of a batch.
        learning_rate: of the student's AdamW.
        ema: rule of the averaged weights that are kept.
        clip: largest gradient norm.
        max_steps: updates of all networks together.
        validation_share: of the episodes.
        validate_every: updates between validations.
        rollouts: episodes of a validation.
        seed: of windows, times and noise.

    Raises:
        ValueError: an unknown method, or a value out of its range.
    """

    method: str = "meanflow"
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 1
    teacher_steps: int = 10
    reuse: int = 4
    batch_size: int = 256
    learning_rate: float = 3e-4
    ema: float = 0.999
    clip: float = 1.0
    max_steps: int = 20_000
    validation_share: float = 0.02
    validate_every: int = 2_000
    rollouts: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        methods.get(self.method)
        for name in ("teacher_steps", "reuse", "batch_size", "max_steps", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0 or self.rollouts < 0:
            raise ValueError("steps and rollouts must not be negative")


def student_of(teacher: PolicyModel, method: Method, steps: int = 0) -> PolicyModel:
    """A policy with the teacher's weights, sampled as the method says.

    A second time that the method needs begins without effect. The student of a teacher of kind "flow-map"
    keeps its second time, and one call is then a jump to the clean end.

    Args:
        teacher: a policy of kind "ode" or "flow-map".
        method: of the core.
        steps: network calls (0: the method's own number).

    Raises:
        ValueError: the teacher never saw noise, or has no place for what the method needs.
    """
    config = teacher.config
    if config.kind == "regression":
        raise ValueError("a policy of kind 'regression' has nothing to distil: it is one call already")
    sampling = replace(method.sampling, steps=steps or method.sampling.steps)
    # A student of one jump has learned no other, whichever times its network could be asked at.
    most = 1 if sampling.kind == "ode" and sampling.steps == 1 else 0
    if config.kind == "flow-map" and sampling.kind == "ode":
        # A DDIM step of a network that is told where it goes is such a jump.
        sampling = replace(sampling, kind="flow-map")
    options = dict(config.network_options)
    if method.two_times:
        options["two_times"] = True
    told = {
        name: value for name, value in asdict(sampling).items() if name not in ("kind", "steps", "solver")
    }
    new = replace(
        config,
        network_options=options,
        prediction=method.prediction or config.prediction,
        kind=sampling.kind,
        solver=sampling.solver if sampling.kind == "ode" else config.solver,
        grid="logsnr" if sampling.kind == "ode" else config.grid,
        sampling={name: value for name, value in told.items() if value != getattr(Sampling(), name)},
        steps=sampling.steps,
        most_steps=most,
    )
    student = PolicyModel(new)
    wanted, given = student.state_dict(), teacher.state_dict()
    surplus = sorted(set(given) - set(wanted))
    if surplus:
        raise ValueError(f"the student has no place for the teacher's weights {', '.join(surplus[:3])}")
    student.load_state_dict({**wanted, **given})
    return student


def distill_policy(
    teacher: PolicyModel,
    recipe: PolicyDistillRecipe,
    data: str | Path | Episodes,
    output: str | Path,
    *,
    obs: str | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train a student that needs few network calls, or go on with a run; it is saved in `output/model`.

    Args:
        teacher: a trained policy.
        recipe: settings; a run that goes on must be given the same ones, and the same teacher.
        data: demonstrations, whose observations (and for some methods actions) are used.
        output: folder of the run.
        obs: what Push-T shows.
        max_minutes: minutes of training over all parts of the run.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        ValueError: a method that cannot be used with this policy, data that do not fit, or the folder holds a
            run with other settings.
    """
    folder, method = Path(output), methods.get(recipe.method)
    config = teacher.config
    episodes = data if isinstance(data, Episodes) else read_demonstrations(data)
    wanted = {**config.observations, "action": (config.action_dim,)}
    episodes = fitting(observed(episodes, config.environment, obs), wanted, "the teacher")
    seen, _ = split(episodes, recipe.validation_share)
    lengths = (config.horizon, config.n_obs_steps, config.n_action_steps)
    windows = Windows(seen, *lengths, tuple(config.observations))
    teacher = teacher.eval().requires_grad_(False)
    torch.manual_seed(recipe.seed)
    student = student_of(teacher, method, recipe.steps)
    shape = (config.horizon, config.action_dim)
    material = Material(
        student.path, student.config.prediction, student.net, teacher.flow_map(), shape, recipe.max_steps,
        sampling=replace(method.sampling, steps=student.config.steps),
    )  # fmt: skip
    objective = method.make(material, **checked_options(method, recipe.options))
    spec = env_spec(config.environment, obs) if config.environment and recipe.rollouts else None

    pairs = None
    if "pairs" in method.needs:
        pairs = TeacherPairs(
            teacher, windows, recipe.batch_size, steps=recipe.teacher_steps, reuse=recipe.reuse
        )

    def batch(generator: np.random.Generator) -> dict[str, Tensor]:
        if pairs is not None:
            return pairs.batch(generator)
        drawn = windows.batch(generator, recipe.batch_size)
        with torch.no_grad():
            told = teacher.encode(drawn["obs"])
            return {"x0": teacher.normalizer.normalize("action", drawn["action"]), "global_cond": told}

    held = _HeldStudent(student, spec, recipe.rollouts)
    remember(recipe, folder, teacher=digest(teacher))
    trainer = Trainer(
        student.net,
        objective,
        batch,
        folder=folder,
        config=TrainerConfig(
            max_steps=recipe.max_steps,
            max_minutes=max_minutes,
            batch_size=recipe.batch_size,
            clip=recipe.clip,
            learning_rate=recipe.learning_rate,
            ema_decays=(recipe.ema,),
            save_every_minutes=3.0,
            log_every=200,
            validate_every=recipe.validate_every,
            seed=recipe.seed,
            device="cpu" if device == "cpu" else "auto",
        ),
        schedule=CosineSchedule(warmup=0.02, floor=0.001),
        validate=held,
    )
    result = trainer.fit()
    if result.stopped != "interrupted":
        _with_net(student, trainer.ema.models[recipe.ema]).save_pretrained(folder / "model")
    return result


class _HeldStudent(Held):
    """Score and success of a student's network."""

    def __init__(self, student: PolicyModel, spec: Any, rollouts: int) -> None:
        super().__init__(None, Imitation(), spec, rollouts)
        self.student = student

    def __call__(self, net: torch.nn.Module) -> dict[str, float]:  # type: ignore[override]
        return super().__call__(_with_net(self.student, net))


def _with_net(student: PolicyModel, net: torch.nn.Module) -> PolicyModel:
    """The student with another network, on its device."""
    made = PolicyModel(student.config)
    made.load_state_dict(student.state_dict())
    made.net.load_state_dict(net.state_dict())
    return made.to(next(net.parameters()).device).eval()
