"""sCM: consistency models in continuous time, from data (sCT) or from a teacher (sCD)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets.init import zeroed
from fewstep.core.objectives.derivative import Mode, check_mode, value_and_rate
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.objectives.trajectory.base import JumpRule, Situation, TrajectoryDistillation
from fewstep.core.objectives.trajectory.guided_velocity import LabelGuidance, without_label
from fewstep.core.objectives.trajectory.trig_flow import along_angle, angle_at, rotated, rotation_field
from fewstep.core.paths import Path
from fewstep.core.training import Phase
from fewstep.core.training.phases import STUDENT, Losses

LOG_VARIANCE = "log_variance"


class LogVariance(nn.Module):
    """A learned log-variance u(t) of the loss, so that no time dominates: e^(−u)·error + u.

    u is linear in waves of ln(sigma/a)/4 and starts at zero.

    Reference: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
        section 3.2; Lu and Song 2025, section 4.2 (adaptive weighting).
    """

    rates: Tensor

    def __init__(self, waves: int = 16) -> None:
        super().__init__()
        self.register_buffer("rates", torch.logspace(-1, 1, waves), persistent=False)
        self.last = zeroed(nn.Linear(2 * waves, 1))

    def forward(self, path: Path, t: Float64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """u at every time."""
        told = (-path.half_log_snr_at(t) / 4).to(self.rates.dtype)
        wave = told[:, None] * self.rates
        return self.last(torch.cat([wave.cos(), wave.sin()], dim=1)).squeeze(1)


def consistency_tangent(
    flow: FlowMap,
    x: Float[Tensor, "batch *shape"],
    t: Float64[Tensor, "batch"],
    velocity: Float[Tensor, "batch *shape"],
    warmth: float = 1.0,
    mode: Mode = "jvp",
    step: float = 1e-4,
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """Return the field F, with its graph, and the tangent g = cos·df/dangle of the consistency function f.

    g = −cos²·(sd·F − x̂') − r·cos·sin·(x̂ + sd·dF/dangle),   f = cos·x̂ − sin·sd·F,

    with sd = sigma_data, x̂ the rotated state and x̂' its velocity. g vanishes where f is constant along the
    trajectory.

    Args:
        flow: the student.
        x: states at t.
        t: times.
        velocity: x̂' = cos·sd·eps − sin·x0, or sd·F of a teacher.
        warmth: r, from 0 to 1.
        mode: how dF/dangle is had; see `value_and_rate`.
        step: of mode "difference", in angle/(cos·sin).

    Reference: Lu and Song 2025, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
        eqs. 5-6, section 4 (tangent warm-up).
    """
    path = flow.path
    angle = angle_at(path, t)
    direction = along_angle(path, x, t, velocity, flow.y)
    field_, rate = value_and_rate(rotation_field, flow, (x, t), direction, mode, step)
    sd, cosine, sine = path.sigma_data, angle.cos(), angle.sin()
    pulled = spread(cosine.square(), x) * (sd * field_.detach() - velocity)
    turned = spread(cosine * sine, x) * rotated(path, x, t, flow.y) + sd * rate
    return field_, -pulled - warmth * turned


@dataclass(frozen=True)
class ContinuousConsistency(JumpRule):
    """The student's consistency function becomes constant along trajectories: sCT, or with a teacher sCD.

    loss = e^(−u)·‖F − sg(F + g/(rms(g) + c))‖²·a/sigma + u, with the mean over the elements in ‖·‖².

    Args:
        times: of the states.
        warmup: updates over which the unstable part of the tangent grows to its full size.
        c: of the tangent's normalisation.
        guidance: of the teacher.
        log_variance: u; None: 0. `ContinuousConsistencyTraining` trains it.
        mode: "jvp" or "difference", see `value_and_rate`.
        step: of the difference.

    Raises:
        ValueError: unknown mode, or warmup is below 1.

    Reference: Lu and Song 2025, algorithm 1, eq. 8; rms instead of the norm as in NVIDIA's FastGen.
    """

    times: TimeSampler = field(default_factory=lambda: LogNormal(-1.0, 1.4))
    warmup: int = 10_000
    c: float = 0.1
    guidance: LabelGuidance | None = None
    log_variance: LogVariance | None = None
    mode: Mode = "jvp"
    step: float = 1e-3

    def __post_init__(self) -> None:
        check_mode(self.mode, self.step)
        if self.warmup < 1:
            raise ValueError(f"warmup must be at least 1, got {self.warmup!r}")

    def __call__(self, situation: Situation) -> Losses:
        """The loss; the tangent's size, which shows progress, for the log."""
        batch, path = situation.batch, situation.path
        noise = batch.noise_or(situation.generator)
        t = self.times(path, len(noise), situation.generator, noise.device)
        x = path.corrupt(batch.x0, t, noise, batch.y)
        velocity = self._velocity(situation, x, t, noise)
        warmth = min(1.0, situation.moment.step / self.warmup)
        out, tangent = consistency_tangent(situation.student, x, t, velocity, warmth, self.mode, self.step)
        size = tangent.square().flatten(1).mean(1)
        target = out.detach() + tangent / spread(size.sqrt() + self.c, x)
        errors = (out - target).square()
        if batch.mask is not None:
            errors = errors * batch.mask
        weighted = errors.flatten(1).mean(1) * path.half_log_snr_at(t).exp().to(x.dtype)
        if self.log_variance is not None:
            u = self.log_variance(path, t)
            weighted = weighted * (-u).exp() + u
        return {"loss": weighted.mean(), "tangent": size.mean()}

    @torch.no_grad()
    def _velocity(self, situation: Situation, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x̂' of the data, or of the teacher."""
        path, teacher = situation.path, situation.teacher
        if teacher is None:
            angle = angle_at(path, t)
            return (
                path.sigma_data * spread(angle.cos(), x) * noise - spread(angle.sin(), x) * situation.batch.x0
            )
        taught = rotation_field(teacher, x, t)
        if self.guidance is not None:
            free = rotation_field(without_label(teacher, self.guidance.null_label), x, t)
            taught = torch.lerp(free, taught, self.guidance.scale)
        return path.sigma_data * taught


class ContinuousConsistencyTraining(TrajectoryDistillation):
    """Train a student by `ContinuousConsistency`, and its log-variance with it."""

    rule: ContinuousConsistency

    def phases(self) -> tuple[Phase, ...]:
        """One phase, "train", of the student and the log-variance."""
        heads = () if self.rule.log_variance is None else (LOG_VARIANCE,)
        return (Phase("train", self._loss, trains=(STUDENT, *heads), optimizer=self.optimizer),)

    def modules(self) -> dict[str, nn.Module]:
        """The log-variance, and what `TrajectoryDistillation` has."""
        head = self.rule.log_variance
        return {**super().modules(), **({} if head is None else {LOG_VARIANCE: head})}
