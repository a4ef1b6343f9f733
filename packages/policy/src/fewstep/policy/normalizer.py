"""Scaling of observations and actions to the range that networks are trained in."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.policy.episodes import Episodes
from fewstep.policy.names import is_image
from fewstep.policy.statistics import (
    STATISTICS,
    Statistics,
    checked_modes,
    checked_statistics,
    scale_and_offset,
    statistics_of,
)

BUFFERS = ("scale", "offset", *STATISTICS)


class Normalizer(nn.Module):
    """Affine scaling y = x·scale + offset of every named observation and of the action, saved as buffers.

    By mode, from the statistics of the demonstrations:
        "limits"    scale = 2/(max − min), offset = −1 − scale·min: into [−1, 1]; a dimension whose range is
                    below 1e-4 has scale 1 and offset −min, thus 0
        "gaussian"  scale = 1/std, offset = −mean·scale; std below 1e-4 counts as 1
        "min_max"   LeRobot's form of "limits": only dimensions with max = min are special; they give −1
        "mean_std"  LeRobot's form of "gaussian": scale = 1/(std + 1e-8); std = 0 counts as 1
        "unit"      2x − 1, for images in [0, 1]
        "identity"  x
    Vectors and points have statistics per entry of their last dimension, images per channel, (C, 1, 1).

    Args:
        shapes: of the statistics by name; the scaling is the identity until it is fitted or loaded. `blank`
            finds these shapes.

    Example:
        >>> scaling = Normalizer.fit({"action": np.array([[0.0], [4.0]])}, {"action": "limits"})
        >>> scaling.normalize("action", torch.tensor([[1.0]]))
        tensor([[-0.5000]])

    Reference: Chi et al. (2023), Diffusion Policy, its LinearNormalizer ("limits", "gaussian", "unit").
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.fields = nn.ModuleDict({_key(name): _Scaling(tuple(shape)) for name, shape in shapes.items()})

    @classmethod
    def blank(
        cls,
        features: Mapping[str, tuple[int, ...]],
        modes: Mapping[str, str],
        dtype: torch.dtype = torch.float32,
    ) -> "Normalizer":
        """A normaliser to load weights into, for features of one step such as {"state": (5,)}.

        Args:
            features: shape of one step by name: (D,), images (C, H, W), points (N, C).
            modes: as in `fit`; only names in it are normalised.
            dtype: of the buffers.

        Raises:
            ValueError: a mode is unknown, or a feature is not given.
        """
        shapes = {}
        for name, mode in checked_modes(modes).items():
            if name not in features:
                raise ValueError(f"modes names {name!r}, which is no feature; those are {sorted(features)}")
            feature = tuple(features[name])
            per_entry = (feature[0], 1, 1) if is_image(name) else feature[-1:]
            shapes[name] = (1,) if mode in ("unit", "identity") else per_entry
        return cls(shapes).to(dtype)

    @classmethod
    def fit(
        cls,
        arrays: Episodes | Mapping[str, np.ndarray | Tensor],
        modes: Mapping[str, str],
        dtype: torch.dtype = torch.float32,
    ) -> "Normalizer":
        """Take the statistics from demonstrations.

        Args:
            arrays: by name (steps, …, D); images (steps, height, width, channels) as uint8 (0..255) or as
                floats in [0, 1]. Statistics are computed in float64.
            modes: by name, see the class; arrays without a mode are left alone.
            dtype: of the buffers.

        Raises:
            ValueError: a mode is unknown, an array is absent, empty or not finite.
        """
        arrays = arrays.arrays if isinstance(arrays, Episodes) else arrays
        absent = [name for name in modes if name not in arrays]
        if absent:
            raise ValueError(f"modes names {absent}, but the arrays are {sorted(arrays)}")
        checked = checked_modes(modes)
        measured = {
            name: {} if mode in ("unit", "identity") else statistics_of(name, arrays[name])
            for name, mode in checked.items()
        }
        return cls.from_statistics(measured, checked, dtype)

    @classmethod
    def from_statistics(
        cls,
        statistics: Mapping[str, Statistics],
        modes: Mapping[str, str],
        dtype: torch.dtype = torch.float32,
    ) -> "Normalizer":
        """Build the scaling from statistics that are known, such as those of a LeRobot data set.

        Args:
            statistics: by name, those that the mode needs of min, max, mean and std, each (D,) or (C, 1, 1).
            modes: by name, see the class.
            dtype: of the buffers.

        Raises:
            ValueError: a mode is unknown, a statistic is absent, not finite or of another shape.
        """
        buffers = {}
        for name, mode in checked_modes(modes).items():
            found = checked_statistics(name, mode, statistics.get(name, {}))
            scale, offset = scale_and_offset(mode, found)
            empty = {key: torch.full_like(scale, torch.nan) for key in STATISTICS}
            buffers[name] = {**empty, **found, "scale": scale, "offset": offset}
        normalizer = cls({name: tuple(values["scale"].shape) for name, values in buffers.items()}).to(dtype)
        for name, values in buffers.items():
            normalizer.scaling(name).set(values)
        return normalizer

    @property
    def names(self) -> tuple[str, ...]:
        """What is normalised."""
        return tuple(_name(key) for key in self.fields)

    def normalize(self, name: str, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return x·scale + offset.

        Raises:
            ValueError: nothing of that name is normalised, or x has another width.
        """
        scaling = self.scaling(name)
        scaling.check(name, x)
        return x * scaling.scale + scaling.offset

    def unnormalize(self, name: str, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return (x − offset)/scale, the inverse of `normalize`."""
        scaling = self.scaling(name)
        scaling.check(name, x)
        return (x - scaling.offset) / scaling.scale

    def scaling(self, name: str) -> "_Scaling":
        """Scale, offset and statistics of one name."""
        if _key(name) not in self.fields:
            raise ValueError(f"nothing is known to normalise {name!r}; known are {', '.join(self.names)}")
        scaling = self.fields[_key(name)]
        assert isinstance(scaling, _Scaling)
        return scaling

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Those of min, max, mean and std that are known, by name."""
        known = {}
        for name in self.names:
            values = {key: getattr(self.scaling(name), key) for key in STATISTICS}
            known[name] = {key: value for key, value in values.items() if not bool(value.isnan().any())}
        return known


class _Scaling(nn.Module):
    scale: Tensor
    offset: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        for name in BUFFERS:
            fill = {"scale": 1.0, "offset": 0.0}.get(name, torch.nan)
            self.register_buffer(name, torch.full(shape, fill))

    def set(self, values: Mapping[str, Tensor]) -> None:
        for name in BUFFERS:
            getattr(self, name).copy_(values[name])

    def check(self, name: str, x: Tensor) -> None:
        """One number serves any width; else the trailing dimensions must be those of the statistics."""
        shape = self.scale.shape
        position = x.ndim - len(shape)
        if shape[0] != 1 and (position < 0 or x.shape[position] != shape[0]):
            expected = f"(…, {shape[0]})" if len(shape) == 1 else f"(…, {shape[0]}, height, width)"
            raise ValueError(f"{name!r} must have the shape {expected}, got {tuple(x.shape)}")


def _key(name: str) -> str:
    """Names of modules cannot hold a dot, as in "image.top"."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
