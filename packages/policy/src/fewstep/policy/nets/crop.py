"""Crops of images: at random in training, from the centre else."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Crop(nn.Module):
    """Cut a window out of every image: in training at random places, else from the centre.

    Args:
        shape: height and width of the window.
        random: whether training takes random places.
        shared: whether a batch takes one place for all its images (LeRobot), not one for each (Diffusion
            Policy).

    Raises:
        ValueError: a window without pixels.
    """

    def __init__(self, shape: tuple[int, int], random: bool = True, shared: bool = False) -> None:
        super().__init__()
        if min(shape) < 1:
            raise ValueError(f"shape of the crop must be positive, got {shape}")
        self.shape, self.random, self.shared = shape, random, shared

    def forward(self, image: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels y x"]:
        """The windows.

        Raises:
            ValueError: an image smaller than the window.
        """
        room = [size - wanted for size, wanted in zip(image.shape[-2:], self.shape, strict=True)]
        if min(room) < 0:
            raise ValueError(f"image must be at least {self.shape}, got {tuple(image.shape[-2:])}")
        if not (self.training and self.random):
            # torchvision's rounding: half to even.
            return self._cut(image, *(round(free / 2) for free in room))
        count = 1 if self.shared else len(image)
        tops, lefts = ([int(i) for i in torch.randint(free + 1, (count,))] for free in room)
        if self.shared:
            return self._cut(image, tops[0], lefts[0])
        cuts = [self._cut(one, top, left) for one, top, left in zip(image, tops, lefts, strict=True)]
        return torch.stack(cuts)

    def _cut(self, image: Tensor, top: int, left: int) -> Tensor:
        return image[..., top : top + self.shape[0], left : left + self.shape[1]]
