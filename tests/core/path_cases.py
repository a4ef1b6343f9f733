"""The paths that the path, prediction and grid tests run over."""

import torch

from fewstep.core import paths
from fewstep.core.paths import Path, SchrodingerBridge

LINEAR_BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
SQRT_LINEAR_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()

PATHS: dict[str, Path] = {
    "vp-linear": paths.VP.linear(),
    "vp-cosine": paths.VP.cosine(),
    "vp-cosine-to-pure-noise": paths.VP.cosine(t_max=1.0),
    "vp-table": paths.VP.from_betas(LINEAR_BETAS),
    "vp-table-zero-snr": paths.VP.from_betas(paths.zero_terminal_snr(LINEAR_BETAS)),
    "sub-vp": paths.SubVP(),
    "ve": paths.VE(),
    "edm": paths.EDM(),
    "flow": paths.RectifiedFlow(),
    "flow-shift": paths.RectifiedFlow(shift=3.0),
    "flow-degraded-start": paths.RectifiedFlow(perturbation=0.2),
    "ir-sde-cosine": paths.MeanReverting(),
    "ir-sde-linear": paths.MeanReverting(max_sigma=10, steps=20, schedule="linear", eps=0.01),
    "ir-sde-constant": paths.MeanReverting(max_sigma=0.3, schedule="constant"),
    "mr-sampler": paths.MeanReverting(subtract_first=False),
    "ouve": paths.OUVE(),
    "bridge-ve": SchrodingerBridge.ve(),
    "bridge-vp": SchrodingerBridge.vp(),
    "bridge-gmax": SchrodingerBridge.gmax(),
    "bridge-i2sb": SchrodingerBridge.i2sb(),
    "resshift-4": paths.ResShift(),
    "resshift-pixel": paths.ResShift(kappa=0.5, latent=False),
    "resshift-15": paths.ResShift(steps=15, min_noise_level=0.04),
    "resshift-15-to-5": paths.ResShift(steps=15, min_noise_level=0.04, respaced=5, respacing="end-anchored"),
    "rddm": paths.RDDM(),
    "rddm-small-noise": paths.RDDM(sum_scale=0.01),
    "rddm-converted": paths.RDDM(schedule="converted"),
    "resfusion-12": paths.Resfusion(),
    "resfusion-cosine": paths.Resfusion(steps=100, schedule="cosine"),
}

PINNED = {name for name in PATHS if name.startswith("bridge")}
"""Paths with sigma = 0 at both ends."""


def inner_times(path: Path, count: int = 41) -> torch.Tensor:
    """Times between t_min and t_max, the very ends left out."""
    return torch.linspace(path.t_min, path.t_max, count + 2, dtype=torch.float64)[1:-1]


def own_times(path: Path) -> list[float]:
    """Times at which the network of the path may be asked."""
    if path.is_discrete:
        count = int(path.t_max - path.t_min) + 1
        return [path.t_min + i for i in range(0, count, max(count // 12, 1))]
    return inner_times(path, 11).tolist()
