"""A pool of heads of which some judge at a time and some start afresh, so that none can learn by heart."""

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.training import Moment

Features = Sequence[Tensor]
_STRIDE = 1_000_003


class HeadPool(nn.Module):
    """Many heads, each for one layer of the features and one stretch of times.

    A batch is judged by `judges` heads of every stretch, drawn at random; a sample's logits are those of the
    heads of its own stretch. After every update of the judge a share of all heads gets new weights.

    Which heads, and their weights, follow from the seed and the number of the update alone: a resumed run
    and every process refresh the same heads alike. The optimiser's moments of a refreshed head stay.

    Args:
        makers: one per layer of the features: make() gives a new head, called as head([feature], t); its
            weights are drawn by torch's global generator, which is left as it was.
        count: heads for every stretch of times; at least `judges`. Layers take turns.
        judges: heads of a stretch that judge a batch.
        edges: increasing times, as the network is told, at which one stretch ends and the next begins.
        refresh_share: share of all heads that start afresh after an update; below one head it accumulates.
        seed: of everything random in the pool except the choice of judges.

    Raises:
        ValueError: a number is out of range, or edges do not increase.

    Reference: Chen et al. 2024, "NitroFusion: High-Fidelity Single-Step Diffusion through Dynamic
        Adversarial Training", section 3.2.
    """

    edges: Tensor

    def __init__(
        self,
        makers: Sequence[Callable[[], nn.Module]],
        count: int = 16,
        judges: int = 4,
        edges: Sequence[float] = (),
        refresh_share: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not makers or not 1 <= judges <= count:
            raise ValueError(f"judges must lie in [1, count={count}] with at least one maker, got {judges}")
        if not 0 <= refresh_share <= 1:
            raise ValueError(f"refresh_share must lie in [0, 1], got {refresh_share}")
        if any(b <= a for a, b in itertools.pairwise(edges)):
            raise ValueError(f"edges must increase, got {tuple(edges)}")
        self.makers, self.count, self.judges = tuple(makers), count, judges
        self.refresh_share, self.seed = refresh_share, seed
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float64), persistent=False)
        self.heads = nn.ModuleList(self._made(place, 0) for place in range(count * (len(tuple(edges)) + 1)))

    def choose(
        self, generator: torch.Generator
    ) -> Callable[[Features, Shaped[Tensor, "batch"]], Float[Tensor, "batch judges"]]:
        """Draw the heads that judge a batch.

        Args:
            generator: of the draw.

        Returns:
            A function like `forward` of those heads alone.
        """
        order = torch.rand(len(self.edges) + 1, self.count, device=generator.device, generator=generator)
        # The modules are chosen on the host: one small transfer from the device.
        chosen = order.argsort(dim=1)[:, : self.judges].tolist()
        return lambda features, t: self._judged(features, t, chosen)

    def forward(self, features: Features, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch count"]:
        """The logits of all heads of each sample's stretch."""
        return self._judged(features, t, [list(range(self.count))] * (len(self.edges) + 1))

    @torch.no_grad()
    def refresh(self, moment: Moment) -> tuple[int, ...]:
        """Give a share of the heads new weights.

        Args:
            moment: of the update that has just been made.

        Returns:
            The places of those heads in `heads`.
        """
        step = moment.step + 1
        expected = self.refresh_share * len(self.heads)
        many = int(expected * step) - int(expected * (step - 1))
        draw = torch.Generator().manual_seed(_mixed(self.seed, step))
        places = torch.randperm(len(self.heads), generator=draw)[:many].tolist()
        for place in places:
            fresh = self._made(place, step).state_dict()
            self.heads[place].load_state_dict(fresh)
        return tuple(places)

    def _made(self, place: int, step: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would set the generators of the accelerators as well.
            torch.random.default_generator.manual_seed(_mixed(self.seed + 1 + place, step))
            return self.makers[self._layer(place)]()

    def _layer(self, place: int) -> int:
        return place % self.count % len(self.makers)

    def _judged(self, features: Features, t: Tensor, chosen: list[list[int]]) -> Tensor:
        if len(features) != len(self.makers):
            raise ValueError(f"the pool was made for {len(self.makers)} feature tensors, got {len(features)}")
        stretch = torch.bucketize(t.double(), self.edges.to(t.device))
        logits = None
        for number, places in enumerate(chosen):
            first = number * self.count
            each = [
                self.heads[first + place]([features[self._layer(place)]], t).flatten(1).mean(1, keepdim=True)
                for place in places
            ]
            here = torch.cat(each, dim=1)
            inside = (stretch == number).unsqueeze(1)
            logits = here if logits is None else torch.where(inside, here, logits)
        assert logits is not None
        return logits


def _mixed(seed: int, step: int) -> int:
    return (seed * _STRIDE + step) % (1 << 62)
