"""What a restoration method is: for the pipeline, and for methods that are a path with a network."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.checkpoints import Checkpoint
from fewstep.core.denoiser import BaseDenoiser
from fewstep.core.run import OnStep
from fewstep.core.sample import sample

from ..preparation import Preparation
from .padding import reflect_to_multiple

MODES = ("mean", "sample")
Noise = Callable[[Tensor], Tensor]
Level = float | Float[Tensor, "batch"] | None


class MethodConfig(Protocol):
    """What every configuration says."""

    @property
    def scale(self) -> int:
        """How many times larger the result is than the input."""
        ...

    @property
    def padding(self) -> int:
        """The input is extended by reflection to a multiple of this."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model was trained for: names of `fewstep.restoration.tasks.TASKS`."""
        ...


class RestorationModel(nn.Module, Checkpoint):
    """A network that restores tiles, with what a pipeline must know of it.

    Attributes:
        config: what it was built from.
        modes: of "mean", one network call that estimates the mean of what the truth may be, and "sample", the
            published steps, which draw one of them.
        solvers: rules of the steps; the first one is the published.
        takes: what may be told beside the input, of "mask" and "level".
        needs_level: the noise level has to be told.
        draws: samples with different seeds differ.
    """

    package = "fewstep.restoration"
    modes: tuple[str, ...] = MODES
    solvers: ClassVar[tuple[str, ...]]
    needs_level: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    config: MethodConfig

    @property
    def scale(self) -> int:
        """Enlargement."""
        return self.config.scale

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model was trained for."""
        return self.config.tasks

    @property
    def takes(self) -> frozenset[str]:
        """What may be told beside the input."""
        return frozenset()

    @property
    def preparation(self) -> Preparation:
        """What is done to a whole photograph before; `restore` expects that it has been done."""
        return Preparation()

    @property
    @abstractmethod
    def state_channels(self) -> int:
        """Channels of the state that is sampled, and so of its noise."""

    @property
    def state_ratio(self) -> int | Fraction:
        """Side of the state per side of the input: where an input pixel lies in the noise."""
        return self.scale

    @property
    def reach(self) -> int | None:
        """Input pixels to each side on which the result of one network call depends; None: on all of them.

        Every further call adds the network's receptive field.
        """
        return None

    @property
    @abstractmethod
    def pixel_bytes(self) -> int:
        """Memory of a restoration in bytes per input pixel, roughly: what is alive at the worst moment."""

    @abstractmethod
    def steps_of(self, mode: str, steps: int | None = None) -> int:
        """Network calls of a restoration.

        Raises:
            ValueError: a mode that the method has not, or steps out of its range.
        """

    def solver_of(self, name: str | None = None) -> str:
        """Rule of the steps: the one that is named, else the configuration's, else the published one.

        Raises:
            ValueError: the method has no such rule, or it does not suit the model.
        """
        own = getattr(self.config, "solver", None) or self.solvers[0]
        rule = own if name is None else name
        check_name("solver", rule, self.solvers)
        return rule

    @abstractmethod
    def restore(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        *,
        mode: str = "sample",
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        steps: int | None = None,
        solver: str | None = None,
        seed: int | Sequence[int] = 0,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "batch 3 h2 w2"]:
        """Restore images of any size, not tiled.

        `noise(like)` is asked for the start and then for every step that draws, with `like` shaped as the
        state: (batch, state_channels, …), `state_ratio` times the input extended to a multiple of the
        padding. For tiles whose overlaps agree, give each tile its place in one field of noise:
        `noise = NoiseField(seed, model.state_channels).window((ratio * row, ratio * column))` with
        ratio = model.state_ratio and (row, column) the place of its first pixel in the whole input.

        Args:
            lq: input in [-1, 1].
            mode: one of the method's modes.
            mask: for inpainting, 1 where the image is unknown, 0 where it is known. Known pixels are returned
                as they were given.
            level: standard deviation of the input's noise on the scale 0 … 255; None: not known.
            steps: network calls in mode "sample"; the published number by default.
            solver: rule of the steps, one of `solvers`; the published one by default.
            seed: image i draws from a generator seeded with seed + i; or one seed per image.
            noise: replaces the generators.
            on_step: called with a StepInfo of the state after each step; False stops.

        Returns:
            Images in [-1, 1], `scale` times as large as the input.

        Raises:
            ValueError: an unknown mode or solver; a mask or level where none is taken, or the reverse.
        """

    def check_told(self, mask: Tensor | None, level: Level) -> None:
        """Refuse a mask or a noise level that this model is not told, or a missing mask."""
        if ("mask" in self.takes) != (mask is not None):
            raise ValueError(
                f"mask must be {'given: this model inpaints' if 'mask' in self.takes else 'left out'}"
            )
        if level is not None and "level" not in self.takes:
            raise ValueError("level must be left out: this model is not told the noise level")


class PathModel(RestorationModel):
    """A method whose steps are those of a path: x_t = a x0 + b y + sigma eps, with y made from the input."""

    net: nn.Module

    @abstractmethod
    def prior(self, lq: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        """The degraded end y of the path."""

    @abstractmethod
    def denoiser(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        *,
        steps: int | None = None,
    ) -> BaseDenoiser:
        """The network told its input and y, as a denoiser of states; `steps` is None in mode "mean".

        lq and mask have sides that are multiples of the padding.
        """

    def bare_denoiser(self, net: Callable[..., Tensor]) -> BaseDenoiser:
        """A network that stands in for the model's own, told nothing yet: what training asks."""
        raise NotImplementedError(f"{type(self).__name__} has no training objective of its own")

    @abstractmethod
    def times(self, denoise: BaseDenoiser, mode: str, calls: int) -> Sequence[float]:
        """The decreasing times of a run, from the start to the clean end: calls + 1 of them."""

    def decode(self, z: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 h2 w2"]:
        """State to image."""
        return z

    @torch.no_grad()
    def restore(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        *,
        mode: str = "sample",
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        steps: int | None = None,
        solver: str | None = None,
        seed: int | Sequence[int] = 0,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "batch 3 h2 w2"]:
        calls = self.steps_of(mode, steps)
        solver = self.solver_of(solver)
        self.check_told(mask, level)
        multiple = self.config.padding
        extended = reflect_to_multiple(lq.to(torch.promote_types(lq.dtype, torch.float32)), multiple)
        unknown = None if mask is None else reflect_to_multiple(mask.to(extended), multiple)
        denoise = self.denoiser(extended, unknown, level, steps=None if mode == "mean" else calls)
        z = sample(
            denoise,
            solver=solver,
            grid=list(self.times(denoise, mode, calls)),
            seed=seed,
            noise=noise,
            on_step=on_step,
        )
        return self.image(z, lq, mask)

    def image(self, z: Tensor, lq: Tensor, mask: Tensor | None) -> Tensor:
        """A last state made an image of the input's size times the scale; known pixels put back."""
        height, width = (self.scale * side for side in lq.shape[-2:])
        made = self.decode(z)[..., :height, :width].clamp(-1, 1)
        return made if mask is None else torch.lerp(lq.to(made), made, mask.to(made))

    def __getstate__(self) -> dict[str, Any]:
        # Denoisers hold the network and read-only views, which cannot be copied; they are made anew.
        return {**self.__dict__, **({"_denoisers": {}} if "_denoisers" in self.__dict__ else {})}


def check_name(argument: str, given: str, allowed: Collection[str]) -> None:
    """Refuse a name that is not one of those allowed."""
    if given not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}, got {given!r}")


def check_steps(mode: str, steps: int | None, modes: Collection[str], published: int, most: int) -> int:
    """Network calls of a mode: one in "mean"; in "sample" those asked for, or the published number.

    Raises:
        ValueError: an unknown mode, steps in mode "mean", or steps out of 1 … most.
    """
    check_name("mode", mode, modes)
    if mode == "mean" and steps not in (None, 1):
        raise ValueError(
            f"steps must be 1 or left out in mode 'mean', which is one network call, got {steps}"
        )
    if steps is None:
        return 1 if mode == "mean" else published
    if not 1 <= steps <= most:
        raise ValueError(f"steps must lie in 1 … {most}, the noise levels of the model, got {steps}")
    return steps
