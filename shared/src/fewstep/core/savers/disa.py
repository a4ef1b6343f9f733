"""DiSA: fewer diffusion steps for the later tokens of an autoregressive diffusion model."""

import math
from dataclasses import dataclass

SHAPES = ("linear", "cosine", "two-stage")


@dataclass(frozen=True)
class StepAnnealing:
    """Number of diffusion steps for every autoregressive step k = 0 … K − 1.

    The first tokens are uncertain and take `most` steps; the more is known, the fewer are needed:
        linear     least + floor((K − 1 − k)/(K − 1)·(most − least))
        cosine     least + floor((cos(pi·k/(K − 1)) + 1)/2·(most − least))
        two-stage  most for the first half of the tokens, least for the others

    Args:
        most: steps of the first token; 50 as published.
        least: steps of the last; 5 as published.
        shape: "linear", "cosine" or "two-stage".
        switch: share of the tokens in the first of two stages.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> annealing = StepAnnealing(most=50, least=5)
        >>> [annealing.steps(k, 4) for k in range(4)], annealing.total(4)
        ([50, 35, 20, 5], 110)

    Reference: Zhao, Singh, Xu, Asthana, Gould and Zheng 2025, "DiSA".
    """

    most: int = 50
    least: int = 5
    shape: str = "linear"
    switch: float = 0.5

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(map(repr, SHAPES))}, not {self.shape!r}")
        if not 1 <= self.least <= self.most:
            raise ValueError(f"1 <= least <= most must hold; they are {self.least} and {self.most}")
        if not 0.0 <= self.switch <= 1.0:
            raise ValueError(f"switch must lie between 0 and 1, not {self.switch}")

    def steps(self, token: int, tokens: int) -> int:
        """Diffusion steps for autoregressive step `token` of `tokens`.

        Raises:
            ValueError: if there is no such token.
        """
        if not 0 <= token < tokens:
            raise ValueError(f"token must lie in [0, {tokens}), got {token}")
        last, range_ = max(tokens - 1, 1), self.most - self.least
        if self.shape == "two-stage":
            return self.most if token < self.switch * tokens else self.least
        if self.shape == "linear":
            return self.least + (last - token) * range_ // last
        # 1e-9: rounding must not push an exact integer below itself
        return self.least + math.floor((math.cos(math.pi * token / last) + 1) / 2 * range_ + 1e-9)

    def total(self, tokens: int) -> int:
        """Diffusion steps for all tokens together."""
        return sum(self.steps(k, tokens) for k in range(tokens))
