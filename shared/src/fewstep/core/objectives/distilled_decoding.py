"""Distilled Decoding: an autoregressive model's tokens from noise, in one call or a few."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from fewstep.core.mixture_flow import MixtureFlow
from fewstep.core.training import Moment, SinglePhase

AskTokens = Callable[..., Tensor]
"""model(tokens (batch, n)[, label]) → log p(q_i | q_1 … q_{i−1}), (batch, n, codes)"""


@torch.no_grad()
def decode(
    model: AskTokens,
    flow: MixtureFlow,
    noise: Float[Tensor, "batch tokens features"],
    label: Shaped[Tensor, "batch"] | None = None,
    steps: int = 64,
) -> Int[Tensor, "batch tokens"]:
    """The tokens to which an autoregressive model's flows carry a sequence of noise: one call per token.

    q_i = the point of the flow of p(· | q_1 … q_{i−1}) that eps_i belongs to. For standard normal noise the
    tokens are a sample of the model; the same noise gives the same tokens.

    Args:
        model: see `AskTokens`; called with the tokens up to the one that is asked for (whose own value must
            not matter).
        flow: over the embeddings of the model's tokens.
        noise: standard normal.
        label: class of each sample, for a model with classes.
        steps: of the flow's ODE.

    Reference: Liu et al. 2024, "Distilled Decoding 1", section 3.3.
    """
    tokens = torch.zeros(noise.shape[:2], dtype=torch.long, device=noise.device)
    told = () if label is None else (label,)
    for place in range(noise.shape[1]):
        log_p = model(tokens[:, : place + 1], *told)[:, place]
        tokens[:, place] = flow.tokens(noise[:, place], log_p, steps)
    return tokens


@torch.no_grad()
def generate(
    student: nn.Module,
    codebook: Float[Tensor, "codes features"],
    noise: Float[Tensor, "batch tokens features"],
    starts: Sequence[int] = (0,),
    label: Shaped[Tensor, "batch"] | None = None,
) -> Int[Tensor, "batch tokens"]:
    """Tokens of a student, one call per entry of `starts`.

    The call with start k is told the tokens before k that the call before it made, and the noise of the
    others; it makes all tokens from k on anew.

    Args:
        student: student(x, known, label) → (logits, embeddings), such as `TokenGenerator`.
        codebook: embeddings of the tokens.
        noise: standard normal.
        starts: increasing, from 0.
        label: class of each sample.

    Raises:
        ValueError: starts do not increase from 0, or reach the end of the sequence.
    """
    _check_starts(starts, noise.shape[1])
    tokens = torch.zeros(noise.shape[:2], dtype=torch.long, device=noise.device)
    for start in starts:
        x, known = mixed(tokens, noise, codebook, torch.full((len(noise),), start, device=noise.device))
        logits, _ = student(x, known, label)
        tokens = torch.where(known, tokens, logits.argmax(-1))
    return tokens


def mixed(
    tokens: Int[Tensor, "batch tokens"],
    noise: Float[Tensor, "batch tokens features"],
    codebook: Float[Tensor, "codes features"],
    start: Shaped[Tensor, "batch"],
) -> tuple[Float[Tensor, "batch tokens features"], Shaped[Tensor, "batch tokens"]]:
    """The state (e(q_1) … e(q_k), eps_{k+1} …) with k = start, and which of its places are tokens."""
    known = torch.arange(noise.shape[1], device=noise.device) < start[:, None]
    return torch.where(known[..., None], codebook[tokens].to(noise), noise), known


@dataclass(frozen=True)
class DistilledDecoding(SinglePhase):
    """Predict the tokens that a sequence of noise belongs to, from any of a few states on the way.

    With (logits, ê) of the student in the state (e(q_1) … e(q_k), eps_{k+1} … eps_n), k one of `starts`,

        loss = mean over i > k of  w_ce·CE(logits_i, q_i) + w_e·‖ê_i − e(q_i)‖²/features.

    The paper's second term is LPIPS of the decoded picture; an own `picture_distance` takes its place.

    A batch is a mapping with "tokens" (batch, n) and "noise" (batch, n, features), a pair that `decode` made,
    and "label" if the student has classes.

    Args:
        codebook: embeddings of the tokens, (codes, features).
        starts: states that the student may be asked in, each as likely as any other; (0,) is one-step.
        cross_entropy: w_ce.
        regression: w_e.
        picture_distance: distance(ê, e(q)) → (batch,), added with weight 1, such as LPIPS of decoded
            pictures; places before k hold the given tokens. None: none.

    Raises:
        ValueError: starts do not increase from 0, or the weights are negative or all zero.

    Reference: Liu et al. 2024, "Distilled Decoding 1", algorithm 1.
    """

    codebook: Tensor
    starts: tuple[int, ...] = (0,)
    cross_entropy: float = 1.0
    regression: float = 1.0
    picture_distance: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        _check_starts(self.starts)
        weights = (self.cross_entropy, self.regression)
        if min(weights) < 0 or (max(weights) == 0 and self.picture_distance is None):
            raise ValueError(f"cross_entropy and regression must be weights, not all zero, got {weights}")

    def loss(self, student: nn.Module, batch: Any, generator: torch.Generator, moment: Moment):
        """The loss, its two parts and the share of right tokens."""
        tokens, noise, label = read_pairs(batch)
        _check_starts(self.starts, tokens.shape[1])
        codebook = self.codebook.to(noise)
        chosen = torch.randint(len(self.starts), (len(tokens),), device=noise.device, generator=generator)
        start = torch.tensor(self.starts, device=noise.device)[chosen]
        x, known = mixed(tokens, noise, codebook, start)
        logits, made = student(x, known, label)
        wanted, unknown = codebook[tokens], (~known).to(noise.dtype)
        crosses = F.cross_entropy(logits.transpose(1, 2).to(noise.dtype), tokens, reduction="none")
        squares = (made.to(noise.dtype) - wanted).square().mean(-1)
        right = (logits.argmax(-1) == tokens).to(noise.dtype)
        parts = {
            name: ((values * unknown).sum(1) / unknown.sum(1)).mean()
            for name, values in (("cross_entropy", crosses), ("regression", squares), ("right", right))
        }
        loss = self.cross_entropy * parts["cross_entropy"] + self.regression * parts["regression"]
        if self.picture_distance is not None:
            whole = torch.where(known[..., None], wanted, made.to(noise.dtype))
            loss = loss + self.picture_distance(whole, wanted).mean()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


def read_pairs(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """tokens, noise and label (or None) of a batch.

    Raises:
        TypeError: the batch is no mapping.
        ValueError: "tokens" or "noise" is missing, or they do not fit each other.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch must be a mapping with 'tokens' and 'noise', not {type(batch).__name__}")
    for name in ("tokens", "noise"):
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(f"batch must hold the tensor {name!r}; it holds {', '.join(map(str, batch))}")
    tokens, noise = batch["tokens"], batch["noise"]
    if noise.ndim != 3 or noise.shape[:2] != tokens.shape:
        shapes = f"{tuple(noise.shape)} and {tuple(tokens.shape)}"
        raise ValueError(f"noise must be (batch, n, features) for tokens of (batch, n), got {shapes}")
    return tokens, noise, batch.get("label")


def _check_starts(starts: Sequence[int], tokens: int | None = None) -> None:
    grows = all(a < b for a, b in pairwise(starts))
    if not starts or starts[0] != 0 or not grows:
        raise ValueError(f"starts must increase from 0, got {tuple(starts)}")
    if tokens is not None and starts[-1] >= tokens:
        raise ValueError(f"starts must lie before the end of {tokens} tokens, got {tuple(starts)}")
