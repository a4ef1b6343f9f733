"""Optimal boundary conditions: search the start of a sampler once, on references, and use it ever after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.files import atomic_path
from fewstep.core.noise import SampleNoise
from fewstep.core.weights import CheckpointError, load_state_dict_file

Objective = Callable[[Tensor], Tensor]
FAMILIES = ("point", "pixel", "channel")
METHODS = ("gradient", "evolution")


@dataclass(frozen=True, eq=False)
class BestStart:
    """A start x_T = shift + scale·noise; the shift is repeated periodically where the samples are larger.

    Attributes:
        shift: shape (1, channels, ...).
        scale: of the noise; 0 for one fixed start.
        losses: objective at every step of the search.
    """

    shift: Tensor
    scale: float
    losses: tuple[float, ...] = ()

    def draw(
        self,
        shape: Sequence[int],
        seed: int | Sequence[int] = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "batch *rest"]:
        """Starts to be passed to `sample` as x.

        Args:
            shape: (batch, channels, ...).
            seed: sample i draws from seed + i; or one seed per sample.
            dtype: of the result.
            device: where it lies.

        Raises:
            ValueError: if the shape does not fit the shift.
        """
        if len(shape) != self.shift.ndim or self.shift.shape[1] not in (1, shape[1]):
            raise ValueError(
                f"shape {tuple(shape)} does not fit the start of shape {tuple(self.shift.shape)}"
            )
        noise = torch.zeros(tuple(shape), dtype=dtype, device=device)
        if self.scale != 0.0:
            SampleNoise(seed, shape[0], device).fill(noise)
        shift = self.shift.to(noise)
        for axis, size in enumerate(shape[2:], 2):
            shift = shift.index_select(axis, torch.arange(size, device=device) % shift.shape[axis])
        return shift + self.scale * noise

    def save(self, file: str | File) -> None:
        """Write shift, scale and losses as safetensors."""
        tensors = {
            "shift": self.shift.detach().cpu().contiguous(),
            "scale": torch.tensor(self.scale, dtype=torch.float64),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        with atomic_path(file) as temporary:
            save_file(tensors, temporary)

    @staticmethod
    def load(file: str | File) -> "BestStart":
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        found = load_state_dict_file(file)
        if found.keys() != {"shift", "scale", "losses"}:
            raise CheckpointError(f"{file} is not a start: it holds {', '.join(sorted(found))}")
        return BestStart(found["shift"], float(found["scale"]), tuple(found["losses"].tolist()))


def best_start(
    objective: Objective,
    shape: Sequence[int],
    *,
    family: str = "channel",
    method: str = "gradient",
    scale: float = 1.0,
    steps: int = 100,
    lr: float = 0.05,
    population: int = 8,
    radius: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> BestStart:
    """Minimise an objective over starts x_T = shift + scale·noise.

    The objective sees starts of `shape` with the same noise every time; the search moves the shift by Adam.
    "gradient" differentiates the objective (through `sample(..., grad=True)`); "evolution" needs values only:
    from pairs of opposite perturbations d_k of length `radius` it takes
        g = mean over k of (f(shift + radius·d_k) − f(shift − radius·d_k))/(2·radius)·d_k,
    2·population evaluations a step. The shift with the lowest objective that was seen is returned.

    Args:
        objective: starts (batch, channels, ...) -> scalar loss, such as the error of the samples against
            references.
        shape: of the starts.
        family: "point" one start for all, searched from a draw; "pixel" a shift at every position, "channel"
            one number a channel.
        method: "gradient" or "evolution".
        scale: of the noise; take `path.start_weights()[1]`.
        steps: of the search.
        lr: step size of Adam.
        population: pairs of perturbations ("evolution").
        radius: their size ("evolution").
        seed: of the noise and the perturbations.
        dtype: of the starts.
        device: where they lie.

    Raises:
        ValueError: if an option is out of range, or the objective's value is not one finite number.

    Example:
        >>> from fewstep.core import paths, sample
        >>> path = paths.EDM()
        >>> ball = lambda x, t: (x + t * t * 0.5) / (1 + t * t)
        >>> loss = lambda x: (sample(ball, path, steps=2, x=x, grad=True) - 2).square().mean()
        >>> found = best_start(loss, (4, 1, 2, 2), scale=80.0, steps=60, lr=3.0)
        >>> found.losses[-1] < found.losses[0]
        True

    Reference: Ma, Yang, Yang, Fu and Liu 2024, "Solving Diffusion ODEs with Optimal Boundary Conditions for
        Better Image Super-Resolution" (their search is `best_candidate`).
    """
    _check(family, method, steps, lr, population, radius)
    noise = torch.zeros(tuple(shape), dtype=dtype, device=device)
    SampleNoise(seed, shape[0], device).fill(noise)
    shift = torch.zeros((1, *shape[1:]), dtype=dtype, device=device)
    if family == "point":
        shift, scale = scale * noise[:1], 0.0
    if family == "channel":
        shift = shift[(slice(None), slice(None), *[slice(0, 1)] * (len(shape) - 2))].clone()
    generator = torch.Generator(device).manual_seed(seed)
    shift.requires_grad_()
    adam = torch.optim.Adam([shift], lr=lr)
    best, losses = shift.detach().clone(), []

    def value(at: Tensor) -> Tensor:
        loss = objective(at + scale * noise)
        if loss.numel() != 1 or not bool(torch.isfinite(loss)):
            raise ValueError(f"objective must return one finite number, it returned {loss}")
        return loss.reshape(())

    def evolved() -> Tensor:
        total = torch.zeros_like(shift)
        for _ in range(population):
            d = torch.randn(shift.shape, dtype=dtype, device=device, generator=generator)
            total += (value(shift + radius * d) - value(shift - radius * d)) / (2 * radius) * d
        return total / population

    for _ in range(steps + 1):
        with torch.set_grad_enabled(method == "gradient"):
            loss = value(shift)
        losses.append(float(loss.detach()))
        if losses[-1] == min(losses):
            best = shift.detach().clone()
        if method == "gradient":
            (shift.grad,) = torch.autograd.grad(loss, [shift])
        else:
            with torch.no_grad():
                shift.grad = evolved()
        adam.step()
    return BestStart(best, scale, tuple(losses))


def best_candidate(
    distance: Callable[[Tensor, range], Tensor | float],
    shape: Sequence[int],
    references: int,
    *,
    candidates: int = 256,
    halvings: int = 3,
    scale: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> BestStart:
    """Draw starts and keep the one whose samples lie nearest to the references on average.

    x_T* = argmin over the candidates of the mean distance. Bad candidates are dropped early: 2^−halvings of
    the references are tried with all of them, then twice as many with the better half, and so on.

    Args:
        distance: (start of shape (1, channels, ...), range of references) -> sum of the distances between the
            samples from that start and those references.
        shape: of one start, (1, channels, ...).
        references: how many there are.
        candidates: how many starts are drawn; candidate i comes from seed + i.
        halvings: rounds in which half of them are dropped.
        scale: standard deviation of a start; take `path.start_weights()[1]`.
        seed: of the first candidate.
        dtype: of the starts.
        device: where they lie.

    Returns:
        One fixed start; its losses are the candidates' mean distances on all references, the best first.

    Raises:
        ValueError: if a number is out of range.

    Reference: Ma, Yang, Yang, Fu and Liu 2024, "Solving Diffusion ODEs with Optimal Boundary Conditions for
        Better Image Super-Resolution"; the halving of the candidates is ours.
    """
    if candidates < 1 or references < 1 or halvings < 0:
        raise ValueError(
            "candidates and references must be at least 1 and halvings not negative; "
            f"they are {candidates}, {references} and {halvings}"
        )
    if len(shape) < 2 or shape[0] != 1:
        raise ValueError(f"shape must be that of one start, (1, channels, ...), not {tuple(shape)}")

    def start(i: int) -> Tensor:
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
        SampleNoise([seed + i], 1, device).fill(out)
        return scale * out

    total = dict.fromkeys(range(candidates), 0.0)
    done = 0
    for left in range(halvings, -1, -1):
        part = range(done, max(references >> left, 1))
        with torch.no_grad():
            for i in total if part else ():
                total[i] += float(distance(start(i), part))
        done = max(done, part.stop)
        order = sorted(total, key=total.__getitem__)
        total = {i: total[i] for i in order[: (len(order) + 1) // 2 if left else None]}
    best = next(iter(total))
    return BestStart(start(best), 0.0, tuple(value / references for value in total.values()))


def _check(family: str, method: str, steps: int, lr: float, population: int, radius: float) -> None:
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(map(repr, FAMILIES))}, not {family!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, not {method!r}")
    if steps < 1 or population < 1:
        raise ValueError(f"steps and population must be at least 1; they are {steps} and {population}")
    if not (lr > 0.0 and radius > 0.0):
        raise ValueError(f"lr and radius must be above 0; they are {lr} and {radius}")
