"""What a ResShift model is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths

from .base import check_name

NETWORKS = ("unet-swin", "edsr")
FIRST_STAGES = ("identity", "pixel-unshuffle", "vq")
# Published names of what a network predicts, and ours.
PREDICTIONS = {"xstart": "x0", "residual": "residual", "epsilon": "eps", "epsilon_scale": "scaled-eps"}


@dataclass(frozen=True)
class ResShiftConfig:
    """Everything a ResShift model is built from; the defaults are the published 4-step ×4 super-resolution.

    Args:
        steps: noise levels T of the path.
        kappa: noise per unit of √η.
        min_noise_level: √η of the first level is min(min_noise_level/κ, min_noise_level).
        etas_end: √η of the last level.
        power: exponent of the schedule between them.
        latent: states are latents of any range (the network's input is scaled by 1/√(κ²η + 1), the estimate
            is not clamped); otherwise pixels in [-1, 1] (1/(3κ√η + 1), clamped).
        scale: how many times larger the result is than the input.
        prediction: what the network predicts, "xstart", "residual", "epsilon" or "epsilon_scale".
        first_stage: where the path runs, "identity" (pixels), "pixel-unshuffle" or "vq" (latents).
        first_stage_options: {"factor": n} for pixel-unshuffle, arguments of VQModel for vq.
        network: "unet-swin" or "edsr".
        network_options: arguments of the network.
        padding: the input is extended by reflection to a multiple of this.
        tasks: what it was trained for.
        calls: network calls in mode "sample" unless others are asked for; None: all levels.

    Raises:
        ValueError: for a name that is not known or a size below 1.

    Reference: Yue, Wang & Loy 2023, "ResShift", eq. 10 and section 4.1; journal version 2024 for 4 steps.
    """

    steps: int = 4
    kappa: float = 2.0
    min_noise_level: float = 0.2
    etas_end: float = 0.99
    power: float = 0.3
    latent: bool = True
    scale: int = 4
    prediction: str = "xstart"
    first_stage: str = "vq"
    first_stage_options: Mapping[str, Any] = field(default_factory=dict)
    network: str = "unet-swin"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    padding: int = 64
    tasks: tuple[str, ...] = ("super-resolution",)
    calls: int | None = None

    def __post_init__(self) -> None:
        check_name("prediction", self.prediction, PREDICTIONS)
        check_name("first_stage", self.first_stage, FIRST_STAGES)
        check_name("network", self.network, NETWORKS)
        for name in ("scale", "padding"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.path()

    def path(self, steps: int | None = None, respacing: str = "end-anchored") -> paths.ResShift:
        """The path, or one that keeps `steps` of its noise levels."""
        return paths.ResShift(
            steps=self.steps,
            kappa=self.kappa,
            min_noise_level=self.min_noise_level,
            etas_end=self.etas_end,
            power=self.power,
            latent=self.latent,
            respaced=None if steps == self.steps else steps,
            respacing=respacing,
        )
