"""LeRobot's diffusion policies made into our networks, and our names made into LeRobot's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.core.keys import rename
from fewstep.core.weights import CheckpointError, load_into, load_state_dict_file

from ..nets.rgb_encoder import DiffusionRgbEncoder
from ..nets.unet1d import ConditionalUnet1D
from .official import OfficialPolicy, Statistics, under, unet_config

UNET, IMAGES = "diffusion.unet.", "diffusion.rgb_encoder"
RULES = ((r"\.conv1\.block\.", ".blocks.0.block."), (r"\.conv2\.block\.", ".blocks.1.block."))
SAMPLERS = ((r"^((?:down|up)_modules\.\d+\.2)\.(weight|bias)$", r"\1.conv.\2"),)
BACK = (
    (r"\.blocks\.0\.block\.", ".conv1.block."),
    (r"\.blocks\.1\.block\.", ".conv2.block."),
    (r"^((?:down|up)_modules\.\d+\.2)\.conv\.", r"\1."),
)
# Before 0.4 the statistics stood among the weights, under names without dots.
OLD_STATISTICS = ("normalize_inputs.buffer_", "normalize_targets.buffer_", "unnormalize_outputs.buffer_")


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a diffusion policy of LeRobot."""
    return f"{UNET}down_modules.0.0.conv1.block.0.weight" in state


def ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the U-Net under our names, which are Diffusion Policy's."""
    return rename(state, (*RULES, *SAMPLERS)).state


def theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of our U-Net under LeRobot's names, without `diffusion.unet.`."""
    return rename(state, BACK).state


def observation_name(feature: str) -> str:
    """Our name of one of LeRobot's features.

    Example:
        >>> [observation_name(f) for f in ("observation.state", "observation.images.top", "action")]
        ['state', 'image.top', 'action']
    """
    name = feature.removeprefix("observation.")
    return "image." + name.removeprefix("images.") if name.startswith("images.") else name


def from_official(folder: str | Path) -> OfficialPolicy:
    """Load a diffusion policy of LeRobot: a folder with config.json and model.safetensors.

    Statistics come from the processor's file of version 0.4 and later, else from among the weights.

    Args:
        folder: of the checkpoint ("pretrained_model").

    Returns:
        The U-Net, the image encoders under our names of the observations, the statistics, and the settings of
        config.json. The global condition is, per observed step, the state, the images' features in the order
        of the configuration, and the environment's state; then the steps one after the other.

    Raises:
        CheckpointError: the folder lacks a file, or is of another policy.

    Reference: Cadene et al. 2024, "LeRobot", released models; versions 0.1 to 0.6.
    """
    folder = Path(folder)
    settings = _settings(folder / "config.json")
    state = load_state_dict_file(folder / "model.safetensors")
    if not recognises(state):
        raise CheckpointError(f"{folder} is not a diffusion policy of LeRobot: no weights {UNET}…conv1.block")
    weights = ours(under(state, UNET))
    net = ConditionalUnet1D(unet_config(weights, str(folder), int(settings.get("n_groups", 8))))
    load_into(net, weights, str(folder))
    return OfficialPolicy(
        net.eval(), _encoders(state, settings, folder), _statistics(state, settings, folder), settings
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict) or settings.get("type", "diffusion") != "diffusion":
        raise CheckpointError(f"{path} is not of a diffusion policy of LeRobot")
    return settings


def features(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs and outputs, from the configuration of any version."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("input_features", "output_features", "input_shapes", "output_shapes"):
        for feature, value in (settings.get(name) or {}).items():
            shapes[feature] = tuple(value["shape"] if isinstance(value, Mapping) else value)
    return shapes


def _encoders(state: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path) -> dict[str, nn.Module]:
    cameras = {
        name: shape for name, shape in features(settings).items() if name.startswith("observation.image")
    }
    separate = bool(settings.get("use_separate_rgb_encoder_per_camera"))
    encoders: dict[str, nn.Module] = {}
    shared: DiffusionRgbEncoder | None = None
    for number, (name, shape) in enumerate(cameras.items()):
        if separate or shared is None:
            shared = _encoder(shape, settings, folder)
            prefix = f"{IMAGES}.{number}." if separate else f"{IMAGES}."
            load_into(shared, under(state, prefix), str(folder))
        encoders[observation_name(name)] = shared.eval()
    return encoders


def _encoder(shape: tuple[int, ...], settings: Mapping[str, Any], folder: Path) -> DiffusionRgbEncoder:
    crop, resize = settings.get("crop_shape"), settings.get("resize_shape")
    try:
        channels, height, width = shape
        return DiffusionRgbEncoder(
            (channels, height, width),
            (crop[0], crop[1]) if crop else None,
            settings.get("spatial_softmax_num_keypoints", 32),
            settings.get("vision_backbone", "resnet18"),
            "group" if settings.get("use_group_norm", True) else "batch",
            settings.get("crop_is_random", True),
            (resize[0], resize[1]) if resize else None,
        )
    except (ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}/config.json has an image encoder that is refused: {error}"
        ) from error


def _statistics(state: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path) -> Statistics:
    found: Statistics = {}
    files = sorted(folder.glob("policy_*processor*normalizer_processor.safetensors"))
    for file in files:
        for name, value in load_state_dict_file(file).items():
            feature, _, statistic = name.rpartition(".")
            found.setdefault(observation_name(feature), {})[statistic] = value
    if files:
        return found
    dotless = {feature.replace(".", "_"): feature for feature in features(settings)}
    for name, value in state.items():
        prefix = next((prefix for prefix in OLD_STATISTICS if name.startswith(prefix)), None)
        if prefix is not None:
            buffer, _, statistic = name[len(prefix) :].rpartition(".")
            feature = observation_name(dotless.get(buffer, buffer))
            found.setdefault(feature, {})[statistic] = value
    return found
