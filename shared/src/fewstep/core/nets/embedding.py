"""Embedding of the times and the label that modulate a network."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets.init import zeroed


class TimeEmbedding(nn.Module):
    """One vector from a time, optionally a second time, and optionally a label.

    e = MLP(waves(t)) + W·SiLU(V·waves(t − s)) + labels[label],   waves(t) = (cos f_i t, sin f_i t),

    with frequencies f_i that fall geometrically from `fastest` to `slowest`. W starts at zero, so that a
    network with a second time begins as the one without.

    A derivative of the network by t carries the factor `fastest`: losses that contain one (MeanFlow, sCM)
    fail with the frequencies of up to 1000 that are usual elsewhere.

    Args:
        width: features of the result.
        fastest: largest frequency, in radians per unit of the time that the network is told.
        slowest: smallest frequency.
        two_times: whether there is a second time.
        classes: number of labels (0: none); label `classes` means "none".
        waves: number of frequencies.
    """

    rates: Tensor

    def __init__(
        self,
        width: int,
        fastest: float,
        slowest: float,
        two_times: bool = False,
        classes: int = 0,
        waves: int = 16,
    ) -> None:
        super().__init__()
        rates = torch.logspace(math.log10(slowest), math.log10(fastest), waves)
        self.register_buffer("rates", rates, persistent=False)
        self.first = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width))
        last = zeroed(nn.Linear(width, width))
        self.second = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), last) if two_times else None
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        self.classes = classes

    def forward(
        self,
        t: Float[Tensor, "batch"],
        s: Float[Tensor, "batch"] | None = None,
        label: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        """The embedding; without s it is that of s = t, without a label that of "none"."""
        if s is not None and self.second is None:
            raise ValueError("s was given to a network with one time; build it with two_times=True")
        embedding = self.first(self._waves(t))
        if self.second is not None:
            embedding = embedding + self.second(self._waves(t - (t if s is None else s)))
        if self.labels is not None:
            none = torch.full((len(t),), self.classes, device=t.device)
            embedding = embedding + self.labels(none if label is None else label.long())
        return embedding

    def _waves(self, t: Tensor) -> Tensor:
        dtype = next(self.first.parameters()).dtype
        angle = t.to(dtype)[:, None] * self.rates.to(dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)
