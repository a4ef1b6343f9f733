"""ResNet-18 and -34 for images, with group normalisation in place of batch normalisation where wanted."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

BLOCKS: dict[str, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)
CHANNELS_PER_GROUP = 16


def norm_layer(channels: int, norm: str) -> nn.Module:
    """GroupNorm with one group for 16 channels, or BatchNorm."""
    return (
        nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)
        if norm == "group"
        else nn.BatchNorm2d(channels)
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a residual connection; names of weights are torchvision's."""

    def __init__(self, into: int, out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(out, norm)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(out, norm)
        same = into == out and stride == 1
        self.downsample = (
            None
            if same
            else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), norm_layer(out, norm))
        )

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out height width"]:
        """The block's value."""
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Residual network up to its pooled features of 512 numbers; names of weights are torchvision's.

    Args:
        depth: by torchvision's name.
        channels: of the image.
        norm: of the layers.

    Raises:
        ValueError: an unknown depth or norm.

    Reference: He et al. 2016, "Deep Residual Learning for Image Recognition".
    """

    features = WIDTHS[-1]

    def __init__(self, depth: str = "resnet18", channels: int = 3, norm: str = "group") -> None:
        super().__init__()
        if depth not in BLOCKS or norm not in ("group", "batch"):
            raise ValueError(
                f"depth must be one of {', '.join(BLOCKS)} and norm group or batch, got {depth!r}, {norm!r}"
            )
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = norm_layer(WIDTHS[0], norm)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        into = WIDTHS[0]
        for number, (width, count) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True), start=1):
            setattr(self, f"layer{number}", _layer(into, width, count, 1 if number == 1 else 2, norm))
            into = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def trunk(self) -> list[nn.Module]:
        """The layers up to the feature map, in order."""
        return list(self.children())[:-1]

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch features"]:
        """Mean features of images."""
        for layer in self.trunk():
            x = layer(x)
        return self.avgpool(x).flatten(1)


def _layer(into: int, out: int, count: int, stride: int, norm: str) -> nn.Sequential:
    strides: Sequence[int] = (stride, *(1,) * (count - 1))
    return nn.Sequential(
        *(BasicBlock(into if i == 0 else out, out, stride, norm) for i, stride in enumerate(strides))
    )
