"""First stages that lose nothing: the image itself, or its pixels folded into channels."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PixelUnshuffle(nn.Module):
    """Blocks of factor × factor pixels as channels; factor 1 leaves the image as it is.

    Args:
        factor: how many times smaller the sides become.

    Example:
        >>> import torch
        >>> stage = PixelUnshuffle(2)
        >>> image = torch.rand(1, 3, 4, 6)
        >>> stage.encode(image).shape, torch.equal(stage.decode(stage.encode(image)), image)
        (torch.Size([1, 12, 2, 3]), True)
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor = factor
        self.latent_channels = 3 * factor**2

    def encode(self, x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch latent h2 w2"]:
        """Image to blocks."""
        return F.pixel_unshuffle(x, self.factor)

    def decode(self, z: Float[Tensor, "batch latent h w"]) -> Float[Tensor, "batch 3 h2 w2"]:
        """Blocks to image."""
        return F.pixel_shuffle(z, self.factor)
