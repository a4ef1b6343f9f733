"""From named observations to the numbers that a policy's network is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..names import is_image
from .point_encoder import PointNet
from .rgb_encoder import DiffusionRgbEncoder


@dataclass(frozen=True)
class EncoderConfig:
    """How images and points are encoded; vectors are told as they are.

    Args:
        crop: height and width of the part of an image that is looked at (None: all of it).
        resize: height and width that images are given first (None: their own).
        keypoints: of the spatial softmax of an image.
        depth: of the ResNet.
        shared: whether all cameras have the same weights.
        point_features: numbers for a cloud of points.

    Reference: Cadene et al. 2024, "LeRobot", its DiffusionPolicy (images); Ze et al. 2024, "3D Diffusion
        Policy" (points).
    """

    crop: Sequence[int] | None = None
    resize: Sequence[int] | None = None
    keypoints: int = 32
    depth: str = "resnet18"
    shared: bool = True
    point_features: int = 64


class ObservationEncoder(nn.Module):
    """One row of numbers per observation window: for every step state, images, points, environment state.

    Args:
        observations: shape of one step by name.
        steps: of a window.
        config: of the encoders.

    Raises:
        ValueError: cameras that share an encoder but not their shape.

    Example:
        >>> encoder = ObservationEncoder({"state": (3,), "points": (64, 3)}, 2, EncoderConfig())
        >>> encoder({"state": torch.zeros(5, 2, 3), "points": torch.zeros(5, 2, 64, 3)}).shape
        torch.Size([5, 134])
    """

    def __init__(self, observations: Mapping[str, Sequence[int]], steps: int, config: EncoderConfig) -> None:
        super().__init__()
        cameras = sorted(name for name in observations if is_image(name))
        before = [name for name in ("state",) if name in observations]
        after = [name for name in ("points", "environment_state") if name in observations]
        self.names, self.steps = (*before, *cameras, *after), steps
        shapes = {tuple(observations[name]) for name in cameras}
        if config.shared and len(shapes) > 1:
            raise ValueError(f"cameras that share an encoder must have one shape, got {sorted(shapes)}")
        self.cameras = nn.ModuleDict()
        for name in cameras[:1] if config.shared else cameras:
            channels, height, width = observations[name]
            self.cameras[name.replace(".", "/")] = DiffusionRgbEncoder(
                (channels, height, width),
                _pair(config.crop),
                config.keypoints,
                config.depth,
                resize=_pair(config.resize),
            )
        self.points = None
        if "points" in observations:
            self.points = PointNet(observations["points"][1], config.point_features)
        widths = {name: shape[0] for name, shape in observations.items()}
        widths |= dict.fromkeys(cameras, 2 * config.keypoints)
        widths |= {"points": config.point_features}
        self.numbers = steps * sum(widths[name] for name in self.names)

    def forward(self, seen: Mapping[str, Float[Tensor, "batch steps *shape"]]) -> Float[Tensor, "batch told"]:
        """Encode normalised observations."""
        return torch.cat([self._encoded(name, seen[name]) for name in self.names], dim=-1).flatten(1)

    def _encoded(self, name: str, value: Tensor) -> Tensor:
        if value.ndim == 3:
            return value
        encoder = self.points if name == "points" else self._camera(name)
        assert encoder is not None
        return encoder(value.flatten(0, 1)).unflatten(0, value.shape[:2])

    def _camera(self, name: str) -> nn.Module:
        key = name.replace(".", "/")
        return self.cameras[key if key in self.cameras else next(iter(self.cameras))]


def _pair(size: Sequence[int] | None) -> tuple[int, int] | None:
    return None if size is None else (int(size[0]), int(size[1]))
