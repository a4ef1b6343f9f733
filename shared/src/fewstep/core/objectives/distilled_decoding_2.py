"""Distilled Decoding 2: score distillation of every token, conditioned on the tokens before it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.clock import clock_at
from fewstep.core.mixture_flow import MixtureFlow
from fewstep.core.objectives.distilled_decoding import AskTokens
from fewstep.core.objectives.sample_batch import normal_like
from fewstep.core.objectives.times import TimeSampler, Uniform
from fewstep.core.training import Moment, Objective, Phase, SinglePhase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Losses, MakeOptimizer, Networks

FAKE = "fake"


class TokenTeacher:
    """An autoregressive model's exact conditional denoiser of every token's embedding.

    D_i(x, t | q_1 … q_{i−1}) is that of the `MixtureFlow` with the probabilities p(· | q_1 … q_{i−1}).

    Args:
        model: log-probabilities, see `AskTokens`; frozen if it is a module.
        flow: over the embeddings of the model's tokens.
    """

    def __init__(self, model: AskTokens, flow: MixtureFlow) -> None:
        self.model, self.flow = model, flow
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)

    def nearest(self, x: Tensor) -> Tensor:
        """The token whose embedding lies closest to each of (batch, n, features)."""
        points = self.flow.embeddings.to(x)
        return (x @ points.T - points.square().sum(-1) / 2).argmax(-1)

    @torch.no_grad()
    def x0(self, x: Tensor, t: Tensor, tokens: Tensor, label: Tensor | None) -> Tensor:
        """D_i of every place: states (batch, n, features), times (batch, n), tokens (batch, n)."""
        log_p = self.model(tokens) if label is None else self.model(tokens, label)
        return self.flow.x0(x, t, log_p)

    def modules(self) -> tuple[nn.Module, ...]:
        """The model, if it is a module."""
        return (self.model,) if isinstance(self.model, nn.Module) else ()


class ConditionalScoreDistillation(Objective):
    """Train a one-step generator by the difference of two conditional scores at every token.

    With x̂ = ê_1 … ê_n of the student from noise alone, q̂ its nearest tokens, and x_t = a·x̂ + sigma·eps with
    a time and noise of its own for every token,

        g = (D_fake(x_t, t | q̂_{<i}) − D_teacher(x_t, t | q̂_{<i}))/mean|x̂ − D_teacher|,
        student: ½·mean (x̂ − sg[x̂ − g])²,        fake: mean ‖D_fake(x_t, t | q̂_{<i}) − sg x̂‖²,

    the mean in the normaliser over the tokens and features of a sample. D_teacher is exact (`TokenTeacher`).
    A gradient reaches each token through its own term only: how it changes what follows is the matter of
    the later tokens' terms, whose condition is held fixed. Where every conditional law agrees, so does the
    whole.

    A batch is a mapping with "noise" (batch, n, features), or "tokens" (batch, n), of which only the size is
    used; and "label" if the networks have classes.

    Args:
        teacher: see TokenTeacher.
        fake: fake(x, t, before, label) gives x0. A `MixtureDenoiser` with a copy of the model begins as the
            teacher itself; another network, such as `ConditionalDenoiser`, should begin as one that was
            trained with `ConditionalScoreMatching`.
        fake_updates: updates of the fake for each of the student.
        begins: share of the run in which the student stands still, so that the fake learns its samples first.
        times: of the noised tokens (None: uniform).
        fake_optimizer: of the fake (None: that of the run).

    Raises:
        ValueError: fake_updates is below 1, or begins is not in [0, 1).

    Reference: Liu et al. 2025, "Distilled Decoding 2: One-step Sampling of Image Auto-regressive Models with
        Conditional Score Distillation"; the normaliser is that of Yin et al. 2024 (DMD), eq. 8.
    """

    def __init__(
        self,
        teacher: TokenTeacher,
        fake: nn.Module,
        *,
        fake_updates: int = 5,
        begins: float = 0.0,
        times: TimeSampler | None = None,
        fake_optimizer: MakeOptimizer | None = None,
    ) -> None:
        if fake_updates < 1:
            raise ValueError(f"fake_updates must be at least 1, got {fake_updates}")
        if not 0 <= begins < 1:
            raise ValueError(f"begins must be in [0, 1), got {begins!r}")
        self.begins = begins
        self.teacher, self.fake, self.fake_updates = teacher, fake, fake_updates
        self.times, self.fake_optimizer = times or Uniform(), fake_optimizer

    def phases(self) -> tuple[Phase, ...]:
        """ "fake", then "student"."""
        fake = Phase(FAKE, self._fake_loss, (FAKE,), self.fake_updates, self.fake_optimizer)
        return (fake, Phase(STUDENT, self._student_loss))

    def modules(self) -> dict[str, nn.Module]:
        """The fake."""
        return {FAKE: self.fake}

    def frozen(self) -> tuple[nn.Module, ...]:
        """The teacher's model."""
        return self.teacher.modules()

    def _student_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        noise, label = self._read(batch, generator)
        made = networks[STUDENT](noise, None, label)[1].to(noise.dtype)
        with torch.no_grad():
            tokens = self.teacher.nearest(made)
            x, t, told = _noised(self.teacher.flow, made, self.times, generator)
            before = self.teacher.flow.embeddings.to(made)[tokens]
            fake = networks[FAKE](x, told, before, label).to(made.dtype)
            real = self.teacher.x0(x, t, tokens, label)
            scale = (made - real).abs().flatten(1).mean(1).clamp_min(1e-6)
            step = (fake - real) / scale[:, None, None]
        loss = 0.5 * (made - (made - step).detach()).square().mean()
        if moment.progress < self.begins:
            loss = 0.0 * loss
        return {"loss": loss, "score_difference": (fake - real).square().mean()}

    def _fake_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        noise, label = self._read(batch, generator)
        with torch.no_grad():
            made = networks[STUDENT](noise, None, label)[1].to(noise.dtype)
            before = self.teacher.flow.embeddings.to(made)[self.teacher.nearest(made)]
            x, _, told = _noised(self.teacher.flow, made, self.times, generator)
        return (networks[FAKE](x, told, before, label).to(made.dtype) - made).square().mean()

    def _read(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch must be a mapping with 'noise' or 'tokens', not {type(batch).__name__}")
        noise = batch.get("noise")
        if noise is None:
            if "tokens" not in batch:
                raise ValueError(f"batch must hold 'noise' or 'tokens'; it holds {', '.join(batch)}")
            tokens, points = batch["tokens"], self.teacher.flow.embeddings
            like = torch.empty(*tokens.shape, points.shape[1], dtype=points.dtype, device=tokens.device)
            noise = normal_like(like, generator)
        return noise, batch.get("label")


class ConditionalScoreMatching(SinglePhase):
    """Teach a conditional denoiser the teacher's exact one, on the tokens of the data.

    loss = mean ‖D(x_t, t | q_{<i}) − D_teacher(x_t, t | q_{<i})‖²,  x_t = a·e(q_i) + sigma·eps.

    This turns the weights of an autoregressive model into the start of `ConditionalScoreDistillation`'s fake.
    A batch is a mapping with "tokens" (batch, n) and "label" if the networks have classes.

    Args:
        teacher: see TokenTeacher.
        times: None: uniform.

    Reference: Liu et al. 2025, "Distilled Decoding 2".
    """

    def __init__(self, teacher: TokenTeacher, times: TimeSampler | None = None) -> None:
        self.teacher, self.times = teacher, times or Uniform()

    def frozen(self) -> tuple[nn.Module, ...]:
        """The teacher's model."""
        return self.teacher.modules()

    def loss(self, student: nn.Module, batch: Any, generator: torch.Generator, moment: Moment) -> Losses:
        """The loss of a batch."""
        tokens, label = batch["tokens"], batch.get("label")
        clean = self.teacher.flow.embeddings.to(tokens.device)[tokens]
        x, t, told = _noised(self.teacher.flow, clean, self.times, generator)
        wanted = self.teacher.x0(x, t, tokens, label)
        return (student(x, told, clean, label).to(clean.dtype) - wanted).square().mean()


def _noised(
    flow: MixtureFlow, clean: Tensor, times: TimeSampler, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy embeddings with a time each, the times (batch, n), and the same on the normalised clock."""
    batch, tokens = clean.shape[:2]
    t = times(flow.path, batch * tokens, generator, clean.device)
    x = flow.path.corrupt(clean.flatten(0, 1), t, normal_like(clean.flatten(0, 1), generator))
    told = clock_at(flow.path, t).to(clean.dtype)
    return (
        x.unflatten(0, (batch, tokens)),
        t.unflatten(0, (batch, tokens)),
        told.unflatten(0, (batch, tokens)),
    )
