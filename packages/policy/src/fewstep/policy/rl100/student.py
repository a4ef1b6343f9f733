"""The one-step student of a chain: same noise, same action, one call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.objectives.sample_batch import normal_like
from fewstep.core.training import Trainer, TrainerConfig
from fewstep.core.training.schedule import CosineSchedule

from ..model import PolicyModel
from .consistency import same_noise_loss
from .policy_chain import ChainPolicy


def student_of(model: PolicyModel) -> PolicyModel:
    """A copy that acts in one call: a flow map jumps, another network says the action at the noisiest level.

    A network that predicted noise predicts the action from here on, and has to learn it: at the noisiest
    level of a cosine table x̂0 = (x − σε)/a divides its word by 2e-4. The published head keeps the noise.

    Args:
        model: the chain's.

    Raises:
        ValueError: a policy of another kind.
    """
    config = model.config
    if config.kind == "regression":
        raise ValueError("model makes its action in one call already")
    fields: dict[str, Any] = {"steps": 1, "most_steps": 1}
    if config.kind == "ode":
        fields |= {"solver": "ddim", "grid": "trailing"}
        fields |= {"prediction": "x0"} if config.prediction == "eps" else {}
    student = PolicyModel(replace(config, **fields))
    student.load_state_dict(copy.deepcopy(model.state_dict()))
    return student


def distill_chain(
    teacher: ChainPolicy,
    told: Float[np.ndarray, "rows told"],
    folder: Path,
    *,
    updates: int = 5_000,
    batch_size: int = 256,
    rate: float = 3e-4,
    seed: int = 0,
    device: str = "auto",
) -> PolicyModel:
    """Train a student whose one call ends where the means of the teacher's chain end; resumable.

    loss = mean (a_θ(z) − a_teacher(z))² over the executed actions, from the same noise z.

    Args:
        teacher: the chain.
        told: encoded observations to learn on.
        folder: of the run.
        updates: of the student.
        batch_size: of an update.
        rate: largest learning rate.
        seed: of everything that is drawn.
        device: "auto" or "cpu".

    Returns:
        The student, with the average of its weights, on the CPU.

    Reference: Lei et al. 2025, "RL-100", consistency distillation ("action_same_noise"); Song et al. 2023,
        "Consistency Models".
    """
    student = student_of(teacher.model)
    # Where a student is clipped it has no gradient, and could stay on the wrong side.
    learner = PolicyModel(replace(student.config, clip=0.0))
    learner.load_state_dict(student.state_dict())
    learner.encoder.requires_grad_(False)
    rows = torch.as_tensor(told)

    def draw(generator: np.random.Generator) -> Tensor:
        return rows[torch.from_numpy(generator.integers(len(rows), size=batch_size))]

    def loss(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        pupil = cast(PolicyModel, model)
        shape = (len(batch), pupil.config.horizon, pupil.config.action_dim)
        z = normal_like(batch.new_empty(shape), generator)
        noise: Callable[[Tensor], Tensor] = lambda like: z  # noqa: E731
        made = pupil.draw(batch, steps=1, noise=noise, grad=True)
        master = teacher.to(batch.device)
        return same_noise_loss(made, master.held(master.settled(batch, z)), pupil.config.executed)

    config = TrainerConfig(
        max_steps=updates,
        batch_size=batch_size,
        ema_decays=(0.999,),
        log_every=200,
        seed=seed,
        device="cpu" if device == "cpu" else "auto",
        tensorboard=False,
    )
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], rate)
    trainer = Trainer(
        learner, loss, draw, folder=folder, config=config, optimizer=optimizer, schedule=CosineSchedule()
    )
    trainer.fit()
    student.load_state_dict(trainer.ema.models[0.999].state_dict())
    return student.eval()
