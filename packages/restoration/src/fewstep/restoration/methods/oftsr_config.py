"""What an OFTSR model is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths

from .base import check_name

KINDS = ("flow", "student")
NETWORKS = ("guided-unet", "small-unet")
# Both ends of the published time are left out by this much.
MARGIN = 1e-3


@dataclass(frozen=True)
class OFTSRConfig:
    """Everything an OFTSR model is built from; the defaults are the published ×4 student for DIV2K.

    Args:
        kind: "flow" follows the flow in many calls; "student" does it in one, told how far it should go.
        perturbation: noise p of the start √(1 − p²) y + p ε; published are 0.1 (FFHQ), 0.2 (DIV2K, ImageNet)
            and 0.5 (noisy inputs).
        realism: where on the teacher's way a student lands: 0 the mean (least error), towards 1 the end.
        steps: network calls of a flow in mode "sample".
        scale: how many times larger the result is than the input.
        network: "guided-unet" or "small-unet".
        network_options: arguments of the network.
        padding: the input is extended by reflection to a multiple of this.
        tasks: what it was trained for.

    Raises:
        ValueError: for a name that is not known or a number out of its range.

    Reference: Zhu et al. 2025, "OFTSR: One-Step Flow for Image Super-Resolution with Tunable Fidelity-Realism
        Trade-offs", section 4; published configurations.
    """

    kind: str = "student"
    perturbation: float = 0.2
    realism: float = 0.99
    steps: int = 20
    scale: int = 4
    network: str = "guided-unet"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    padding: int = 8
    tasks: tuple[str, ...] = ("super-resolution",)

    def __post_init__(self) -> None:
        check_name("kind", self.kind, KINDS)
        check_name("network", self.network, NETWORKS)
        if not 0 < self.perturbation < 1:
            raise ValueError(f"perturbation must lie in (0, 1), got {self.perturbation}")
        if not 0 <= self.realism <= 1:
            raise ValueError(f"realism must lie in [0, 1], got {self.realism}")
        for name in ("scale", "padding", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def path(self) -> paths.RectifiedFlow:
        """The straight path; its time is 1 at the start, where the published one is 0."""
        return paths.RectifiedFlow(perturbation=self.perturbation, t_min=MARGIN, time="999t")
