"""What a Resfusion model is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths

from .base import check_name

NETWORKS = ("rddm-unet", "ddim-unet")
SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("resnoise", "x0", "residual")


@dataclass(frozen=True)
class ResfusionConfig:
    """Everything a Resfusion model is built from; the defaults are the published restorers.

    Args:
        steps: length T of the full table; the path keeps what lies before the acceleration point (5 of 12).
        schedule: "linear" or "cosine", the published LinearPro and CosinePro.
        prediction: what the network predicts: "resnoise", "x0" or "residual" (published as epsilon, sample,
            residual). The estimate of the clean image is clamped with the last two only.
        network: "rddm-unet" or "ddim-unet".
        network_options: arguments of the network.
        mask: the network is told a mask, as in the removal of shadows.
        padding: the input is extended by reflection to a multiple of this.
        scale: 1, the size is kept.
        tasks: what it was trained for.

    Raises:
        ValueError: for a name that is not known or a number out of range.

    Reference: Shi et al. 2024, "Resfusion", section 4 and appendix.
    """

    steps: int = 12
    schedule: str = "linear"
    prediction: str = "resnoise"
    network: str = "rddm-unet"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    mask: bool = False
    padding: int = 8
    scale: int = 1
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("prediction", self.prediction, PREDICTIONS)
        check_name("network", self.network, NETWORKS)
        if self.padding < 1:
            raise ValueError(f"padding must be at least 1, got {self.padding}")
        if self.scale != 1:
            raise ValueError(f"scale must be 1, got {self.scale}")
        self.path()

    def path(self) -> paths.Resfusion:
        """The path up to the acceleration point."""
        return paths.Resfusion(steps=self.steps, schedule=self.schedule)

    @property
    def times_kept(self) -> int:
        """Times up to the acceleration point: the published number of calls."""
        return int(self.path().t_max) + 1
