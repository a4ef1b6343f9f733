"""Optimal boundary conditions: one start noise, found once on a reference set, for every image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.files import atomic_path
from fewstep.core.noise import SampleNoise
from fewstep.core.starts.boundary import best_candidate
from fewstep.core.weights import CheckpointError, load_state_dict_file

from .methods.base import Noise, RestorationModel, check_name

BOUNDARY = "boundary.safetensors"
Metric = Callable[[Tensor, Tensor], Tensor]
"""Restored and true images (batch, 3, h, w) in [-1, 1] → one distance per image."""
Pair = tuple[Tensor, Tensor]
"""Input (3, h, w) and truth (3, scale·h, scale·w) in [-1, 1]."""


def _squared(restored: Tensor, truth: Tensor) -> Tensor:
    return (restored - truth).square().flatten(1).mean(1)


def _absolute(restored: Tensor, truth: Tensor) -> Tensor:
    return (restored - truth).abs().flatten(1).mean(1)


METRICS: dict[str, Metric] = {"squared": _squared, "absolute": _absolute}


@dataclass(frozen=True, eq=False)
class Boundary:
    """A start x_T*, as standard normal noise on a patch that is repeated periodically over larger states.

    Args:
        start: the patch, kept in float16; the path's scale is not in it.
        losses: mean distances of the candidates that reached the last round, the best first.

    Raises:
        ValueError: the patch is empty or is not (channels, height, width).

    Example:
        >>> boundary = Boundary(torch.arange(4.0).reshape(1, 2, 2))
        >>> boundary.crop((1, 0), (2, 4))[0].tolist()
        [[2.0, 3.0, 2.0, 3.0], [0.0, 1.0, 0.0, 1.0]]
    """

    start: Float[Tensor, "channels height width"]
    losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.start.ndim != 3 or not self.start.numel():
            raise ValueError(f"start must be (channels, height, width), got {tuple(self.start.shape)}")
        object.__setattr__(self, "start", self.start.detach().half())

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of what is repeated."""
        return self.start.shape[1], self.start.shape[2]

    def crop(
        self,
        origin: Sequence[int],
        size: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "channels height width"]:
        """The start in a box of the whole state.

        Args:
            origin: row and column of its first position; may be negative.
            size: height and width.
            device: where the result lies.
            dtype: of the result.
        """
        rows, columns = (
            (torch.arange(extent) + first) % period
            for first, extent, period in zip(origin, size, self.patch, strict=True)
        )
        return self.start[:, rows[:, None], columns].to(device=device, dtype=dtype)

    def over(
        self, later: Noise, places: Sequence[tuple[int, int]] = ((0, 0),), ratio: int | Fraction = 1
    ) -> Noise:
        """A `noise(like)` function whose first draw is this start and whose later draws are another source's.

        The other source is asked for its first draw too, so that step k draws what it would have drawn.

        Args:
            later: the other source.
            places: (row, column) of each tile in input pixels; a single one holds for the whole batch.
            ratio: state samples per input pixel.
        """
        origins = [(int(ratio * row), int(ratio * column)) for row, column in places]
        begun = False

        def noise(like: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
            nonlocal begun
            drawn = later(like)
            if begun:
                return drawn
            begun = True
            if like.shape[1] != len(self.start):
                raise ValueError(f"start has {len(self.start)} channels, the state has {like.shape[1]}")
            tiles = [self.crop(origin, like.shape[2:], like.device, like.dtype) for origin in origins]
            return torch.stack(tiles).expand(like.shape)

        return noise

    def save(self, folder: str | Path) -> Path:
        """Write `boundary.safetensors` beside a checkpoint and return its name."""
        file = Path(folder) / BOUNDARY
        tensors = {
            "start": self.start.cpu().contiguous(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        with atomic_path(file) as temporary:
            save_file(tensors, temporary)
        return file

    @staticmethod
    def load(file: str | Path) -> "Boundary":
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged or something else.
        """
        found = load_state_dict_file(file)
        if found.keys() != {"start", "losses"} or found["start"].ndim != 3:
            raise CheckpointError(f"{file} is no boundary: it holds {', '.join(sorted(found))}")
        return Boundary(found["start"], tuple(found["losses"].tolist()))


def boundary_beside(model: RestorationModel) -> Boundary | None:
    """The boundary in the folder that a model was loaded from; None where there is none.

    Raises:
        CheckpointError: it is damaged, or made for another number of channels.
    """
    file = None if model.folder is None else Path(model.folder) / BOUNDARY
    if file is None or not file.is_file():
        return None
    found = Boundary.load(file)
    if len(found.start) != model.state_channels:
        raise CheckpointError(
            f"{file} has {len(found.start)} channels, the model's states have {model.state_channels}"
        )
    return found


def optimize_boundary(
    model: RestorationModel,
    pairs: Sequence[Pair],
    candidates: int = 64,
    metric: str | Metric = "squared",
    batch: int = 4,
    *,
    patch: int | None = None,
    steps: int | None = None,
    solver: str | None = None,
    halvings: int = 3,
    seed: int = 0,
) -> Boundary:
    """Find the start noise with which a model's samples lie nearest to the truth on average.

    x_T* = argmin over K Gaussian candidates of the mean over references (y, x0) of distance(h(x_T | y), x0),
    h the sampler. Bad candidates are dropped by successive halving: the first 2^−halvings of the references
    are tried with all of them, then twice as many with the better half, and so on. Noise that a solver draws
    in its steps is the same for all candidates; with the solvers of ODEs ("ddim") there is none.

    Args:
        model: a model with the mode "sample".
        pairs: (input, truth) in [-1, 1]; neighbours of equal size are restored together. They should come in
            random order, because early rounds see the first ones only.
        candidates: K; candidate i comes from seed + i.
        metric: "squared", "absolute", or a function of restored and true images that gives one distance each.
        batch: references that are restored together.
        patch: side of the start in samples of the state; by default the largest side of the references'
            states, so that nothing is repeated on them.
        steps: network calls; the published number by default.
        solver: rule of the steps; the published one by default.
        halvings: rounds in which half of the candidates are dropped.
        seed: of candidates and steps.

    Returns:
        The best one; its losses are those of the candidates that reached the last round.

    Raises:
        ValueError: no pairs, a number out of range, an unknown metric, or a truth that does not fit.

    Reference: Ma, Yang, Yang, Fu & Liu 2024, "Solving Diffusion ODEs with Optimal Boundary Conditions for
        Better Image Super-Resolution", algorithm 1; the halving is ours.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one reference, got none")
    if batch < 1 or candidates < 1:
        raise ValueError(f"batch and candidates must be at least 1, got {batch} and {candidates}")
    if isinstance(metric, str):
        check_name("metric", metric, METRICS)
        metric = METRICS[metric]
    for lq, truth in pairs:
        if tuple(truth.shape[1:]) != tuple(model.scale * side for side in lq.shape[1:]):
            raise ValueError(
                f"pairs hold a truth {tuple(truth.shape)} that is not {model.scale} times {tuple(lq.shape)}"
            )
    distance, chosen = metric, model.solvers[0] if solver is None else solver
    model.steps_of("sample", steps)
    check_name("solver", chosen, model.solvers)
    if patch is None:
        patch = int(model.state_ratio * max(max(lq.shape[1:]) for lq, _ in pairs))
    device = next(model.parameters()).device

    def total(start: Tensor, part: range) -> float:
        boundary, sum_ = Boundary(start[0]), 0.0
        for indices in _groups(pairs, part, batch):
            lq = torch.stack([pairs[i][0] for i in indices]).to(device)
            truth = torch.stack([pairs[i][1] for i in indices]).to(device)
            source = SampleNoise([seed + i for i in indices], len(indices), device)
            noise = boundary.over(_drawing(source))
            restored = model.restore(lq, mode="sample", steps=steps, solver=chosen, noise=noise)
            sum_ += float(distance(restored, truth).sum())
        return sum_

    found = best_candidate(
        total,
        (1, model.state_channels, patch, patch),
        len(pairs),
        candidates=candidates,
        halvings=halvings,
        seed=seed,
    )
    return Boundary(found.shift[0], found.losses)


def _groups(pairs: Sequence[Pair], part: range, batch: int) -> Iterator[list[int]]:
    """Neighbouring references of equal size, at most `batch` together."""
    for _, same in groupby(part, key=lambda i: pairs[i][0].shape):
        indices = list(same)
        for first in range(0, len(indices), batch):
            yield indices[first : first + batch]


def _drawing(source: SampleNoise) -> Noise:
    """A noise source as a function `noise(like)`."""

    def noise(like: Tensor) -> Tensor:
        out = torch.empty_like(like)
        source.fill(out)
        return out

    return noise
