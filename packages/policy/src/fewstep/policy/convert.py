"""Published diffusion policies as whole models: network, encoders, normaliser and sampler together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core import paths
from fewstep.core.weights import CheckpointError

from .config import PolicyConfig, cosine_betas
from .converters import diffusion_policy, lerobot
from .converters.official import OfficialPolicy, whole_number
from .model import PolicyModel
from .names import is_image
from .nets.transformer import TransformerForDiffusion
from .nets.unet1d import ConditionalUnet1D
from .normalizer import Normalizer
from .statistics import STATISTICS

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_MODES = {"MIN_MAX": "min_max", "MEAN_STD": "mean_std", "IDENTITY": "identity"}
# LeRobot's types of features; of old configurations, which name modes by feature, these are not asked.
_TYPES = {"state": "STATE", "environment_state": "ENV", "action": "ACTION"}


def from_official(path: str | Path, settings: Mapping[str, Any] | None = None) -> PolicyModel:
    """Load a published policy as our model, which acts as the original does.

    Args:
        path: folder of a diffusion policy of LeRobot (config.json, model.safetensors), or a file of Diffusion
            Policy (.ckpt, .pth, .safetensors) for states.
        settings: entries of the published configuration that are missing in the file, or are to be replaced,
            such as {"horizon": 16, "policy": {"noise_scheduler": {…}}} or {"n_action_steps": 4}.

    Returns:
        The model on the CPU, in evaluation mode; `save_pretrained` writes it in our own format.

    Raises:
        CheckpointError: a file that cannot be read, or a policy whose parts have no place in our model.

    Reference: Chi et al. 2023, "Diffusion Policy"; Cadene et al. 2024, "LeRobot".
    """
    path = Path(path)
    if path.is_dir():
        converted = lerobot.from_official(path)
    else:
        policy = (settings or {}).get("policy") or {}
        shape = {**policy, **(policy.get("model") or {})}
        groups, heads = whole_number(shape, "n_groups", 8), whole_number(shape, "n_head", 4)
        converted = diffusion_policy.from_official(path, groups=groups, heads=heads)
    given = {**converted.settings, **(settings or {})}
    try:
        return (_from_lerobot if path.is_dir() else _from_diffusion_policy)(converted, given).eval()
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} has no place in our model: {error}") from error


def _from_lerobot(official: OfficialPolicy, settings: Mapping[str, Any]) -> PolicyModel:
    net = official.net
    assert isinstance(net, ConditionalUnet1D)
    if settings.get("use_group_norm", True) is False:
        raise ValueError("its image encoder has batch normalisation; ours has groups")
    shapes = {lerobot.observation_name(name): shape for name, shape in lerobot.features(settings).items()}
    (numbers,) = shapes.pop("action")
    seen = {name: shape for name, shape in shapes.items() if name in _TYPES or is_image(name)}
    modes = {name: _mode(name, settings) for name in (*seen, "action")}
    model = PolicyModel(
        PolicyConfig(
            seen,
            numbers,
            **{name: int(settings[name]) for name in ("horizon", "n_obs_steps", "n_action_steps")},
            network_options=_unet_options(net),
            encoder_options={
                "crop": settings.get("crop_shape"),
                "resize": settings.get("resize_shape"),
                "keypoints": settings.get("spatial_softmax_num_keypoints", 32),
                "depth": settings.get("vision_backbone", "resnet18"),
                "shared": not settings.get("use_separate_rgb_encoder_per_camera"),
            },
            normalization=modes,
            **sampler(settings, settings.get("noise_scheduler_type", "DDPM"), settings),
        )
    )
    theirs = (*(["state"] if "state" in seen else ()), *official.encoders)
    theirs += ("environment_state",) if "environment_state" in seen else ()
    model.net.load_state_dict(_reordered(net, model, theirs))
    for key in model.encoder.cameras:
        model.encoder.cameras[key].load_state_dict(official.encoders[key.replace("/", ".")].state_dict())
    known: Any = {name: official.statistics.get(name, {}) for name in modes}
    fitted = Normalizer.from_statistics(known, modes)  # type: ignore[arg-type]
    model.normalizer.load_state_dict(fitted.state_dict())
    return model


def _mode(name: str, settings: Mapping[str, Any]) -> str:
    """How LeRobot normalises a feature: by its type, before 0.2 by its name, else not at all."""
    mapping = settings.get("normalization_mapping")
    if mapping is not None:
        given = mapping.get(_TYPES.get(name, "VISUAL"), "IDENTITY")
    else:
        old = {
            **settings.get("input_normalization_modes", {}),
            **settings.get("output_normalization_modes", {}),
        }
        found = {lerobot.observation_name(feature): mode for feature, mode in old.items()}
        given = found.get(name, "IDENTITY").upper()
    if given not in _MODES:
        raise ValueError(f"{name!r} is normalised by {given!r}; known are {', '.join(_MODES)}")
    return _MODES[given]


def _reordered(net: ConditionalUnet1D, model: PolicyModel, theirs: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights whose columns for the observations stand in the order of our encoder."""
    config = model.config
    widths = {name: shape[0] for name, shape in config.observations.items()}
    widths |= {name: 2 * config.encoder_options["keypoints"] for name in widths if is_image(name)}
    starts, total = {}, 0
    for name in theirs:
        starts[name], total = total, total + widths[name]
    step = [starts[name] + i for name in model.encoder.names for i in range(widths[name])]
    told = torch.tensor([row * total + column for row in range(config.n_obs_steps) for column in step])
    columns = torch.cat([torch.arange(net.config.embedding), net.config.embedding + told])
    return {
        name: value[:, columns] if name.endswith("cond_encoder.1.weight") else value
        for name, value in net.state_dict().items()
    }


def _from_diffusion_policy(official: OfficialPolicy, settings: Mapping[str, Any]) -> PolicyModel:
    net, policy = official.net, settings.get("policy") or {}
    if official.encoders:
        raise ValueError("its encoder of points also reads the state, which ours does not")
    if policy.get("oa_step_convention") is False:
        raise ValueError("it executes the action after the newest observation's (oa_step_convention=False)")
    if {"obs", "action"} - set(official.statistics):
        raise ValueError("it has no normaliser of 'obs' and 'action'")
    width = official.statistics["obs"]["scale"].shape[-1]
    if isinstance(net, TransformerForDiffusion):
        told, steps = net.config.cond_dim, net.config.n_obs_steps
        own: dict[str, Any] = {"network": "transformer", "network_options": _transformer_options(net)}
        horizon = net.config.horizon
    else:
        assert isinstance(net, ConditionalUnet1D)
        per_chunk = net.config.global_cond_dim or 0
        told, steps = (width, per_chunk // width) if per_chunk % width == 0 else (0, 0)
        own, horizon = {"network_options": _unet_options(net)}, whole_number(settings, "horizon", 16)
    if told != width or steps < 1 or getattr(net.config, "local_cond_dim", None):
        raise ValueError("it is not told its observations as a whole (obs_as_global_cond)")
    scheduler = policy.get("noise_scheduler") or {}
    kind = "DDIM" if "DDIM" in str(scheduler.get("_target_", "")).upper() else "DDPM"
    model = PolicyModel(
        PolicyConfig(
            {"state": (width,)},
            net.config.input_dim,
            horizon,
            steps,
            whole_number(settings, "n_action_steps", min(8, horizon - steps + 1)),
            **own,
            **sampler(scheduler, kind, policy),
        )
    )
    inner = model.net.transformer if isinstance(net, TransformerForDiffusion) else model.net
    inner.load_state_dict(net.state_dict())  # type: ignore[union-attr]
    for ours, name in (("state", "obs"), ("action", "action")):
        found = official.statistics[name]
        unknown = {key: torch.full_like(found["scale"], torch.nan) for key in STATISTICS}
        model.normalizer.scaling(ours).set({**unknown, **found})
    return model


def sampler(scheduler: Mapping[str, Any], kind: str, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `PolicyConfig` for a scheduler of diffusers.

    Args:
        scheduler: its configuration; what is absent has the value of Diffusion Policy.
        kind: "DDPM" or "DDIM".
        policy: with "num_inference_steps".

    Raises:
        ValueError: a scheduler that samples in a way that is not known here.

    Example:
        >>> found = sampler({"num_train_timesteps": 50}, "DDIM", {"num_inference_steps": 10})
        >>> found["solver"], found["grid"], found["steps"], found["clip"]
        ('ddim', 'leading', 10, 1.0)
    """
    levels = whole_number(scheduler, "num_train_timesteps", 100)
    named, predicted = scheduler.get("beta_schedule", "squaredcos_cap_v2"), scheduler.get("prediction_type")
    low, high = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    tables = {
        "squaredcos_cap_v2": lambda: cosine_betas(levels),
        "linear": lambda: torch.linspace(low, high, levels, dtype=torch.float64).tolist(),
        "scaled_linear": lambda: torch.linspace(low**0.5, high**0.5, levels).double().square().tolist(),
    }
    for name, value, allowed in (
        ("noise_scheduler_type", kind, ("DDPM", "DDIM")),
        ("beta_schedule", named, tuple(tables)),
        ("prediction_type", predicted, (*_PREDICTIONS, None)),
        ("timestep_spacing", scheduler.get("timestep_spacing"), ("leading", None)),
        ("steps_offset", scheduler.get("steps_offset"), (0, None)),
        ("variance_type", scheduler.get("variance_type"), ("fixed_small", None)),
        ("set_alpha_to_one", scheduler.get("set_alpha_to_one"), (True, None)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; known are {', '.join(map(str, allowed))}")
    clipped = scheduler.get("clip_sample", True)
    return {
        "path": paths.VP.from_betas(tuple(tables[named]())).to_config(),
        "prediction": _PREDICTIONS[predicted or "epsilon"],
        "solver": "ddim" if kind == "DDIM" else "ancestral",
        "grid": "leading",
        "steps": whole_number(policy, "num_inference_steps", levels),
        "clip": float(scheduler.get("clip_sample_range", 1.0)) if clipped else 0.0,
    }


def _unet_options(net: ConditionalUnet1D) -> dict[str, Any]:
    follows = ("input_dim", "global_cond_dim")
    return {name: value for name, value in asdict(net.config).items() if name not in follows}


def _transformer_options(net: TransformerForDiffusion) -> dict[str, Any]:
    follows = ("input_dim", "horizon", "cond_dim", "n_obs_steps")
    return {name: value for name, value in asdict(net.config).items() if name not in follows}
