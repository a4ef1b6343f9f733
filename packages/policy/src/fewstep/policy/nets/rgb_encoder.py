"""Images to features: LeRobot's encoder of key points, Diffusion Policy's encoder of several observations."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .crop import Crop
from .resnet import ResNet
from .spatial_softmax import SpatialSoftmax

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resized(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Images in another size, by linear interpolation that averages when it shrinks."""
    return image if size is None else F.interpolate(image, size, mode="bilinear", antialias=True)


class DiffusionRgbEncoder(nn.Module):
    """LeRobot's image encoder: resize, crop → ResNet's feature map → key points → linear → ReLU.

    Names of weights are LeRobot's (`backbone.0…7`, `pool.nets`, `pool.pos_grid`, `out`).

    Args:
        shape: channels, height and width of the images.
        crop: height and width of the crop (None: none); at random in training, from the centre else.
        keypoints: of the spatial softmax; the features are twice as many.
        depth: of the ResNet.
        norm: of the ResNet.
        random_crop: whether training crops at random.
        resize: height and width that images are resized to first (None: as they are).

    Raises:
        ValueError: a crop larger than the image.

    Reference: Cadene et al. 2024, "LeRobot", released code; Chi et al. 2023, "Diffusion Policy", sec. III-B.

    Example:
        >>> DiffusionRgbEncoder((3, 96, 96), crop=(84, 84)).eval()(torch.zeros(2, 3, 96, 96)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        crop: tuple[int, int] | None = None,
        keypoints: int = 32,
        depth: str = "resnet18",
        norm: str = "group",
        random_crop: bool = True,
        resize: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.resize, self.feature_dim = tuple(shape), resize, 2 * keypoints
        height, width = resize or shape[1:]
        if crop is not None and (crop[0] > height or crop[1] > width):
            raise ValueError(f"crop must fit into images of {(height, width)}, got {crop}")
        self.crop = Crop(crop, random_crop, shared=True) if crop is not None else nn.Identity()
        self.backbone = nn.Sequential(*ResNet(depth, shape[0], norm).trunk())
        height, width = (-(-size // 32) for size in crop or (height, width))  # five halvings, rounding up
        self.pool = SpatialSoftmax((ResNet.features, height, width), keypoints)
        self.out = nn.Linear(self.feature_dim, self.feature_dim)

    def forward(self, image: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch features"]:
        """Features of images in [0, 1] (or normalised, as the policy was trained).

        Raises:
            ValueError: images of another shape.
        """
        if tuple(image.shape[1:]) != self.shape:
            raise ValueError(f"image must be (batch, *{self.shape}), got {tuple(image.shape)}")
        window = self.crop(resized(image, self.resize))
        return F.relu(self.out(self.pool(self.backbone(window)).flatten(1)))


class MultiImageObsEncoder(nn.Module):
    """Diffusion Policy's encoder of several cameras and plain numbers: features side by side.

    The ResNets' features of the images, in the order of their sorted names, then the plain numbers, in the
    order of theirs. Names of weights are those of Diffusion Policy.

    Args:
        shapes: of the observations: three sizes for an image (channels, height, width), one for numbers.
        shared: whether all cameras share one network.
        resize: height and width that images are resized to first (None: as they are).
        crop: height and width of the crop (None: none).
        random_crop: whether training crops at random places (else the centre, in both modes; the published
            code leaves the crop out in this case).
        imagenet: whether images in [0, 1] are normalised by the statistics of ImageNet.
        depth: of the ResNets.
        norm: of the ResNets.

    Raises:
        ValueError: shapes that are neither, or no observation at all.

    Reference: Chi et al. 2023, "Diffusion Policy", released code.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        shared: bool = False,
        resize: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        random_crop: bool = True,
        imagenet: bool = True,
        depth: str = "resnet18",
        norm: str = "group",
    ) -> None:
        super().__init__()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        odd = {name: shape for name, shape in self.shapes.items() if len(shape) not in (1, 3)}
        if odd or not self.shapes:
            raise ValueError(f"shapes must be of images (c, h, w) or numbers (n,), got {odd or shapes}")
        self.images = sorted(name for name, shape in self.shapes.items() if len(shape) == 3)
        self.numbers = sorted(set(self.shapes) - set(self.images))
        self.shared, self.resize, self.imagenet = shared, resize, imagenet
        self._dummy_variable = nn.Parameter(torch.zeros(0))  # a name of the published layout
        # The published order of the networks is that of the observations, which numbers their weights.
        cameras = ["rgb"] if shared else [name for name in self.shapes if name in self.images]
        channels = {name: self.shapes[self.images[0] if shared else name][0] for name in cameras}
        self.key_model_map = nn.ModuleDict(
            {name: ResNet(depth, channels[name], norm) for name in (cameras if self.images else ())}
        )
        self.crop = Crop(crop, random_crop) if crop is not None else nn.Identity()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    @property
    def feature_dim(self) -> int:
        """Numbers of the result."""
        return ResNet.features * len(self.images) + sum(self.shapes[name][0] for name in self.numbers)

    def forward(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch features"]:
        """Features of observations by name, images in [0, 1].

        Raises:
            ValueError: an observation is missing or has another shape.
        """
        for name, shape in self.shapes.items():
            got = observations.get(name)
            if got is None or tuple(got.shape[1:]) != shape:
                have = "missing" if got is None else tuple(got.shape)
                raise ValueError(f"observation {name!r} must be (batch, *{shape}), got {have}")
        images = [self._prepared(observations[name]) for name in self.images]
        if self.shared and images:
            features = list(self.key_model_map["rgb"](torch.cat(images)).chunk(len(images)))
        else:
            features = [
                self.key_model_map[name](image) for name, image in zip(self.images, images, strict=True)
            ]
        return torch.cat([*features, *(observations[name] for name in self.numbers)], dim=1)

    def _prepared(self, image: Tensor) -> Tensor:
        image = self.crop(resized(image, self.resize))
        return (image - self.mean) / self.std if self.imagenet else image
