"""IDM: a few diffusion steps, trained end to end, that reconstruct images from compressed measurements."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.run import OnStep
from fewstep.core.step_info import StepInfo

from ..compressed_sensing import BlockSensing, Measurement, groups, measure
from ..nets.idm_unet import Coupling, CutUNet, Situation
from ..nets.invertible import Chain, Link, keeping, recomputing
from .base import Level, Noise, RestorationModel, check_name
from .idm_config import IDMConfig

__all__ = ["IDM", "MEMORY", "IDMConfig"]

# What is recomputed in the backward pass: nothing; the sampling steps; the layers inside them as well.
MEMORY: dict[str, tuple[Chain, Chain]] = {
    "keep": (keeping, keeping),
    "steps": (recomputing, keeping),
    "all": (recomputing, recomputing),
}
# Contrast of an image that has none, so that its noise-free measurements are not divided by zero.
LEAST_CONTRAST = 1e-3
LEAST_VARIANCE = 1e-4


class IDM(RestorationModel):
    """An invertible diffusion model for compressed sensing.

    From x_T = √ᾱ_T Aᵀy, for t = T … 1, with learned α (ᾱ_t = α_1 ⋯ α_t):

        e = ε_θ(x),  x̂0 = (x − √(1 − ᾱ_t) e)/√ᾱ_t,  x̂0 ← x̂0 − Aᵀ(A x̂0 − y),
        x ← √ᾱ_{t−1} x̂0 + √(1 − ᾱ_{t−1}) e,

    where each step is an invertible coupling with the state before it (`nets.invertible`), as are the layers
    inside ε_θ. So a training step needs the memory of one layer, whatever T is.

    As a restorer of photographs it first simulates the camera: luma and both chroma planes (full-range YCbCr)
    are measured, each with the model's ratio and the same operator, and reconstructed by the same network,
    which is trained on luma; so a colour image costs three times the measurements of a grey one. Images
    larger than `group` pixels a side are cut into near-equal rectangles, each with a permutation of its own.

    Args:
        config: what to build.

    Example:
        >>> config = IDMConfig(ratio=0.5, steps=2, channels=(16, 16), attention=(False, False),
        ...     normalised=False)
        >>> model = IDM(config).eval()
        >>> taken = model.measure(torch.rand(1, 1, 40, 30))
        >>> model.reconstruct(taken).shape
        torch.Size([1, 1, 40, 30])

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing".
    """

    config_class = IDMConfig
    config: IDMConfig
    modes = ("sample",)
    solvers = ("ddim",)

    def __init__(self, config: IDMConfig) -> None:
        super().__init__()
        self.config = config
        self.alpha = nn.Parameter(torch.full((config.steps,), 0.5))
        self.input_help_scale_factor = nn.Parameter(torch.ones(1))
        self.merge_scale_factor = nn.Parameter(torch.zeros(1))
        self.body = nn.ModuleList([Coupling(config.wiring) for _ in range(config.steps)])
        self.unet = CutUNet(config.shape())

    @property
    def state_channels(self) -> int:
        """One: planes are reconstructed one by one."""
        return 1

    @property
    def pixel_bytes(self) -> int:
        """Memory of a restoration in bytes per input pixel, roughly: colours and planes, before and after.

        The network's features are not among them: it sees one rectangle of at most `group` pixels a side at a
        time, however large the image is.
        """
        return 3 * 4 * 8

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        """Network calls of a restoration: always those that the model was trained with."""
        check_name("mode", mode, self.modes)
        if steps not in (None, self.config.steps):
            raise ValueError(
                f"steps must be {self.config.steps} or left out: the model was trained end to end with them, "
                f"got {steps}"
            )
        return self.config.steps

    def measure(self, image: Float[Tensor, "batch channels h w"], seed: int = 0) -> Measurement:
        """Measure images in [0, 1] at the model's ratio.

        Args:
            image: channels are measured one by one with the same operator.
            seed: of the permutation of the pixels.

        Raises:
            ValueError: an image that is empty or not finite.
        """
        config = self.config
        return measure(image, config.ratio, block=config.block, seed=seed, matrix_seed=config.matrix_seed)

    @torch.no_grad()
    def reconstruct(
        self, measurement: Measurement, on_step: OnStep | None = None
    ) -> Float[Tensor, "batch channels h w"]:
        """Reconstruct images from their measurements.

        Args:
            measurement: values and operator, at the ratio that the model was trained for.
            on_step: called with a StepInfo after each step; False stops.

        Returns:
            Images in [0, 1].

        Raises:
            ValueError: the measurement was taken at another ratio or with other blocks.
        """
        expected, got = (self.config.block**2, self.config.rows), tuple(measurement.sensing.matrix.shape)
        if got != expected:
            raise ValueError(
                f"measurement must have {expected[1]} values for {expected[0]} pixels, as this model was "
                f"trained, got {got[1]} for {got[0]}"
            )
        sensing = measurement.sensing.to(self.alpha.detach())
        values = measurement.values.to(self.alpha.device, self.alpha.dtype)
        inside = torch.zeros(1, 1, *sensing.size, dtype=values.dtype, device=values.device)
        inside[..., : measurement.height, : measurement.width] = 1
        planes = self(values.flatten(0, 1).unsqueeze(1), sensing, inside=inside, on_step=on_step)
        image = planes.unflatten(0, measurement.values.shape[:2]).squeeze(2)
        return image[..., : measurement.height, : measurement.width].clamp(0, 1)

    def forward(
        self,
        y: Float[Tensor, "batch 1 blocks rows"],
        sensing: BlockSensing,
        *,
        memory: str = "keep",
        inside: Float[Tensor, "1 1 h w"] | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "batch 1 h w"]:
        """Images from measurements, with gradients; not clamped.

        Args:
            y: measurements of single planes.
            sensing: A.
            memory: what the backward pass recomputes: "keep" nothing, "steps" the sampling steps, "all" also
                the layers inside a step.
            inside: 1 where the image is, 0 where zeros extend it; everywhere by default.
            on_step: called after each step, where nothing is recomputed.

        Raises:
            ValueError: an unknown choice of memory.
        """
        check_name("memory", memory, MEMORY)
        if not self.config.standardised:
            return self._sample(y, sensing, memory, on_step)
        ones = torch.ones(1, 1, *sensing.size, device=y.device, dtype=y.dtype) if inside is None else inside
        mean, contrast = brightness(y, sensing.forward(ones))
        standard = self._sample((y - mean * sensing.forward(ones)) / contrast, sensing, memory, on_step)
        return mean * ones + contrast * standard

    def _sample(self, y: Tensor, sensing: BlockSensing, memory: str, on_step: OnStep | None) -> Tensor:
        outer, inner = MEMORY[memory]
        x = seen = sensing.adjoint(y)
        levels = F.pad(self.alpha.cumprod(0), (1, 0), value=1.0).clamp(min=LEAST_VARIANCE)
        x = levels[-1].sqrt() * x
        x1, x2 = x, self.input_help_scale_factor * x
        links = []
        for done, coupling in enumerate(self.body):
            assert isinstance(coupling, Coupling)
            body = partial(self._step, self.config.steps - done, sensing, inner)
            links.append(coupling.link(body, self.unet, told=(levels, seen, y)))
        if on_step is None:
            x1, x2 = outer(x1, x2, links)
        else:
            x1, x2 = self._watched(x1, x2, links, on_step)
        x = x1 + self.merge_scale_factor * x2
        return sensing.consistent(x, y) if self.config.consistent else x

    def _step(
        self, t: int, sensing: BlockSensing, chain: Chain, x: Tensor, levels: Tensor, seen: Tensor, y: Tensor
    ) -> Tensor:
        """One sampling step: noise estimate, clean estimate made consistent, DDIM."""
        at = Situation(seen, sensing.gram, t - 1, chain)
        e = self.unet(x, at).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            now, then = levels[t], levels[t - 1]
            clean = sensing.consistent((x - (1 - now).clamp(min=0).sqrt() * e) / now.sqrt(), y)
            return then.sqrt() * clean + (1 - then).clamp(min=0).sqrt() * e

    def _watched(
        self, x1: Tensor, x2: Tensor, links: Sequence[Link], on_step: OnStep
    ) -> tuple[Tensor, Tensor]:
        total = self.config.steps
        for done, link in enumerate(links, start=1):
            x1, x2 = link(x1, x2)
            info = StepInfo(
                step=done, total=total, t=float(total - done), nfe=done, x=x1, _estimate=partial(_itself, x1)
            )
            if on_step(info) is False:
                break
        return x1, x2

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
    ) -> Float[Tensor, "batch 3 h w"]:
        """Measure photographs and reconstruct them: what a compressing camera would have given.

        Args:
            lq: the photographs in [-1, 1].
            mode: "sample", the only one.
            mask: not taken.
            level: not taken.
            steps: those of the model, or left out.
            solver: "ddim", the only one.
            seed: of the permutations; of several, the first is used for all images.
            noise: not used: nothing is drawn besides the permutations.
            on_step: called after each step of each rectangle; False stops.

        Returns:
            Photographs in [-1, 1], as large as the input.
        """
        self.steps_of(mode, steps)
        self.solver_of(solver)
        self.check_told(mask, level)
        first = seed if isinstance(seed, int) else seed[0]
        planes = to_planes(lq.to(self.alpha.dtype))
        restored = torch.empty_like(planes)
        height, width = lq.shape[-2:]
        for index, (rows, columns) in enumerate(groups(height, width, self.config.group)):
            taken = self.measure(planes[..., rows, columns], first + index)
            restored[..., rows, columns] = self.reconstruct(taken, on_step)
        return from_planes(restored).clamp(-1, 1)


def brightness(
    y: Float[Tensor, "batch 1 blocks rows"], ones: Float[Tensor, "1 1 blocks rows"]
) -> tuple[Float[Tensor, "batch 1 1 1"], Float[Tensor, "batch 1 1 1"]]:
    """Mean and contrast of images, estimated from their measurements.

    m = <A1, y>/<A1, A1>,  s² = mean of (y − m A1)²: random orthonormal projections keep the mean square.

    Args:
        y: measurements.
        ones: A1, those of an image of ones.
    """
    mean = (ones * y).sum((1, 2, 3), keepdim=True) / ones.square().sum((1, 2, 3), keepdim=True)
    contrast = (y - mean * ones).square().mean((1, 2, 3), keepdim=True).sqrt()
    return mean, contrast.clamp(min=LEAST_CONTRAST)


# Full-range luma and chroma of ITU-R BT.601, as JPEG files have them; columns: Y, Cb, Cr of R, G, B.
_TO_PLANES = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]],
    dtype=torch.float64,
)
_MIDDLE = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64).view(3, 1, 1)


def to_planes(image: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
    """RGB in [-1, 1] to luma and two chroma planes in [0, 1]."""
    mixed = torch.einsum("pc,bchw->bphw", _TO_PLANES.to(image), (image + 1) / 2)
    return mixed + _MIDDLE.to(image)


def from_planes(planes: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
    """Luma and chroma planes in [0, 1] to RGB in [-1, 1]; undoes `to_planes`."""
    mix = torch.linalg.inv(_TO_PLANES).to(planes)
    return 2 * torch.einsum("cp,bphw->bchw", mix, planes - _MIDDLE.to(planes)) - 1


def _itself(x: Tensor) -> Tensor:
    return x
