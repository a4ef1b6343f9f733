"""Blocks of the temporal U-Net: convolutions over the steps of a chunk, modulated by a condition."""

from jaxtyping import Float
from torch import Tensor, nn

from .trained_layers import conv1d, norm_mish

CONDITIONS = ("film", "add", "mlp_film")


class Conv1dBlock(nn.Module):
    """Convolution over time → GroupNorm → Mish.

    Args:
        channels: in and out.
        kernel: odd, so that the length stays.
        groups: of the normalisation.
    """

    def __init__(self, channels: tuple[int, int], kernel: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(*channels, kernel, padding=kernel // 2), nn.GroupNorm(groups, channels[1]), nn.Mish()
        )

    def forward(self, x: Float[Tensor, "batch channels time"]) -> Float[Tensor, "batch out time"]:
        """The block's value."""
        return norm_mish(conv1d(x, self.block[0]), self.block[1])


class Downsample1d(nn.Module):
    """Half as many steps, by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, 2, 1)

    def forward(self, x: Float[Tensor, "batch channels time"]) -> Float[Tensor, "batch channels half"]:
        """The shortened sequence."""
        return conv1d(x, self.conv)


class Upsample1d(nn.Module):
    """Twice as many steps, by a transposed convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, 2, 1)

    def forward(self, x: Float[Tensor, "batch channels time"]) -> Float[Tensor, "batch channels double"]:
        """The lengthened sequence."""
        return self.conv(x)


def condition_encoder(width: int, channels: int, condition: str) -> nn.Sequential:
    """The layers that turn a condition of `width` numbers into what modulates `channels` channels."""
    if condition == "mlp_film":
        return nn.Sequential(nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, 2 * channels))
    return nn.Sequential(nn.Mish(), nn.Linear(width, channels if condition == "add" else 2 * channels))


class ConditionalResidualBlock1D(nn.Module):
    """Two convolution blocks with a modulation between them, and a residual connection.

    h = block_0(x);  h ← scale·h + bias ("film", "mlp_film") or h + bias ("add");  block_1(h) + residual(x),

    where the condition gives scale and bias (scale alone, not 1 + scale, as in the published code).

    Args:
        channels: in and out.
        width: of the condition.
        kernel: of the convolutions.
        groups: of the normalisations.
        condition: how it modulates.

    Reference: Chi et al. 2023, "Diffusion Policy", released code; Perez et al. 2018, "FiLM".
    """

    def __init__(
        self, channels: tuple[int, int], width: int, kernel: int, groups: int, condition: str
    ) -> None:
        super().__init__()
        into, out = channels
        self.blocks = nn.ModuleList(
            [Conv1dBlock((into, out), kernel, groups), Conv1dBlock((out, out), kernel, groups)]
        )
        self.cond_encoder = condition_encoder(width, out, condition)
        self.residual_conv = nn.Conv1d(into, out, 1) if into != out else nn.Identity()
        self.condition = condition

    def forward(
        self, x: Float[Tensor, "batch channels time"], told: Float[Tensor, "batch width"] | None
    ) -> Float[Tensor, "batch out time"]:
        """The block's value; without a condition nothing is modulated."""
        h = self.blocks[0](x)
        if told is not None:
            h = self._modulated(h, self.cond_encoder(told)[:, :, None])
        kept = x if isinstance(self.residual_conv, nn.Identity) else conv1d(x, self.residual_conv)
        return self.blocks[1](h) + kept

    def _modulated(self, h: Tensor, encoded: Tensor) -> Tensor:
        if self.condition == "add":
            return h + encoded
        scale, bias = encoded.chunk(2, dim=1)
        return scale * h + bias
