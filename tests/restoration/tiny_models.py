"""A small model that keeps the size and is told masks and noise levels; its weights are random."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fewstep.core.noise import SampleNoise
from fewstep.core.step_info import StepInfo
from fewstep.restoration.methods.base import MODES, RestorationModel, check_steps
from fewstep.restoration.methods.told import map_channels, told_maps


@dataclass(frozen=True)
class TinyConfig:
    takes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("denoise",)
    scale: int = 1
    padding: int = 1


class Tiny(RestorationModel):
    """Two 3×3 convolutions that are asked again and again."""

    config_class = TinyConfig
    config: TinyConfig
    solvers = ("plain",)

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        width = 3 + map_channels(config.takes)
        self.net = nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    @property
    def state_channels(self) -> int:
        return 3

    @property
    def pixel_bytes(self) -> int:
        return 400

    @property
    def reach(self) -> int:
        return 2

    @property
    def takes(self) -> frozenset[str]:
        return frozenset(self.config.takes)

    def steps_of(self, mode, steps=None):
        return check_steps(mode, steps, MODES, 2, 4)

    @torch.no_grad()
    def restore(
        self,
        lq,
        *,
        mode="sample",
        mask=None,
        level=None,
        steps=None,
        solver=None,
        seed=0,
        noise=None,
        on_step=None,
    ):
        self.check_told(mask, level)
        drawn = torch.empty_like(lq)
        if noise is None:
            SampleNoise(seed, len(lq), lq.device).fill(drawn)
        else:
            drawn = noise(lq)
        maps = told_maps(sorted(self.takes, reverse=True), lq, mask, level)
        x = lq + 0.2 * drawn
        calls = self.steps_of(mode, steps)
        for done in range(1, calls + 1):
            x = 0.5 * x + 0.5 * self.net(x if maps is None else torch.cat([x, maps], 1))
            if on_step is not None:
                on_step(StepInfo(done, calls, float(calls - done), done, x, partial(torch.clone, x)))
        x = x.clamp(-1, 1)
        return x if mask is None else torch.lerp(lq, x, mask)


def make_tiny(takes: tuple[str, ...] = (), tasks: tuple[str, ...] = ("denoise",), seed: int = 0) -> Tiny:
    """One whose weights are large enough that neighbours and maps matter."""
    torch.manual_seed(seed)
    model = Tiny(TinyConfig(takes, tasks)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model
