"""What a diffusers scheduler's configuration says: the path, the prediction and the times."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fewstep.core import grids, paths
from fewstep.core.grids import Times
from fewstep.core.paths import Path
from fewstep.core.paths.vp import zero_terminal_snr

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
    "edm": "edm",
}
FAMILIES = ("vp", "edm", "flow")


def family_of(config: Mapping[str, Any]) -> str:
    """Return "vp", "edm" or "flow".

    An entry `family` (ours) says it, or `use_flow_sigmas`; else only VP schedulers have a `beta_start`, only
    EDM ones a `sigma_data` and only flow ones a `shift`.
    """
    if config.get("family"):
        return str(config["family"])
    if config.get("use_flow_sigmas"):
        return "flow"
    if "beta_start" in config or "trained_betas" in config:
        return "vp"
    return "edm" if "sigma_data" in config else "flow" if "shift" in config else "vp"


def path_from_config(config: Mapping[str, Any]) -> Path:
    """Return the path of a diffusers scheduler configuration.

    VP: the beta table of `beta_schedule` (linear, scaled_linear, squaredcos_cap_v2) or `trained_betas`,
    shifted to zero terminal SNR with `rescale_betas_zero_snr`; times are indices 0 … N − 1. EDM:
    `sigma_min`, `sigma_max`, `sigma_data`. Flow: `shift` or `flow_shift`.

    Args:
        config: the dictionary, such as `pipeline.scheduler.config`.

    Raises:
        ValueError: an entry has a value that no path stands for.

    Example:
        >>> path_from_config({"shift": 3.0}).shift
        3.0
    """
    family = family_of(config)
    if family == "edm":
        names = ("sigma_min", "sigma_max", "sigma_data")
        given = {name: float(config[name]) for name in names if config.get(name) is not None}
        return replace(paths.EDM(), **given)
    if family == "flow":
        shift = config.get("flow_shift") or config.get("shift") or 1.0
        return paths.RectifiedFlow(shift=float(shift))
    if family != "vp":
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    betas = _betas(config)
    return paths.VP.from_betas(zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas)


def prediction_from_config(config: Mapping[str, Any]) -> str:
    """Return our name of what the network predicts.

    Raises:
        ValueError: `prediction_type` is unknown.
    """
    family = family_of(config)
    if family == "flow":
        return "velocity"
    given = config.get("prediction_type") or "epsilon"
    if family == "edm":
        if given != "epsilon":
            raise ValueError(f"prediction_type must be 'epsilon' for an EDM scheduler, got {given!r}")
        return "edm"
    if given not in PREDICTIONS:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {given!r}")
    return PREDICTIONS[given]


def times_from_config(config: Mapping[str, Any], path: Path, steps: int) -> Times:
    """Return the times that the configuration stands for, the last one clean and not asked.

    `use_karras_sigmas` makes equal steps of sigma^(1/7), `use_exponential_sigmas` of log sigma; else VP
    follows `timestep_spacing` (with `steps_offset` where it is "leading"), EDM is Karras', and flow has equal
    steps from 1 to the smallest trained noise level, as FlowMatchEulerDiscreteScheduler.

    Raises:
        ValueError: `timestep_spacing` is unknown, or there are too many steps.
    """
    family = family_of(config)
    if config.get("use_karras_sigmas") or family == "edm":
        return grids.karras(path, steps)
    if config.get("use_exponential_sigmas"):
        return grids.logsnr(path, steps)
    if family == "flow":
        smallest = float(path.coefficients(1 / int(config.get("num_train_timesteps") or 1000))[2])
        return (*(1 + (smallest - 1) * i / max(steps - 1, 1) for i in range(steps)), 0.0)
    spacing = config.get("timestep_spacing") or "trailing"
    if spacing == "leading":
        return grids.leading(path, steps, offset=int(config.get("steps_offset") or 0))
    if spacing not in ("trailing", "linspace"):
        raise ValueError(f"timestep_spacing must be 'trailing', 'leading' or 'linspace', got {spacing!r}")
    return grids.get(spacing)(path, steps)


def _betas(config: Mapping[str, Any]) -> tuple[float, ...]:
    """The table as diffusers makes it: spaced in float32."""
    if config.get("trained_betas") is not None:
        return tuple(map(float, config["trained_betas"]))
    count = int(config.get("num_train_timesteps") or 1000)
    schedule = config.get("beta_schedule") or "linear"
    if schedule == "squaredcos_cap_v2":
        level = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return tuple(min(1 - level[i + 1] / level[i], 0.999) for i in range(count))
    first, last = float(config.get("beta_start") or 1e-4), float(config.get("beta_end") or 0.02)
    if schedule == "linear":
        return tuple(torch.linspace(first, last, count, dtype=torch.float32).tolist())
    if schedule == "scaled_linear":
        root = torch.linspace(first**0.5, last**0.5, count, dtype=torch.float32)
        return tuple(root.square().tolist())
    raise ValueError(
        f"beta_schedule must be 'linear', 'scaled_linear' or 'squaredcos_cap_v2', got {schedule!r}"
    )
