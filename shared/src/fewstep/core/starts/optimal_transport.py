"""DPM-OT: noise is mapped straight to stored latents by semi-discrete optimal transport."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.files import atomic_path
from fewstep.core.weights import CheckpointError, load_state_dict_file

SOURCES: dict[str, Callable[..., Tensor]] = {"normal": torch.randn, "uniform": torch.rand}


@dataclass(frozen=True, eq=False)
class TransportMap:
    """The Brenier map T(x) = y_i, i = argmax over i of <y_i, x> + h_i, from noise to n stored latents.

    The latents are states a few steps before the clean end; sampling goes on from T(noise) with those steps,
    `sample(denoise, path, ..., grid=(the last times), x=transport(noise))`.

    Attributes:
        targets: y, shape (n, ...).
        heights: h, shape (n,), the Brenier potential's intercepts.
        source: the noise for which h was found, "normal" or "uniform" (on [0, 1]).
        angles: least and largest angle between the facets of the two best targets, seen on source noise.
        error: norm of the difference between the cells' masses and 1/n when the search ended.

    Reference: Li, Li, Wang, Lei, Luo and Gu 2023, "DPM-OT".
    """

    targets: Tensor
    heights: Tensor
    source: str = "normal"
    angles: tuple[float, float] = (0.0, 0.0)
    error: float = 0.0

    def __call__(self, x: Float[Tensor, "batch *rest"], block: int = 4096) -> Float[Tensor, "batch *rest"]:
        """The stored latent of every noise sample."""
        return self.targets[self.nearest(x, 1, block)[:, 0].to(self.targets.device)].to(x)

    def nearest(
        self, x: Float[Tensor, "batch *rest"], count: int = 1, block: int = 4096
    ) -> Int[Tensor, "batch count"]:
        """Indices of the `count` targets with the largest <y_i, x> + h_i, the best first.

        Args:
            x: noise, shaped like the targets.
            count: how many.
            block: targets held in memory at a time.

        Raises:
            ValueError: if the shapes do not fit or there are not so many targets.
        """
        if x.shape[1:] != self.targets.shape[1:]:
            raise ValueError(
                f"x must have shape (batch, *{tuple(self.targets.shape[1:])}), not {tuple(x.shape)}"
            )
        if not 1 <= count <= len(self.targets):
            raise ValueError(f"count must be between 1 and {len(self.targets)}, got {count}")
        return _nearest(x.flatten(1), self.targets.flatten(1), self.heights, count, block)

    def blend(
        self,
        x: Float[Tensor, "batch *rest"],
        count: int = 2,
        weight: float = 0.5,
        threshold: float = 0.7,
        block: int = 4096,
    ) -> Float[Tensor, "batch *rest"]:
        """Latents between the stored ones: (1 − weight)·y_best + weight·mean of its neighbours.

        Neighbours across a singular set (another mode) are left out: those whose facet makes an angle with
        the best one's, scaled by `angles` to 0 … 1, above the threshold. Without any left it is y_best.

        Args:
            x: noise, shaped like the targets.
            count: the best target and count − 1 neighbours.
            weight: share of the neighbours, 0 to 1.
            threshold: of the scaled angle; 0.7 as published.
            block: targets held in memory at a time.

        Raises:
            ValueError: if weight or count is out of range.
        """
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight must lie between 0 and 1, not {weight}")
        indices = self.nearest(x, count, block).to(self.targets.device)
        flat = self.targets.flatten(1)
        low, high = self.angles
        scaled = (_angles(flat, indices) - low) / max(high - low, 1e-12)
        near = (scaled <= threshold).to(flat.dtype)
        best, total = flat[indices[:, 0]], near.sum(1, keepdim=True)
        mean = (near[..., None] * flat[indices[:, 1:]]).sum(1) / total.clamp_min(1.0)
        out = torch.where(total > 0, torch.lerp(best, mean, weight), best)
        return out.reshape(x.shape).to(x)

    def save(self, file: str | File) -> None:
        """Write the map as safetensors."""
        tensors = {
            "targets": self.targets,
            "heights": self.heights,
            "uniform": torch.tensor(self.source == "uniform"),
            "numbers": torch.tensor([*self.angles, self.error], dtype=torch.float64),
        }
        with atomic_path(file) as temporary:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)

    @staticmethod
    def load(file: str | File) -> "TransportMap":
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        found = load_state_dict_file(file)
        if found.keys() != {"targets", "heights", "uniform", "numbers"}:
            raise CheckpointError(f"{file} is not a transport map: it holds {', '.join(sorted(found))}")
        low, high, error = found["numbers"].tolist()
        source = "uniform" if bool(found["uniform"]) else "normal"
        return TransportMap(found["targets"], found["heights"], source, (low, high), error)


def fit_transport(
    targets: Float[Tensor, "n *rest"],
    *,
    source: str = "normal",
    iterations: int = 10_000,
    lr: float = 0.1,
    samples: int | None = None,
    tolerance: float = 8e-4,
    patience: int = 50,
    block: int = 4096,
    seed: int = 0,
    on_step: Callable[[int, float, int], None] | None = None,
) -> TransportMap:
    """Find the heights h for which every target receives the same share of the noise.

    The gradient of the Brenier energy is the mass of the cells minus 1/n; the masses are counted on fresh
    noise, and Adam (0.9, 0.999, no bias correction) follows it. After `patience` steps without progress the
    samples are doubled and lr shrinks by 0.8, three times at most.

    Args:
        targets: latents, shape (n, ...).
        source: "normal" noise, or "uniform" on [0, 1] as published.
        iterations: at most.
        lr: of Adam, in units of <y, x>.
        samples: noise samples a step; 10·n by default.
        tolerance: it stops when the gradient's norm is below and no cell is empty.
        patience: steps without progress before more samples are drawn.
        block: targets held in memory at a time, and samples drawn at a time.
        seed: of the noise.
        on_step: called with (step, gradient norm, empty cells).

    Returns:
        The map with the heights of the smallest gradient seen.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> line = torch.tensor([[-2.0], [0.0], [1.0], [5.0]])
        >>> transport = fit_transport(line, source="uniform", iterations=300, samples=4000, tolerance=0.02)
        >>> transport(torch.tensor([[0.1], [0.4], [0.6], [0.9]])).flatten()  # in their order
        tensor([-2.,  0.,  1.,  5.])

    Reference: Li, Li, Wang, Lei, Luo and Gu 2023, "DPM-OT" (the search of their code).
    """
    _check(targets, source, iterations, lr, samples, tolerance, patience, block)
    flat, count = targets.flatten(1), len(targets)
    size = 10 * count if samples is None else samples
    generator = torch.Generator(flat.device).manual_seed(seed)

    def noise(many: int) -> Tensor:
        return SOURCES[source](many, flat.shape[1], dtype=flat.dtype, device=flat.device, generator=generator)

    def masses(heights: Tensor) -> Tensor:
        total = torch.zeros(count, dtype=torch.float64, device=flat.device)
        for begin in range(0, size, block):
            hit = _nearest(noise(min(block, size - begin)), flat, heights, 1, block)[:, 0]
            total += torch.bincount(hit, minlength=count)
        return total / size

    heights = torch.zeros(count, dtype=torch.float64, device=flat.device)
    first, second = torch.zeros_like(heights), torch.zeros_like(heights)
    best, best_error, record, stalled, doubled = heights, float("inf"), float("inf"), 0, 0
    for step in range(iterations):
        mass = masses(heights)
        gradient = mass - 1.0 / count
        error, empty = float(gradient.norm()), int((mass == 0).sum())
        if error < best_error:
            best, best_error = heights, error
        if on_step is not None:
            on_step(step, error, empty)
        if error < tolerance and empty == 0:
            break
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        heights = heights - lr * first / (second.sqrt() + 1e-8)
        heights = heights - heights.mean()
        record, stalled = (error, 0) if error < record else (record, stalled + 1)
        if stalled > patience and doubled < 3:
            size, lr, record, stalled, doubled = 2 * size, 0.8 * lr, float("inf"), 0, doubled + 1
    heights = best.to(flat.dtype)
    angles = _angles(flat, _nearest(noise(max(count, 256)), flat, heights, min(2, count), block))
    limits = (float(angles.min()), float(angles.max())) if angles.numel() else (0.0, 0.0)
    return TransportMap(targets, heights, source, limits, best_error)


def _nearest(x: Tensor, flat: Tensor, heights: Tensor, count: int, block: int) -> Tensor:
    """Indices of the largest <y, x> + h, over blocks of targets."""
    best = indices = None
    for begin in range(0, len(flat), block):
        part = slice(begin, begin + block)
        scores = x.to(flat) @ flat[part].T + heights[part].to(flat)
        value, index = scores.topk(min(count, scores.shape[1]), dim=1)
        index = index + begin
        if best is not None and indices is not None:
            value, index = torch.cat([best, value], 1), torch.cat([indices, index], 1)
            value, chosen = value.topk(min(count, value.shape[1]), dim=1)
            index = index.gather(1, chosen)
        best, indices = value, index
    assert indices is not None
    return indices


def _angles(flat: Tensor, indices: Tensor) -> Tensor:
    """Angles between the facet (y, −1) of the first target and those of the others, (batch, count − 1)."""
    facet = torch.cat([flat, -torch.ones_like(flat[:, :1])], 1)
    facet = facet / facet.norm(dim=1, keepdim=True)
    cosine = (facet[indices[:, :1]] * facet[indices[:, 1:]]).sum(-1)
    return cosine.clamp(-1.0, 1.0).acos()


def _check(
    targets: Tensor,
    source: str,
    iterations: int,
    lr: float,
    samples: int | None,
    tolerance: float,
    patience: int,
    block: int,
) -> None:
    if targets.ndim < 2 or len(targets) < 1 or not targets.is_floating_point():
        raise ValueError(f"targets must be floating-point latents (n, ...), got shape {tuple(targets.shape)}")
    if source not in SOURCES:
        raise ValueError(f"source must be 'normal' or 'uniform', not {source!r}")
    whole = {
        "iterations": iterations,
        "patience": patience,
        "block": block,
        "samples": 1 if samples is None else samples,
    }
    for name, value in whole.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not (lr > 0.0 and tolerance > 0.0):
        raise ValueError(f"lr and tolerance must be above 0; they are {lr} and {tolerance}")
