"""A one-step codec: a quantised latent is taken for a noisy state, whose noise one call removes."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewstep.core.checkpoints import Checkpoint
from fewstep.core.denoiser import Denoiser
from fewstep.core.paths import VP

from ..nets.code_model import CodeModel
from ..nets.codec import CELL, Analysis, LatentNet, Synthesis
from .oscar_config import OscarConfig
from .padding import reflect_to_multiple

__all__ = ["Oscar", "OscarConfig", "measure", "pseudo_time", "quantise"]


class Oscar(nn.Module, Checkpoint):
    """Autoencoder, quantiser, one denoiser for all rates, and a model of the indices.

    z = analysis(image),  q = quantised z/step,  x_t = q·step·gain with |x_t| = 1 on average, as |z|/scale is,
    z_hat = scale·D(x_t, t),  image_hat = synthesis(z_hat)

    t is the time at which the path's signal share a(t) equals the cosine between step·q and z. Cosines, gains
    and scale are measured with the transform that training begins with and are fixed then, as the paper's are
    before it trains its network; the transform goes on learning.

    Args:
        config: what to build.

    Example:
        >>> model = Oscar(OscarConfig(luma=4, chroma=1, network_options={"width": 8, "blocks": 1}, detail=2))
        >>> q = model.indices(torch.zeros(1, 3, 16, 9), rate=0)
        >>> q.shape, model.image(q, rate=0).shape
        (torch.Size([1, 6, 2, 2]), torch.Size([1, 3, 16, 16]))

    Reference: Guo et al. 2025, "OSCAR: One-Step Diffusion Codec Across Multiple Bit-rates", section 3.
    """

    package = "fewstep.restoration"
    config_class = OscarConfig
    config: OscarConfig
    cosines: Tensor
    gains: Tensor
    scale: Tensor

    def __init__(self, config: OscarConfig) -> None:
        super().__init__()
        self.config = config
        self.path = config.path()
        self.analysis = Analysis(config.luma, config.chroma)
        self.synthesis = Synthesis(config.luma, config.chroma, config.detail)
        self.net = LatentNet(config.channels, **config.network_options)
        self.code = CodeModel(len(config.steps), config.channels, config.dead_zone)
        # Float64: in half precision, in which checkpoints may be stored, most of these would be 1.
        guess = [1 / math.sqrt(1 + step**2 / 12) for step in config.steps]
        self.register_buffer("cosines", torch.tensor(guess, dtype=torch.float64))
        self.register_buffer("gains", torch.ones(len(config.steps), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    @property
    def rates(self) -> int:
        """Number of rates."""
        return len(self.config.steps)

    @property
    def reach(self) -> int:
        """Cells to each side on which a decoded cell depends."""
        return self.net.reach + self.synthesis.reach

    def latent(self, image: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        """The latent of images in [-1, 1] of any size, extended to whole cells by reflection."""
        return self.analysis(reflect_to_multiple(image, CELL))

    @torch.no_grad()
    def indices(self, image: Float[Tensor, "batch 3 h w"], rate: int) -> Int[Tensor, "batch channels h2 w2"]:
        """What is written to a file.

        Args:
            image: in [-1, 1].
            rate: number of the rate, from 0, the coarsest.
        """
        return quantise(self.latent(image) / self.config.steps[rate], self.config.dead_zone).int()

    @torch.no_grad()
    def image(self, indices: Int[Tensor, "batch channels h w"], rate: int) -> Float[Tensor, "batch 3 H W"]:
        """Images of whole cells in [-1, 1]: one call of the network."""
        numbers = torch.full((len(indices),), rate, device=indices.device)
        z = self.denoised(indices.to(self.analysis.kernels.dtype), numbers)
        return self.synthesis(z).clamp(-1, 1)

    def denoised(
        self, indices: Float[Tensor, "batch channels h w"], rate: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch channels h w"]:
        """The latent that one call makes of indices.

        Args:
            indices: of the quantiser.
            rate: number of the rate of every image.
        """
        like = indices
        steps = torch.tensor(self.config.steps, dtype=torch.float64, device=like.device)[rate]
        unit = steps * self.gains[rate] / self.scale
        times = pseudo_time(self.path, self.cosines)[rate]
        denoise = Denoiser(self.net, self.path, "v").given(step=unit.to(like))
        return self.scale.to(like) * denoise(like * unit.to(like)[:, None, None, None], times)

    def forward(
        self, image: Float[Tensor, "batch 3 h w"], rate: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch 3 h w"], Float[Tensor, "batch"]]:
        """For training: the decoded images, not clipped, and the bits of each; sides are multiples of 8."""
        steps = torch.tensor(self.config.steps, device=image.device)[rate][:, None, None, None]
        indices = quantise(self.analysis(image) / steps, self.config.dead_zone)
        return self.synthesis(self.denoised(indices, rate)), self.code.bits(indices, rate)


def quantise(counts: Float[Tensor, "*shape"], dead_zone: float = 0.0) -> Float[Tensor, "*shape"]:
    """Round to whole numbers, with a wider cell around 0; the gradient passes as if nothing happened.

    q = sign(c) floor(|c| + 1/2 − dead_zone)

    Args:
        counts: numbers in units of the step.
        dead_zone: by how much the cell around 0 is wider on each side, in [0, 0.5).

    Example:
        >>> quantise(torch.tensor([0.4, 0.6, -1.7]), 0.15).tolist()
        [0.0, 0.0, -2.0]

    Reference: Bengio, Léonard & Courville 2013, for the gradient ("straight through").
    """
    whole = torch.sign(counts) * torch.floor(counts.abs() + 0.5 - dead_zone).clamp(min=0)
    return counts + (whole - counts).detach()


def pseudo_time(path: VP, cosine: Float[Tensor, "rates"]) -> Float[Tensor, "rates"]:
    """The time of a state x_t = a(t) z + sigma(t) ε that has this cosine with z.

    E⟨x_t, z⟩ / (|x_t| |z|) = a(t) on a variance-preserving path, for ε without correlation to z.

    Args:
        path: variance preserving.
        cosine: in (0, 1).

    Raises:
        ValueError: a cosine out of its range.

    Reference: Guo et al. 2025, "OSCAR", section 3.2: expected cosine similarity ≈ sqrt(ᾱ_t).
    """
    if not bool(((cosine > 0) & (cosine < 1)).all()):
        raise ValueError(f"cosine must lie in (0, 1), got {cosine.tolist()}")
    cosine = cosine.double()
    half_log_snr = cosine.log() - 0.5 * torch.log1p(-(cosine**2))
    return path.time_at(half_log_snr).clamp(path.t_min, path.t_limit)


@torch.no_grad()
def measure(z: Float[Tensor, "*shape"], quantised: Float[Tensor, "*shape"]) -> tuple[float, float]:
    """Cosine of a quantised latent with its original, and the factor that gives it the original's norm.

    Args:
        z: latent.
        quantised: whole numbers times the step.

    Returns:
        ⟨z, z̃⟩/(|z| |z̃|) and |z|/|z̃|.

    Raises:
        ValueError: one of them is 0 throughout.
    """
    norms = z.double().norm().item(), quantised.double().norm().item()
    if not all(norms):
        raise ValueError("z and quantised must not be 0 throughout: they have no angle")
    return float((z.double() * quantised.double()).sum()) / (norms[0] * norms[1]), norms[0] / norms[1]
