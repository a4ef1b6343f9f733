"""Where in an image a feature is: the mean position under a softmax over the pixels."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn


class SpatialSoftmax(nn.Module):
    """Key points of a feature map: y_k = Σ_p softmax(h_k)_p · position_p, as (x, y) in [−1, 1]².

    Args:
        shape: channels, height and width of the feature map.
        keypoints: that a 1×1 convolution makes of the channels first (None: one for each channel).

    Raises:
        ValueError: a size that is not positive.

    Reference: Finn et al. 2016, "Deep Spatial Autoencoders for Visuomotor Learning".

    Example:
        >>> SpatialSoftmax((8, 3, 3), keypoints=4)(torch.zeros(1, 8, 3, 3)).shape
        torch.Size([1, 4, 2])
    """

    pos_grid: Tensor

    def __init__(self, shape: tuple[int, int, int], keypoints: int | None = None) -> None:
        super().__init__()
        channels, height, width = shape
        if min(shape) < 1 or (keypoints is not None and keypoints < 1):
            raise ValueError(f"shape and keypoints must be positive, got {shape} and {keypoints}")
        self.shape = shape
        self.nets = nn.Conv2d(channels, keypoints, 1) if keypoints is not None else None
        x, y = np.meshgrid(np.linspace(-1.0, 1.0, width), np.linspace(-1.0, 1.0, height))
        self.register_buffer("pos_grid", torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1)).float())

    def forward(self, features: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch keypoints 2"]:
        """Positions, x before y.

        Raises:
            ValueError: a feature map of another shape.
        """
        if tuple(features.shape[1:]) != self.shape:
            raise ValueError(f"features must be (batch, *{self.shape}), got {tuple(features.shape)}")
        maps = features if self.nets is None else self.nets(features)
        return maps.flatten(2).softmax(dim=-1) @ self.pos_grid
