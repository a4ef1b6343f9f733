"""What an IDM model is built from."""

from dataclasses import dataclass

from ..compressed_sensing import BLOCK, MATRIX_SEED, rows_of
from ..nets.idm_unet import Shape


@dataclass(frozen=True)
class IDMConfig:
    """Everything an IDM model is built from; the defaults are the published model for a ratio of 10 %.

    Args:
        ratio: measurements per pixel that the model was trained for, in (0, 1].
        block: side of the square with as many pixels as are measured together.
        matrix_seed: of the sensing matrix, where the model measures by itself.
        steps: sampling steps T.
        channels: features of the two levels of the U-Net.
        heads: of its attentions.
        groups: of its group normalisations.
        fold: side of the squares of pixels that become channels before its first layer.
        attention: whether the layers of a level hold an attention. Left out on the first level, the cost of
            the model grows with the pixels rather than with their square.
        normalised: residual blocks with group normalisation, as published; otherwise two plain convolutions.
        wiring: v of every coupling at the start of training.
        standardised: the network works on (x − m)/s, with the mean m and the contrast s of an image estimated
            from its measurements: Aᵀy alone loses the mean. Not published.
        consistent: the result is projected once more onto the images with the given measurements. Not
            published: there the mixing weights after the last projection leave a small difference.
        group: larger images are measured and reconstructed in rectangles with at most this side.
        tasks: what the model was trained for.

    Raises:
        ValueError: a value outside of its range.

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", section 4.1.
    """

    ratio: float = 0.1
    block: int = BLOCK
    matrix_seed: int = MATRIX_SEED
    steps: int = 3
    channels: tuple[int, int] = (320, 640)
    heads: int = 8
    groups: int = 32
    fold: int = 2
    attention: tuple[bool, bool] = (True, True)
    normalised: bool = True
    wiring: float = 0.5
    standardised: bool = False
    consistent: bool = False
    group: int = 512
    tasks: tuple[str, ...] = ("compressed-sensing",)

    def __post_init__(self) -> None:
        rows_of(self.ratio)
        shape = self.shape()
        if self.block < 1 or self.block % (2 * shape.fold):
            raise ValueError(f"block must be a multiple of {2 * shape.fold} (2 · fold), got {self.block}")
        if self.group < self.block:
            raise ValueError(f"group must be at least block {self.block}, got {self.group}")

    @property
    def scale(self) -> int:
        """1: the result is as large as the input."""
        return 1

    @property
    def padding(self) -> int:
        """1: images are extended by zeros when they are measured, not before."""
        return 1

    @property
    def rows(self) -> int:
        """Measurements of a block."""
        return rows_of(self.ratio, self.block**2)

    def shape(self) -> Shape:
        """Sizes of the U-Net."""
        return Shape(
            channels=self.channels,
            heads=self.heads,
            groups=self.groups,
            steps=self.steps,
            fold=self.fold,
            attention=self.attention,
            normalised=self.normalised,
            wiring=self.wiring,
        )
