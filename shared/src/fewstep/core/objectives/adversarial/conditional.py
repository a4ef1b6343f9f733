"""Denoising diffusion GANs: a judge of neighbouring states, whose student makes large ancestral steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.conditions import condition_names
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.adversarial.losses import LogitLoss, logit_loss
from fewstep.core.objectives.adversarial.regularisers import R1, Regulariser
from fewstep.core.objectives.adversarial.transitions import Transitions
from fewstep.core.objectives.distances import Distance
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Objective, Phase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Losses, MakeOptimizer, Networks

JUDGE = "judge"
Latent = tuple[str, int]
_PENALTY = R1(0.02, every=15)


class PairJudge(nn.Module):
    """A judge of (x_s, x_t): a network's features of both side by side, and a head.

    Args:
        net: with a method `features(x, t, **conditions)`, for samples with twice the channels (vectors: twice
            the features).
        head: module (features, t) → logits.
    """

    def __init__(self, net: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.net, self.head = net, head
        self._accepted = condition_names(net.features)  # type: ignore[arg-type]

    def forward(
        self, x_s: Tensor, x_t: Tensor, t: Float[Tensor, "batch"], conditions: Mapping[str, Any]
    ) -> Float[Tensor, "batch logits"]:
        """The logits.

        Args:
            x_s: the cleaner states.
            x_t: the noisier states.
            t: the time of x_t, as the path tells it.
            conditions: by name; those that the network does not take are left out.
        """
        accepted = self._accepted
        given = {name: value for name, value in conditions.items() if accepted is None or name in accepted}
        features = self.net.features(torch.cat([x_s, x_t], dim=1), t, **given)  # type: ignore[operator]
        return self.head(features, t).flatten(1)


class DenoisingDiffusionGan(Objective):
    """Train a student to make ancestral steps of a few levels that a judge cannot tell from the real chain's.

    For neighbouring levels s < t of the same data, x_s ~ q(x_s | x0), x_t ~ q(x_t | x_s):

    judge:   real(l(x_s, x_t)) + made(l(x̂_s, x_t)) + regulariser in x_s,
    student: student(l(x̂_s, x_t)) + sum_i w_i·d_i(x̂0, x0),   x̂_s ~ q(x_s | x_t, x̂0),  x̂0 = G(x_t, t[, z]).

    Between distant levels the true q(x_s | x_t) has several modes, which the judge shows and a squared error
    averages. The terms are EMDM's geometric losses. The judge sees z/sqrt(a² + sigma²) of z = x − b·y, on
    variance-preserving paths the states themselves. Students are sampled by `ancestral` steps on the levels.

    Args:
        path: of the chain.
        prediction: of the student.
        levels: decreasing times, from the start to the clean end.
        judge: called as judge(x_s, x_t, t, conditions); see PairJudge.
        loss: "softplus", "hinge", "lsgan" or a LogitLoss.
        regulariser: of the judge.
        terms: (weight, distance) of x̂0 and x0, where the batch's mask counts.
        latent: (name, size) of a condition of the student that is standard normal noise; None: there is none.
        judge_updates: for every update of the student.
        optimizer: of the student (None: that of the run).
        judge_optimizer: of the judge (None: that of the run).

    Raises:
        ValueError: levels do not decrease to the clean end, or loss is unknown.

    Reference: Xiao, Kreis and Vahdat 2022, "Tackling the Generative Learning Trilemma with Denoising
        Diffusion GANs", eq. 3 to 8; Zhou et al. 2024, "EMDM: Efficient Motion Diffusion Model", section 3.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        levels: Sequence[float],
        judge: nn.Module,
        *,
        loss: str | LogitLoss = "softplus",
        regulariser: Regulariser | None = _PENALTY,
        terms: Sequence[tuple[float, Distance]] = (),
        latent: Latent | None = None,
        judge_updates: int = 1,
        optimizer: MakeOptimizer | None = None,
        judge_optimizer: MakeOptimizer | None = None,
    ) -> None:
        self.path, self.prediction, self.judge = path, prediction, judge
        self.steps, self.loss, self.regulariser = Transitions(path, levels), logit_loss(loss), regulariser
        self.terms, self.latent, self.judge_updates = tuple(terms), latent, judge_updates
        self.optimizer, self.judge_optimizer = optimizer, judge_optimizer

    def phases(self) -> tuple[Phase, ...]:
        """ "judge", then "student"."""
        judge = Phase(JUDGE, self._judge_loss, (JUDGE,), self.judge_updates, self.judge_optimizer)
        return judge, Phase("student", self._student_loss, optimizer=self.optimizer)

    def modules(self) -> dict[str, nn.Module]:
        """The judge."""
        return {JUDGE: self.judge}

    @torch.no_grad()
    def sample(
        self, student: FlowMap, noise: Float[Tensor, "batch *shape"], generator: torch.Generator
    ) -> Float[Tensor, "batch *shape"]:
        """The student's chain with a fresh latent in every step, which samplers without one need not have.

        Args:
            student: with its conditions.
            noise: standard normal.
            generator: of latents and noise.
        """
        x = self.steps.start(noise, student.y)
        for place in range(len(self.steps)):
            step = torch.full((len(x),), place, device=x.device)
            x0 = self._told(student, x, generator).x0(x, self.steps.time(step))
            x = self.steps.posterior(x, x0, step, normal_like(x, generator), student.y)
        return x

    def _student_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        read, step = self._read(batch, generator)
        _, x_t = self._pair(read, step, generator)
        x0, x_s = self._made(networks, read, x_t, step, generator)
        logits = self._judging(networks, read, x_t, step)(self.steps.scaled(x_s, step + 1, read.y))
        parts = {"adversarial": self.loss.student(logits).mean()}
        mask = 1.0 if read.mask is None else read.mask
        for place, (weight, distance) in enumerate(self.terms):
            parts[f"term{place}"] = weight * distance(mask * x0, mask * read.x0).mean()
        loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def _judge_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        read, step = self._read(batch, generator)
        x_s, x_t = self._pair(read, step, generator)
        with torch.no_grad():
            _, made = self._made(networks, read, x_t, step, generator)
        judge, real = self._judging(networks, read, x_t, step), self.steps.scaled(x_s, step + 1, read.y)
        on_real, on_made = judge(real), judge(self.steps.scaled(made, step + 1, read.y))
        parts = [self.loss.real(on_real).mean(), self.loss.made(on_made).mean()]
        logged = {"real": on_real.detach().mean(), "made": on_made.detach().mean()}
        penalty = None if self.regulariser is None else self.regulariser(judge, real, generator, moment)
        if penalty is not None:
            parts.append(penalty.mean())
            logged["regulariser"] = penalty.detach().mean()
        return {"loss": torch.stack(parts).sum(), **logged}

    def _read(self, batch: Batch, generator: torch.Generator) -> tuple[SampleBatch, Tensor]:
        """The batch, and a step for every sample."""
        read = SampleBatch.read(batch)
        count, device = len(read.x0), read.x0.device
        return read, torch.randint(len(self.steps), (count,), generator=generator, device=device)

    def _pair(self, read: SampleBatch, step: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise, added = normal_like(read.x0, generator), normal_like(read.x0, generator)
        return self.steps.pair(read.x0, step, noise, added, read.y)

    def _made(
        self, networks: Networks, read: SampleBatch, x_t: Tensor, step: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The student's x0, and its step to the next level."""
        student = self._told(read.flow_map(networks[STUDENT], self.path, self.prediction), x_t, generator)
        x0 = student.x0(x_t, self.steps.time(step))
        return x0, self.steps.posterior(x_t, x0, step, normal_like(x_t, generator), read.y)

    def _told(self, student: FlowMap, like: Tensor, generator: torch.Generator) -> FlowMap:
        if self.latent is None:
            return student
        name, size = self.latent
        return student.given(**{name: normal_like(like.new_empty(len(like), size), generator)})

    def _judging(
        self, networks: Networks, read: SampleBatch, x_t: Tensor, step: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Scaled states at s → logits."""
        noisy = self.steps.scaled(x_t, step, read.y)
        dtype = torch.float64 if x_t.dtype is torch.float64 else torch.float32
        told = self.path.network_time_at(self.steps.time(step)).to(dtype)

        def judge(x_s: Tensor) -> Tensor:
            return networks[JUDGE](x_s, noisy, told, read.conditions).to(x_s.dtype)

        return judge
