"""Latents that are the features of a frozen encoder, with a few channels for what it misses."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.objectives.distances import AbsoluteError, Distance
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.training import Moment, SinglePhase
from fewstep.core.training.phases import Losses

LATENT_PATH = paths.RectifiedFlow(shift=2.5)
"""Rectified flow whose uniform times lie more often at high noise: many latent channels say the same thing,
so that a little noise hides little. SVG's released training has shift 0.4 in a time that runs from noise to
data; turned round that is 1/0.4.

Reference: Esser et al. 2024, "Scaling Rectified Flow Transformers", eq. 23."""


class FrozenEncoderLatents(nn.Module):
    """Pictures as normalised latents, z = ((frozen(x) ⊕ residual(x)) − mean)/std by channel, and back.

    The frozen features carry meaning; the residual channels carry the detail that a picture needs and the
    features lack. A diffusion model is trained on z with its usual objective.

    Train residual and decoder with `LatentAutoencoding`, then call `fit`, then `encode`.

    Args:
        frozen: encoder x → (batch, channels, ...) that never changes.
        residual: small encoder x → (batch, few channels, ...) on the same grid; None: none.
        decoder: raw latents (batch, all channels, ...) → x.
        channels: of the raw latents.

    Raises:
        ValueError: channels is below 1.

    Reference: Shi et al. 2025, "Latent Diffusion Model without Variational Autoencoder" (SVG), section 3.

    Example:
        >>> halves = torch.nn.AvgPool2d(2)
        >>> latents = FrozenEncoderLatents(halves, None, torch.nn.Upsample(scale_factor=2), channels=1)
        >>> _ = latents.fit([torch.randn(32, 1, 4, 4)])
        >>> x = torch.ones(1, 1, 4, 4)
        >>> torch.allclose(latents.decode(latents.encode(x)), x)
        True
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        frozen: nn.Module | Callable[[Tensor], Tensor],
        residual: nn.Module | None,
        decoder: nn.Module,
        channels: int,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.frozen, self.residual, self.decoder = frozen, residual, decoder
        if isinstance(frozen, nn.Module):
            frozen.eval().requires_grad_(False)
        self.register_buffer("mean", torch.full((channels,), torch.nan))
        self.register_buffer("std", torch.full((channels,), torch.nan))

    def train(self, mode: bool = True) -> "FrozenEncoderLatents":
        """As usual, but the frozen encoder stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.frozen, nn.Module):
            self.frozen.eval()
        return self

    def features(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch frozen *grid"]:
        """What the frozen encoder sees."""
        with torch.no_grad():
            return self.frozen(x)

    def raw(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch channels *grid"]:
        """frozen(x) ⊕ residual(x), as the decoder takes them.

        Raises:
            ValueError: they are not the promised number of channels.
        """
        parts = [self.features(x)] if self.residual is None else [self.features(x), self.residual(x)]
        whole = torch.cat(parts, dim=1)
        if whole.shape[1] != len(self.mean):
            raise ValueError(f"the encoders give {whole.shape[1]} channels, but channels={len(self.mean)}")
        return whole

    @torch.no_grad()
    def fit(self, pictures: Iterable[Tensor]) -> "FrozenEncoderLatents":
        """Take mean and standard deviation of every channel from data; they are saved with the weights.

        Args:
            pictures: batches of x, read once.

        Raises:
            ValueError: there are no pictures, or a channel is constant.
        """
        count, total, squares = 0, torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        centre: Tensor | None = None
        for batch in pictures:
            values = self.raw(batch).double().transpose(0, 1).flatten(1)
            # About the first batch's mean, so that squares of large offsets do not cancel.
            centre = values.mean(1) if centre is None else centre
            apart = values - centre[:, None]
            count, total = count + values.shape[1], total + apart.sum(1)
            squares = squares + apart.square().sum(1)
        if centre is None or count < 2:
            raise ValueError("pictures must hold at least two values of every channel")
        variance = squares / count - (total / count).square()
        if not bool((variance > 1e-12 * (1 + centre.square())).all()):
            constant = (variance <= 1e-12 * (1 + centre.square())).nonzero().flatten().tolist()
            raise ValueError(f"pictures must vary in every channel of the latents; constant: {constant}")
        self.mean.copy_(centre + total / count)
        self.std.copy_(variance.sqrt())
        return self

    def encode(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch channels *grid"]:
        """Normalised latents.

        Raises:
            ValueError: `fit` was not called.
        """
        self._check_fitted()
        raw = self.raw(x)
        return (raw - _by_channel(self.mean, raw)) / _by_channel(self.std, raw)

    def decode(self, z: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch *shape"]:
        """The picture of normalised latents.

        Raises:
            ValueError: `fit` was not called.
        """
        self._check_fitted()
        return self.decoder(z * _by_channel(self.std, z) + _by_channel(self.mean, z))

    def _check_fitted(self) -> None:
        if bool(self.std.isnan().any()):
            raise ValueError("the statistics of the latents are not known yet; call fit(pictures) first")


class LatentAutoencoding(SinglePhase):
    """Train residual encoder and decoder of `FrozenEncoderLatents`, which is the student.

    loss = distance(decoder(frozen(x) ⊕ residual(x)), x) + w·((m_r − m_f)² + (s_r − s_f)²)

    with mean m and standard deviation s of all frozen (f) and all residual (r) values of the batch: without
    it the residual's scale is free, and detail may drown meaning in what the diffusion model has to learn.

    Args:
        distance: of the pictures (None: mean absolute error).
        alignment: w.

    Raises:
        ValueError: alignment is negative.

    Reference: Shi et al. 2025 (SVG), section 3.2, which adds LPIPS and an adversary to the distance.
    """

    def __init__(self, distance: Distance | None = None, alignment: float = 0.1) -> None:
        if alignment < 0:
            raise ValueError(f"alignment must not be negative, got {alignment!r}")
        self.distance, self.alignment = distance or AbsoluteError(), alignment

    def loss(self, student: Any, batch: Any, generator: torch.Generator, moment: Moment) -> Losses:
        """The loss, its reconstruction and how far the residual's values lie from the features'."""
        x = SampleBatch.read(batch).x0
        features = student.features(x)
        apart = torch.zeros((), device=x.device, dtype=x.dtype)
        residual = features[:, :0] if student.residual is None else student.residual(x)
        parts = torch.cat([features, residual], dim=1)
        if features.shape[1] and residual.shape[1]:
            mean, std = residual.mean() - features.mean(), residual.std() - features.std()
            apart = mean.square() + std.square()
        error = self.distance(student.decoder(parts), x).mean()
        loss = error + self.alignment * apart
        return {"loss": loss, "reconstruction": error.detach(), "misaligned": apart.detach()}


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(1, -1, *[1] * (like.ndim - 2))
