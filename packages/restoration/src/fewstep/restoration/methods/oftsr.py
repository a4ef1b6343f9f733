"""OFTSR: a flow from the degraded image to the clean one, and its student of one tunable step."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.denoising import DenoisingObjective, Error
from fewstep.core.objectives.distances import AbsoluteError, SquaredError
from fewstep.core.objectives.times import Uniform
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.fidelity_realism import FidelityRealism
from fewstep.core.wrapping import BaseDenoiser

from ..nets.guided_unet import GuidedUNet
from ..nets.small_unet import SmallUNet
from .base import Level, PathModel, check_steps
from .oftsr_config import MARGIN, OFTSRConfig

__all__ = ["OFTSR", "OFTSRConfig", "distillation_objective", "flow_objective", "student_of"]

BUILDERS: dict[str, Callable[..., nn.Module]] = {"guided-unet": GuidedUNet, "small-unet": SmallUNet}
# Networks that give the low-quality image plus something say x0; the published one says the velocity.
PREDICTIONS = {"guided-unet": "velocity", "small-unet": "x0"}
CLOCK = 999.0
BICUBIC_REACH = 2


class OFTSR(PathModel):
    """An OFTSR model: network and straight path.

    x_t = t x0 + (1 − t) x_init,  x_init = √(1 − p²) y + p ε,  network v = x0 − x_init,

    y being the input enlarged by bicubic interpolation and t the published time, 1 where the image is clean.
    A flow is followed in many steps. A student is asked once, x0 = x_init + v(x_init, t), where t says how
    far along the flow's way it lands: "mean" asks at t = 0 (least error), "sample" at t = realism.

    Args:
        config: what to build.
        network: used in place of the one that the configuration describes.

    Raises:
        ValueError: the padding does not suit the network.

    Example:
        >>> options = {"widths": (8, 8), "blocks": 1}
        >>> config = OFTSRConfig(network="small-unet", network_options=options, padding=1)
        >>> model = OFTSR(config).eval()
        >>> model.restore(torch.zeros(1, 3, 10, 7)).shape, model.tuned(0.3).config.realism
        (torch.Size([1, 3, 40, 28]), 0.3)

    Reference: Zhu et al. 2025, "OFTSR: One-Step Flow for Image Super-Resolution with Tunable Fidelity-Realism
        Trade-offs", section 4.
    """

    config_class = OFTSRConfig
    config: OFTSRConfig
    solvers = ("euler", "dpmpp-2m")

    def __init__(self, config: OFTSRConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.path = config.path()
        self.net = BUILDERS[config.network](**config.network_options) if network is None else network
        multiple = int(getattr(self.net, "multiple", 1))
        if config.scale * config.padding % multiple:
            raise ValueError(
                f"padding times scale must be a multiple of {multiple}, got {config.padding}·{config.scale}"
            )
        self._denoisers: dict[torch.dtype, Denoiser] = {}

    @property
    def state_channels(self) -> int:
        return 3

    @property
    def reach(self) -> int | None:
        if not isinstance(self.net, SmallUNet):
            return None
        return -(-self.net.receptive_field // self.scale) + BICUBIC_REACH

    @property
    def pixel_bytes(self) -> int:
        if isinstance(self.net, SmallUNet):
            return self.scale**2 * self.net.pixel_bytes
        return 4 * self.scale**2 * 12 * int(getattr(self.net, "model_channels", 128))

    def steps_of(self, mode: str, steps: int | None = None) -> int:
        published, most = (1, 1) if self.config.kind == "student" else (self.config.steps, int(CLOCK))
        return check_steps(mode, steps, self.modes, published, most)

    def prior(self, lq: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h2 w2"]:
        scale = self.config.scale
        return lq if scale == 1 else F.interpolate(lq, scale_factor=scale, mode="bicubic")

    def times(self, denoise: BaseDenoiser, mode: str, calls: int) -> Sequence[float]:
        return [1 - (1 - MARGIN) * i / calls for i in range(calls + 1)]

    def denoiser(
        self,
        lq: Float[Tensor, "batch 3 h w"],
        mask: Float[Tensor, "batch 1 h w"] | None = None,
        level: Level = None,
        *,
        steps: int | None = None,
    ) -> BaseDenoiser:
        """The network told its input, as a denoiser of states; a student also how far to go.

        Args:
            lq: input in [-1, 1].
            mask: not taken.
            level: not taken.
            steps: None: mode "mean".
        """
        self.check_told(mask, level)
        dtype = next((p.dtype for p in self.net.parameters()), torch.float32)
        if dtype not in self._denoisers:
            self._denoisers[dtype] = Denoiser(self.clockwise(), self.path, self.prediction, dtype=dtype)
        y = self.prior(lq)
        told: dict[str, Tensor] = {"lq": y}
        if self.config.kind == "student":
            realism = 0.0 if steps is None else self.config.realism
            told["s"] = torch.full((len(y),), CLOCK * (1 - realism), dtype=torch.float64, device=y.device)
        return self._denoisers[dtype].given(**told, y=y, spatial=("lq",))

    @property
    def prediction(self) -> str:
        """What the network says, on the core's path, whose time runs the other way."""
        return PREDICTIONS[self.config.network]

    def clockwise(self) -> "Clockwise":
        """The network as the core asks it: what is trained and distilled."""
        return Clockwise(self.net, -1.0 if self.prediction == "velocity" else 1.0)

    def tuned(self, realism: float) -> "OFTSR":
        """A student at another point between fidelity (0) and realism (1); the weights are shared.

        Raises:
            ValueError: realism is out of range, or this is not a student.
        """
        if self.config.kind != "student":
            raise ValueError("realism can be chosen of a student only; this model is a flow")
        other = copy.copy(self)
        other.config = replace(self.config, realism=realism)
        return other


class Clockwise(nn.Module):
    """An OFTSR network on the core's path, whose time is 1 at the start and 0 at the clean end.

    out = sign · net(x, 999 − 999 t, lq), or at s in place of t where the core wants a jump from t to s.

    Args:
        net: the network.
        sign: −1 for a velocity, which points from the start to the image here and the other way in the core.
    """

    def __init__(self, net: nn.Module, sign: float) -> None:
        super().__init__()
        self.net, self.sign = net, sign

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Float[Tensor, "batch"],
        lq: Float[Tensor, "batch channels h w"],
        s: Float[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch channels h w"]:
        """What the core's prediction means.

        Args:
            x: states.
            t: 999 times the core's time.
            lq: enlarged input.
            s: 999 times the core's time that a student should land at.
        """
        return self.sign * self.net(x, CLOCK - (t if s is None else s), lq)


def student_of(flow: OFTSR, realism: float = 0.99) -> OFTSR:
    """A student with a copy of a flow's network, so that it begins as the flow's mean.

    Raises:
        ValueError: the model is a student already.
    """
    _check_flow(flow)
    config = replace(flow.config, kind="student", realism=realism)
    return OFTSR(config, copy.deepcopy(flow.net).requires_grad_(True))


def flow_objective(model: OFTSR) -> DenoisingObjective:
    """Training of a flow: the mean absolute error of what the network says, at uniform times.

    The network that is trained is `model.clockwise()`; batches are {"x0", "y", "lq"} with lq = y the enlarged
    input.

    Raises:
        ValueError: the model is a student.

    Reference: Zhu et al. 2025, eq. 7; absolute error as in the published configurations.
    """
    _check_flow(model)
    return DenoisingObjective(
        model.path, model.prediction, Error("output", distance=AbsoluteError()), times=Uniform()
    )


def distillation_objective(
    flow: OFTSR, dt: float = 0.05, bound: float = 0.1, align: float = 0.01
) -> TrajectoryDistillation:
    """Training of `student_of(flow)`: all that it says of one start lies on the flow's way from there.

    The network that is trained is `student.clockwise()`; batches as in `flow_objective`.

    Args:
        flow: the teacher.
        dt: of its midpoint step.
        bound: weight of the mean at t = 0.
        align: weight of the teacher's view of the student's own states.

    Raises:
        ValueError: the teacher is a student, or a number is out of range.

    Reference: Zhu et al. 2025, section 4.2 and published configurations.
    """
    _check_flow(flow)
    net = copy.deepcopy(flow.clockwise()).eval().requires_grad_(False)
    teacher = FlowMap(net, flow.path, flow.prediction)
    rule = FidelityRealism(dt, bound, align, SquaredError())
    return TrajectoryDistillation(flow.path, flow.prediction, rule, teacher)


def _check_flow(model: Any) -> None:
    if model.config.kind != "flow":
        raise ValueError(f"flow must be a model of kind 'flow', got kind {model.config.kind!r}")
