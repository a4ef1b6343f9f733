"""IR-SDE and Refusion: restoration by a process that relaxes to the degraded image, or MR-sampler's steps."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import grids
from fewstep.core.denoiser import BaseDenoiser, Denoiser
from fewstep.core.grids.mean_reverting import published
from fewstep.core.noise import SampleNoise
from fewstep.core.run import OnStep
from fewstep.core.sample import sample
from fewstep.core.solvers import Solver
from fewstep.core.solvers.first_order import FirstOrder
from fewstep.core.solvers.mean_reverting import MRSampler

from ..nets.conditional_nafnet import ConditionalNAFNet
from ..nets.conditional_unet import ConditionalUNet
from ..nets.refusion_autoencoder import RefusionAutoencoder
from ..nets.small_unet import SmallUNet
from .base import MODES, Level, Noise, PathModel, check_steps
from .irsde_config import RULES, IRSDEConfig
from .padding import reflect_to_multiple

# The two schedules that have a name of their own in the core.
GRIDS = {"karras-n": "karras", "linear-lambda": "logsnr"}
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "conditional-unet": ConditionalUNet,
    "conditional-nafnet": ConditionalNAFNet,
    "small-unet": SmallUNet,
}


class IRSDE(PathModel):
    """An IR-SDE model: network, path, and an autoencoder where states are latents.

    x_t = a x0 + (1 − a) y + λ √(1 − a²) ε with a falling from 1 to `eps`, from y + λ ε down to x0. States are
    images in [0, 1], as published; `restore` takes and gives images in [-1, 1].

    Args:
        config: what to build.
        network: used in place of the one that the configuration describes; called as net(x, t, y).

    Example:
        >>> options = {"width": 8, "enc_blk_nums": [1], "dec_blk_nums": [1]}
        >>> model = IRSDE(IRSDEConfig(network_options=options)).eval()
        >>> model.restore(torch.zeros(1, 3, 10, 7), solver="mrs-2", steps=3).shape
        torch.Size([1, 3, 10, 7])

    Reference: Luo et al. 2023, "Image Restoration with Mean-Reverting Stochastic Differential Equations";
        Luo et al. 2023, "Refusion"; Li et al. 2025, "MaRS: A Fast Sampler for Mean Reverting Diffusion".
    """

    config_class = IRSDEConfig
    solvers: ClassVar[tuple[str, ...]] = tuple(RULES)
    config: IRSDEConfig

    def __init__(self, config: IRSDEConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        if config.prediction == "eps":
            # The clean image weighs next to nothing at the last time, so one call there tells no mean.
            self.modes = ("sample",)
        self.net = BUILDERS[config.network](**config.network_options) if network is None else network
        options = config.autoencoder
        self.autoencoder = None if options is None else RefusionAutoencoder(**options)
        self._denoisers: dict[torch.dtype | None, Denoiser] = {}

    @property
    def takes(self) -> frozenset[str]:
        """A mask, if unknown pixels are filled."""
        return frozenset() if self.config.fill is None else frozenset({"mask"})

    @property
    def state_channels(self) -> int:
        """Channels of the image or latent."""
        return 3 if self.autoencoder is None else self.autoencoder.latent_channels

    @property
    def state_ratio(self) -> int | Fraction:
        """Side of the state per side of the input."""
        ratio = Fraction(self.scale, 1 if self.autoencoder is None else self.autoencoder.factor)
        return ratio.numerator if ratio.denominator == 1 else ratio

    @property
    def reach(self) -> int | None:
        """Of a network that looks no further than its convolutions do."""
        if isinstance(self.net, SmallUNet) and self.state_ratio == 1:
            return self.net.receptive_field
        return None

    @property
    def pixel_bytes(self) -> int:
        """Memory in bytes per input pixel, roughly."""
        latent = 0 if self.autoencoder is None else 10 * self.autoencoder.width * self.scale**2
        return int(4 * (features_at_once(self.net) * self.state_ratio**2 + latent))

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        """Network calls of a restoration by the model's own rule."""
        if mode == "mean" and self.config.prediction == "eps":
            raise ValueError(
                "mode must be 'sample': the noise that the network predicts does not determine the mean at "
                f"the last time, where the clean image weighs {self.config.eps:g}"
            )
        return check_steps(mode, steps, MODES, self.config.calls_of(self.config.solver), self.config.steps)

    def prior(self, lq: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        """The degraded end y: the input in [0, 1], enlarged, or its latent."""
        return self._encode(lq)[0]

    def denoiser(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        *,
        steps: int | None = None,
    ) -> BaseDenoiser:
        return self.bare_denoiser(self.net).given(y=self.prior(self.filled(lq, mask)))

    def bare_denoiser(self, net: Callable[..., Tensor]) -> BaseDenoiser:
        """A network that stands in for the model's own, told nothing yet."""
        if net is not self.net:
            return self._asked(net)
        dtype = next((p.dtype for p in self.net.parameters()), None)
        if dtype not in self._denoisers:
            self._denoisers[dtype] = self._asked(net, dtype)
        return self._denoisers[dtype]

    def _asked(self, net: Callable[..., Tensor], dtype: torch.dtype | None = None) -> Denoiser:
        shown = Centred(net) if self.config.network == "small-unet" else net
        return Denoiser(shown, self.config.path(), self.config.prediction, dtype=dtype)

    def times(self, denoise: BaseDenoiser, mode: str, calls: int) -> Sequence[float]:
        """Times of the model's own rule."""
        return self._times(self.config.solver if mode == "sample" else "mean", calls)

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
        rule = self.solver_of(solver)
        if steps is None and mode == "sample":
            steps = self.config.calls_of(rule)
        calls = self.steps_of(mode, steps)
        self.check_told(mask, level)
        rule = rule if mode == "sample" else "mean"
        shown = self.filled(lq.to(torch.promote_types(lq.dtype, torch.float32)), mask)
        if self.config.network == "small-unet":
            shown = reflect_to_multiple(shown, self.config.padding)
        y, kept = self._encode(shown)
        draw = drawing(seed, y) if noise is None else noise
        state = y.to(torch.promote_types(y.dtype, torch.float32))
        z = sample(
            self.bare_denoiser(self.net).given(y=state),
            solver=self._solver(rule),
            grid=list(self._times(rule, calls)),
            # Published, also where a schedule begins before the last time.
            x=self.config.path().start(draw(state), state),
            noise=draw,
            on_step=on_step,
        )
        made = z if self.autoencoder is None else self.autoencoder.decode(z.to(y.dtype), kept).to(z.dtype)
        return self.image(2 * made - 1, lq, mask)

    def filled(self, lq: Tensor, mask: Tensor | None) -> Tensor:
        """The input with unknown pixels replaced, which the network is not told otherwise."""
        if mask is None or self.config.fill is None:
            return lq
        return torch.lerp(lq, lq.new_tensor(2 * self.config.fill - 1), mask.to(lq))

    def _encode(self, lq: Tensor) -> tuple[Tensor, list[Tensor]]:
        """y, and the features that the decoder needs of the input."""
        image = lq if self.scale == 1 else F.interpolate(lq, scale_factor=self.scale, mode="bicubic")
        image = (image + 1) / 2
        if self.autoencoder is None:
            return image, []
        weight = self.autoencoder.init_conv.weight
        return self.autoencoder.encode(image.to(weight.dtype))

    def _solver(self, rule: str) -> Solver:
        if rule == "mean":
            return FirstOrder()
        found = RULES[rule]
        if isinstance(found, MRSampler):
            return MRSampler(found.solver_order, found.equation, found.form, interp=self.config.interpolation)
        return found

    def _times(self, rule: str, calls: int) -> Sequence[float]:
        path, grid = self.config.path(), self.config.grid
        if rule.startswith("mrs-") and self.config.interpolation == "official":
            return [max(t, 0.0) for t in published(path, calls, grid)]
        if rule.startswith("mrs-"):
            return grids.get(GRIDS.get(grid, f"mrs-{grid}"))(path, calls)
        return [float(round(path.t_max * (1 - i / calls))) for i in range(calls + 1)]


class Centred(nn.Module):
    """A network of images in [-1, 1] that predicts the clean one, for states in [0, 1].

    x0 = (net(2x − 1, t, 2y − 1) + 1) / 2

    Args:
        net: called as net(x, t, lq).
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Float[Tensor, "batch"],
        y: Float[Tensor, "batch channels h w"],
    ) -> Float[Tensor, "batch channels h w"]:
        return (self.net(2 * x - 1, t, 2 * y - 1) + 1) / 2


def drawing(seed: int | Sequence[int], like: Tensor) -> Noise:
    """Normal draws for a batch, image i from a generator seeded with seed + i; or one seed per image."""
    source = SampleNoise(seed, len(like), like.device)

    def draw(like: Tensor) -> Tensor:
        fresh = torch.empty_like(like)
        source.fill(fresh)
        return fresh

    return draw


def features_at_once(net: nn.Module) -> int:
    """Features per pixel that are alive at the worst moment, roughly: at full resolution, on the way up."""
    if isinstance(net, SmallUNet):
        return net.pixel_bytes // 4
    if isinstance(net, ConditionalUNet):
        return 12 * net.nf + 512  # what is joined, and attention's q, k and v
    return 10 * net.width if isinstance(net, ConditionalNAFNet) else 64
