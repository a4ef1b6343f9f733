"""One-call students of ResShift that can be set between fidelity and realism, in the manner of OFTSR."""

import copy
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser

from .base import check_steps
from .resshift import ResShift
from .resshift_config import PREDICTIONS, ResShiftConfig

__all__ = ["Towards", "TunableConfig", "TunableResShift", "told_of"]

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class TunableConfig(ResShiftConfig):
    """What a ResShift model is built from, and how far a student goes along the teacher's way.

    Args:
        realism: 0: the mean of what the truth may be (least error); 1: the end of the teacher's steps.

    Raises:
        ValueError: realism is out of range; and as of ResShiftConfig.
    """

    realism: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.realism <= 1:
            raise ValueError(f"realism must lie in [0, 1], got {self.realism}")


class TunableResShift(ResShift):
    """A student of ResShift that is asked once, x0 = D(x_T, s), s saying where on the teacher's way it lands.

    The network is the teacher's; s takes the place of the time, which is always that of the start. "mean"
    asks at realism 0, "sample" at the configuration's.

    Args:
        config: what to build.
        network: used in place of the one that the configuration describes.

    Example:
        >>> config = TunableConfig(network="edsr", network_options={"width": 8, "blocks": 1}, padding=1,
        ...     first_stage="identity", latent=False, kappa=0.5)
        >>> model = TunableResShift(config).eval()
        >>> model.tuned(0.5).restore(torch.zeros(1, 3, 10, 7)).shape
        torch.Size([1, 3, 40, 28])

    Reference: Zhu et al. 2025, "OFTSR: One-Step Flow for Image Super-Resolution with Tunable Fidelity-Realism
        Trade-offs", section 4, for the dial; here the teacher is ResShift.
    """

    config_class = TunableConfig
    config: TunableConfig

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        """One network call, in both modes."""
        return check_steps(mode, steps, self.modes, 1, 1)

    def denoiser(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        *,
        steps: int | None = None,
        respacing: str = "end-anchored",
    ) -> Denoiser:
        """The network told its input and how far to go, as a denoiser of the start state.

        Args:
            lq: input in [-1, 1], sides a multiple of the configuration's padding.
            mask: as of ResShift.
            steps: None: realism 0.
            respacing: of no effect on one call.
        """
        key = (self.path, next((p.dtype for p in self.net.parameters()), None))
        if key not in self._denoisers:
            prediction = PREDICTIONS[self.config.prediction]
            self._denoisers[key] = Denoiser(Towards(self.net), self.path, prediction)
        told = self._told(lq, mask)
        s = told_of(0.0 if steps is None else float(self.config.realism), self.config.steps)
        goal = torch.full((len(lq),), s, dtype=torch.float64, device=lq.device)
        return self._denoisers[key].given(**told, s=goal, y=self.prior(lq), spatial=tuple(told))

    def tuned(self, realism: float) -> "TunableResShift":
        """The student at another point between fidelity (0) and realism (1); the weights are shared.

        Raises:
            ValueError: realism is out of range.
        """
        other = copy.copy(self)
        other.config = replace(self.config, realism=realism)
        return other


class Towards(nn.Module):
    """A ResShift network that is told where to land in place of the time, which is always the start's.

    Args:
        net: called as net(x, t, lq).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Float[Tensor, "batch"],
        lq: Float[Tensor, "batch 3 h2 w2"],
        s: Float[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch channels h w"]:
        """What the network says at s, or at t where no s is told."""
        return self.net(x, t if s is None else s, lq)


def told_of(realism: Number, levels: int) -> Number:
    """What the network is told: the start's index at realism 0, with which weights begin, −1 at realism 1."""
    return levels - 1 - levels * realism
