"""Training of the one-step codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.training import TrainResult

from .code_stream import to_symbols
from .data import list_images, read_rgb, to_signed
from .methods.oscar import Oscar, OscarConfig, measure
from .nets.code_model import CLASSES, LIMIT
from .pairs import crop
from .runs import Run

# The slope of the uniform quantiser's distortion step²/12 against bits, at high rates: what a bit is worth.
BIT = 12 / (2 * np.log(2))


@dataclass(frozen=True)
class CodecRecipe:
    """Everything that the training of a codec depends on, apart from the photographs.

    Args:
        model: changes to OscarConfig's defaults.
        patch: side of a training crop in pixels, a multiple of 8.
        batch_size: crops of a batch; each has a rate of its own.
        learning_rate: largest rate of Adam, under a cosine schedule.
        warmup: share of the run in which the rate rises.
        ema: decay of the averaged weights that are validated and kept.
        clip: largest gradient norm.
        precision: "bf16" or "no".
        max_steps: end of the run by steps.
        measured: photographs on which times and frequencies are measured.
        validation_images: photographs of the validation folder that are used.
        validate_every: steps between validations.
        seed: of crops, rates and initial weights.

    Raises:
        ValueError: a number out of its range.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    patch: int = 96
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.02
    ema: float = 0.995
    clip: float = 1.0
    precision: str = "no"
    max_steps: int = 1_000_000
    measured: int = 60
    validation_images: int = 4
    validate_every: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patch < 8 or self.patch % 8:
            raise ValueError(f"patch must be a multiple of 8, got {self.patch}")
        for name in ("batch_size", "max_steps", "measured", "validation_images", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def rate_distortion(model: Any, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Bits plus squared error, weighed as a quantiser of the drawn step trades them, per pixel.

    L = E [bits + 12/(2 ln 2 step²) |image_hat − image|²] / pixels, the rate drawn uniformly per image.

    Args:
        model: an Oscar.
        batch: {"image": (batch, 3, side, side) in [-1, 1], "rate": (batch,), "step": (batch,)}.
        generator: not used.
    """
    image = batch["image"]
    made, bits = model(image, batch["rate"])
    error = (made.float() - image).square().sum(dim=(1, 2, 3))
    pixels = image.shape[-1] * image.shape[-2]
    loss = (bits + BIT * error / batch["step"].square()).mean() / pixels
    return {"loss": loss, "bpp": bits.mean().detach() / pixels, "error": error.mean().detach() / pixels}


@dataclass(frozen=True, eq=False)
class CodecCrops:
    """Random crops with random rates.

    Args:
        photographs: (height, width, 3) uint8 each, none smaller than a patch.
        steps: of the rates.
        patch: side of a crop.
    """

    photographs: Sequence[np.ndarray]
    steps: Sequence[float]
    patch: int

    def batch(self, generator: np.random.Generator, n: int) -> dict[str, Tensor]:
        """Draw n crops; see `rate_distortion`."""
        drawn = [self.photographs[int(generator.integers(len(self.photographs)))] for _ in range(n)]
        crops = np.stack([crop((image,), self.patch, generator)[0] for image in drawn])
        rate = generator.integers(len(self.steps), size=n)
        step = np.asarray(self.steps, np.float32)[rate]
        return {"image": to_signed(crops), "rate": torch.from_numpy(rate), "step": torch.from_numpy(step)}


@torch.no_grad()
def measure_times(model: Oscar, photographs: Sequence[np.ndarray]) -> None:
    """Set scale, gain and time of every rate as they are on photographs.

    Args:
        model: is changed.
        photographs: (height, width, 3) uint8 each.
    """
    latents = torch.cat([model.latent(to_signed(image[None])).flatten() for image in photographs])
    model.scale.copy_(latents.double().square().mean().sqrt())
    for rate, step in enumerate(model.config.steps):
        parts = [model.indices(to_signed(image[None]), rate).flatten() for image in photographs]
        cosine, gain = measure(latents, torch.cat(parts) * step)
        model.cosines[rate], model.gains[rate] = cosine, gain


@torch.no_grad()
def count_indices(model: Oscar, photographs: Sequence[np.ndarray]) -> None:
    """Set the whole numbers of the code, with the frequencies of indices on photographs.

    Args:
        model: is changed.
        photographs: (height, width, 3) uint8 each.
    """
    counts = np.zeros((CLASSES, 2 * LIMIT + 1))
    model.code.fix(counts)
    for image in photographs:
        for rate in range(model.rates):
            symbols = to_symbols(model.indices(to_signed(image[None]), rate)[0])
            contexts = model.code.reader(rate)
            for channel in symbols:
                places = np.clip(channel.ravel(), -LIMIT, LIMIT) + LIMIT
                np.add.at(counts, (contexts.classes(*channel.shape), places), 1)
                contexts.add(channel)
    model.code.fix(counts)


@dataclass(frozen=True, eq=False)
class CodecValidation:
    """Estimated bits per pixel and PSNR of every rate, over whole photographs."""

    photographs: Sequence[np.ndarray]

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        """Metrics "bpp_<rate>" and "psnr_<rate>"; rates count from 1."""
        found: dict[str, list[float]] = {}
        for image in self.photographs:
            signed = to_signed(image[None])
            height, width = image.shape[:2]
            for rate in range(model.rates):
                indices = model.indices(signed, rate)
                bits = model.code.bits(indices.float(), torch.tensor([rate]))
                made = model.image(indices, rate)[..., :height, :width]
                made = made.add(1).mul(127.5).round().sub(signed.add(1).mul(127.5))
                psnr = 10 * np.log10(255**2 / float(made.square().mean()))
                found.setdefault(f"bpp_{rate + 1}", []).append(float(bits) / (height * width))
                found.setdefault(f"psnr_{rate + 1}", []).append(psnr)
        return {name: float(np.mean(values)) for name, values in found.items()}


def train_codec(
    recipe: CodecRecipe,
    photographs: str | Path,
    validation: str | Path,
    output: str | Path,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train a codec, or go on with a run that was stopped, and save it in `output/model`.

    Args:
        recipe: settings; a run that goes on must be given the same ones.
        photographs: folder of photographs.
        validation: folder of photographs that are never trained on.
        output: folder of the run.
        max_minutes: minutes of training over all parts of the run, by which the learning rate anneals.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        ValueError: no photographs, or the folder holds a run of another recipe.
    """
    run = Run.begin(recipe, output, max_minutes, device)
    images = [
        image for image in map(read_rgb, list_images(photographs)) if min(image.shape[:2]) >= recipe.patch
    ]
    if not images:
        raise ValueError(f"photographs: none is as large as a patch of {recipe.patch} pixels")
    measured = images[:: -(-len(images) // recipe.measured)]
    model = Oscar(OscarConfig(**recipe.model))
    measure_times(model, measured)
    crops = CodecCrops(images, model.config.steps, recipe.patch)
    held = CodecValidation([read_rgb(file) for file in list_images(validation)[: recipe.validation_images]])

    def save(averaged: Oscar, place: Path) -> None:
        count_indices(averaged.cpu(), measured)
        averaged.save_pretrained(place, dtype=torch.float16)

    config = run.settings(recipe.max_steps, log_every=50)
    return run.fit(model, rate_distortion, crops.batch, held, save, config)
