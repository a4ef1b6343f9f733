"""Normalisers as other projects store them: Diffusion Policy's LinearNormalizer, LeRobot's statistics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.weights import CheckpointError
from fewstep.policy.names import from_lerobot_name, to_lerobot_name
from fewstep.policy.normalizer import Normalizer
from fewstep.policy.statistics import STATISTICS

_PARAMS = "params_dict."
_DIFFUSION_POLICY_NAMES = {"obs": "state", "agent_pos": "state"}
_BUFFER = ".buffer_"
_WITHOUT_DOTS = {
    "observation_state": "state",
    "observation_environment_state": "environment_state",
    "observation_image": "image",
}
_CAMERAS_WITHOUT_DOTS = "observation_images_"


def from_diffusion_policy(
    state: Mapping[str, Tensor], names: Mapping[str, str] = _DIFFUSION_POLICY_NAMES
) -> Normalizer:
    """Build a normaliser from a Diffusion Policy checkpoint's weights.

    Args:
        state: tensors by name, with `…params_dict.<name>.{scale,offset}` and `….input_stats.{min,…}` among
            others, which are not looked at.
        names: theirs to ours; a name without an entry is kept.

    Returns:
        The normaliser.

    Raises:
        CheckpointError: there is none, or a scale is zero or not finite.

    Reference: Chi et al. (2023), Diffusion Policy, its LinearNormalizer.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        head, mark, rest = key.rpartition(_PARAMS)
        if not mark or head not in ("", "normalizer."):
            continue
        name, _, entry = rest.replace(".input_stats.", ".").rpartition(".")
        found.setdefault(names.get(name, name), {})[entry] = value.detach().cpu()
    if not found:
        raise CheckpointError("the weights hold no normaliser (normalizer.params_dict.<name>.scale)")
    for name, values in found.items():
        _check_affine(name, values)
    normalizer = Normalizer({name: tuple(values["scale"].shape) for name, values in found.items()})
    normalizer = normalizer.to(next(iter(found.values()))["scale"].dtype)
    for name, values in found.items():
        unknown = {key: torch.full_like(values["scale"], torch.nan) for key in STATISTICS}
        normalizer.scaling(name).set({**unknown, **values})
    return normalizer


def to_diffusion_policy(normalizer: Normalizer, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of a normaliser under Diffusion Policy's names, `normalizer.params_dict.…`.

    Args:
        normalizer: to be exported.
        names: ours to theirs, such as {"state": "obs"}; a name without an entry is kept.
    """
    tensors = {}
    statistics = normalizer.statistics()
    for name in normalizer.names:
        scaling, prefix = normalizer.scaling(name), f"normalizer.{_PARAMS}{names.get(name, name)}."
        tensors[prefix + "scale"], tensors[prefix + "offset"] = scaling.scale.clone(), scaling.offset.clone()
        for key, value in statistics[name].items():
            tensors[f"{prefix}input_stats.{key}"] = value.clone()
    return tensors


def from_lerobot(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Statistics by our names from any of the three forms that LeRobot has stored them in.

    That is meta/stats.json ({"action": {"min": […]}}), the tensors of a normaliser's processor
    ("action.min") and the buffers in older weights ("normalize_inputs.buffer_observation_state.min").

    Args:
        content: the parsed JSON or the tensors by name; entries that are none of these are not looked at.

    Returns:
        Those of min, max, mean and std that are there, float64, for `Normalizer.from_statistics`.

    Raises:
        CheckpointError: there are none, or one is no array of numbers.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in content.items():
        entries = value.items() if isinstance(value, Mapping) else [(key.rpartition(".")[2], value)]
        feature = key if isinstance(value, Mapping) else key.rpartition(".")[0]
        if _BUFFER in feature:
            name = _name_without_dots(feature.rpartition(_BUFFER)[2])
        else:
            name = from_lerobot_name(feature)
        for statistic, numbers in entries:
            if statistic in STATISTICS and name:
                found.setdefault(name, {})[statistic] = _numbers(key, numbers)
    if not found:
        raise CheckpointError(f"there are no statistics of a LeRobot normaliser among {sorted(content)[:8]}")
    return found


def to_lerobot(normalizer: Normalizer) -> dict[str, Tensor]:
    """Tensors of the statistics as a LeRobot normaliser's processor stores them ("observation.state.min").

    Raises:
        ValueError: a normaliser knows no statistics, as its scale and offset were set directly.
    """
    tensors = {}
    for name, values in normalizer.statistics().items():
        if not values:
            raise ValueError(f"the statistics of {name!r} are not known")
        for key, value in values.items():
            tensors[f"{to_lerobot_name(name)}.{key}"] = value.clone()
    return tensors


def _name_without_dots(feature: str) -> str:
    if feature.startswith(_CAMERAS_WITHOUT_DOTS):
        return "image." + feature[len(_CAMERAS_WITHOUT_DOTS) :]
    return _WITHOUT_DOTS.get(feature, feature)


def _numbers(key: str, numbers: Any) -> Tensor:
    try:
        return torch.as_tensor(numbers).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"statistic {key!r} must be an array of numbers ({error})") from error


def _check_affine(name: str, values: Mapping[str, Tensor]) -> None:
    if not {"scale", "offset"} <= set(values):
        raise CheckpointError(f"the normaliser of {name!r} has no scale and offset, only {sorted(values)}")
    scale = values["scale"]
    if scale.ndim < 1 or any(value.shape != scale.shape for value in values.values()):
        shapes = {key: tuple(value.shape) for key, value in values.items()}
        raise CheckpointError(f"the normaliser of {name!r} has tensors of several shapes: {shapes}")
    if not bool(scale.isfinite().all() & values["offset"].isfinite().all() & (scale != 0).all()):
        raise CheckpointError(f"the scale of {name!r} must be finite and not zero")
