"""encode and decode: an image to the noise that a sampler would have made it from, and back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import solvers
from fewstep.core.inversion import ROUNDING_TOLERANCE, inverse_growth, is_two_state, resumed
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.run import run_states
from fewstep.core.sample import Asked, Grid, path_of, times_of
from fewstep.core.solvers import FirstOrder, Solver, StepwiseSolver
from fewstep.core.step_info import OnStep


@dataclass(frozen=True)
class Encoding:
    """What `encode` found.

    Attributes:
        states: the given states of `plan`: the noise, and for a two-state map the state after it too.
        plan: leads from the states to the image.
        dtype: of the image.
    """

    states: tuple[Tensor, ...]
    plan: Plan
    dtype: torch.dtype

    @property
    def noise(self) -> Tensor:
        """The state at the noisy end of the path."""
        return self.states[0]


def encode(
    denoise: Callable[..., Tensor],
    x: Float[Tensor, "batch *rest"],
    path: Path | None = None,
    solver: str | Solver = "bdia",
    steps: int = 50,
    grid: Grid = "logsnr",
    y: Float[Tensor, "batch *rest"] | None = None,
    iterations: int = 1,
    on_step: OnStep | None = None,
) -> Encoding:
    """Find the noise from which a deterministic sampler makes an image.

    With "ddim" every step is inverted by fixed-point iteration: the round trip has an error, which falls with
    `steps` and fast with `iterations`. With "bdia" the round trip is exact up to rounding, as the pair of the
    first two states is kept; only the very first step away from the image is a DDIM inversion. The state is
    float64 where rounding errors would grow too much for float32 (gamma^−n in n steps, and with sigma where
    that is large), the network is asked in x's precision all the same. What float64 cannot save is refused.

    The noise itself is as good as the method: with gamma < 1 the error of the first step away from the image
    grows as gamma^−n too, so gamma near 1 gives latents worth editing.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0.
        x: the images, shape (batch, ...).
        path: how data becomes noise; the denoiser's own by default.
        solver: "ddim", "bdia", or another solver whose plan has an inverse.
        steps: number of steps.
        grid: as for `sample`.
        y: degraded input of a path that has one.
        iterations: fixed-point iterations of a DDIM inversion step, one network call each.
        on_step: called after every step, as for `sample`.

    Returns:
        The states and the plan with which `decode` goes back; the denoiser of `decode` may be another one.

    Raises:
        ValueError: if the solver has no inverse, gamma is too small for so many steps, or an argument is
            wrong.

    Example:
        >>> import torch
        >>> from fewstep.core import paths
        >>> ball = lambda x, t: x / (1 + t * t)  # the denoiser of unit normal data
        >>> image = torch.randn(2, 3, 4, 4)
        >>> found = encode(ball, image, paths.EDM(), steps=20)
        >>> bool((decode(ball, found) - image).abs().max() < 1e-4)
        True

    Reference: Song, Meng and Ermon 2021 (DDIM), section 4.3; Zhang, Lewis and Kleijn 2024 (BDIA), section 4.
    """
    path = path_of(denoise, path, solver)
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, its dtype is {x.dtype}")
    method = solvers.get(solver) if isinstance(solver, str) else solver
    if isinstance(method, StepwiseSolver):
        raise ValueError(f"{method.name} has no inverse: its steps depend on the data")
    plan = method.compile(path, times_of(path, grid, steps))
    backward = plan.inverse(iterations)
    growth = inverse_growth(plan) if is_two_state(plan) else 1.0
    state = x.to(_state_dtype(x.dtype, growth))
    if not is_two_state(plan):
        return Encoding(_run(denoise, backward, (state,), x.dtype, y, on_step), plan, x.dtype)
    t, s = plan.rows[-2].t, plan.rows[-1].t
    assert isinstance(t, float)
    assert isinstance(s, float)
    away = FirstOrder().compile(path, (t, s)).inverse(iterations)
    (before,) = _run(denoise, away, (state,), x.dtype, y, None)
    second, first = _run(denoise, backward.keeping(2), (state, before), x.dtype, y, on_step)
    return Encoding((first, second), resumed(plan), x.dtype)


def decode(
    denoise: Callable[..., Tensor],
    encoding: Encoding,
    y: Float[Tensor, "batch *rest"] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Go back from the noise to the image.

    Args:
        denoise: the denoiser of `encode`, or one with other conditions, to edit the image.
        encoding: what `encode` returned.
        y: degraded input of a path that has one.
        on_step: called after every step, as for `sample`.

    Returns:
        The images, in the dtype of those that were encoded.
    """
    found = _run(denoise, encoding.plan, encoding.states, encoding.dtype, y, on_step)
    return found[0].to(encoding.dtype)


def _state_dtype(given: torch.dtype, growth: float) -> torch.dtype:
    """float32 at least, and float64 where rounding errors that grow so much need it."""
    usual = torch.promote_types(given, torch.float32)
    return usual if growth * torch.finfo(usual).eps <= ROUNDING_TOLERANCE else torch.float64


def _run(
    denoise: Callable[..., Tensor],
    plan: Plan,
    states: tuple[Tensor, ...],
    dtype: torch.dtype,
    y: Tensor | None,
    on_step: OnStep | None,
) -> tuple[Tensor, ...]:
    """Run the plan; the denoiser gets the state in the image's precision, float32 at least."""
    y = getattr(denoise, "y", None) if y is None else y
    asked_dtype = torch.promote_types(dtype, torch.float32)
    ask = Asked(denoise, plan.path, y if y is None else y.to(states[0].device, asked_dtype), dtype)
    y = y if y is None else y.to(states[0])
    folded = plan.folded(ask.prediction)
    return run_states(folded, lambda x, t: ask.predict(x.to(asked_dtype), t), states, y, on_step=on_step)
