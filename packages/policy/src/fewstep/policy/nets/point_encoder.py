"""Point clouds to features: DP3's small PointNet beside a perceptron of the robot's state."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .mlp import perceptron

WIDTHS = {3: (64, 128, 256), 6: (64, 128, 256, 512)}


class PointNet(nn.Module):
    """The same perceptron for every point, the largest value of each feature, a projection.

    y = project(max_i mlp(p_i)): the order of the points does not matter.

    Args:
        channels: per point: 3 (position) or 6 (position and colour).
        features: numbers of the result.
        normalised: whether LayerNorm follows the linear layers of the perceptron.
        final_norm: whether LayerNorm follows the projection.

    Raises:
        ValueError: another number of channels.

    Reference: Ze et al. 2024, "3D Diffusion Policy", released code; Qi et al. 2017, "PointNet".
    """

    def __init__(
        self, channels: int = 3, features: int = 64, normalised: bool = True, final_norm: bool = True
    ) -> None:
        super().__init__()
        if channels not in WIDTHS:
            raise ValueError(f"channels must be 3 or 6, got {channels}")
        self.channels = channels
        layers: list[nn.Module] = []
        into = channels
        for width in WIDTHS[channels]:
            norm = nn.LayerNorm(width) if normalised else nn.Identity()
            layers += [nn.Linear(into, width), norm, nn.ReLU()]
            into = width
        # With colour the published perceptron ends in a linear layer.
        self.mlp = nn.Sequential(*(layers if channels == 3 else layers[:-2]))
        project = nn.Linear(into, features)
        self.final_projection = nn.Sequential(project, nn.LayerNorm(features)) if final_norm else project

    def forward(self, points: Float[Tensor, "batch points channels"]) -> Float[Tensor, "batch features"]:
        """Features of point clouds."""
        return self.final_projection(self.mlp(points).amax(dim=1))


class DP3Encoder(nn.Module):
    """DP3's encoder: [PointNet of the points, perceptron of the state].

    Names of weights are those of DP3 (`extractor.mlp`, `extractor.final_projection`, `state_mlp`).

    Args:
        state_dim: numbers of the robot's state.
        channels: per point: 3 (position) or 6 (position and colour).
        features: numbers for the points.
        state_sizes: widths of the state's perceptron.
        normalised: whether LayerNorm follows the linear layers for the points.
        final_norm: whether LayerNorm follows the projection.

    Raises:
        ValueError: sizes that are not positive, or another number of channels.

    Reference: Ze et al. 2024, "3D Diffusion Policy", released code.

    Example:
        >>> DP3Encoder(7)(torch.zeros(2, 512, 3), torch.zeros(2, 7)).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        state_dim: int,
        channels: int = 3,
        features: int = 64,
        state_sizes: Sequence[int] = (64, 64),
        normalised: bool = True,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.extractor = PointNet(channels, features, normalised, final_norm)
        self.state_mlp = perceptron((state_dim, *state_sizes), "relu")
        self.state_dim, self.feature_dim = state_dim, features + state_sizes[-1]

    def forward(
        self, points: Float[Tensor, "batch points channels"], state: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch features"]:
        """Features of an observation.

        Args:
            points: the cloud; colours, if it has any, are cut off for an encoder of positions.
            state: of the robot.

        Raises:
            ValueError: shapes that do not fit.
        """
        channels = self.extractor.channels
        if points.ndim != 3 or points.shape[1] < 1 or points.shape[2] < channels:
            raise ValueError(f"points must be (batch, points, {channels}), got {tuple(points.shape)}")
        if tuple(state.shape) != (len(points), self.state_dim):
            raise ValueError(f"state must be {(len(points), self.state_dim)}, got {tuple(state.shape)}")
        return torch.cat([self.extractor(points[..., :channels]), self.state_mlp(state)], dim=1)
