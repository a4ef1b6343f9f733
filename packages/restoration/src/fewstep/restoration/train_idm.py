"""The recipe of the compressed-sensing checkpoints: IDM from scratch on luma patches of photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.training import TrainResult

from .compressed_sensing import BlockSensing, measure, sensing_matrix
from .data import dihedral, list_images, read_rgb
from .methods.base import check_name
from .methods.idm import IDM, MEMORY, IDMConfig
from .metrics import luma_full, score
from .runs import Run


@dataclass(frozen=True)
class IDMRecipe:
    """Everything that the training of a small IDM depends on, apart from the photographs.

    Against the published model (114 M parameters, started from Stable Diffusion, 50 GPU epochs) it is made to
    learn in an hour on one processor core: no attention, no normalisation, mean and contrast taken out.

    Args:
        ratio: measurements per pixel.
        steps: sampling steps T.
        channels: features of the two levels of the U-Net.
        attention: whether a level's layers hold an attention.
        heads: of every attention.
        normalised: residual blocks with group normalisation, in groups of 8 channels.
        wiring: v of every coupling at the start.
        patch: side of a training crop, a multiple of 32.
        batch_size: crops per batch; they share one permutation.
        learning_rate: largest rate of AdamW, under a cosine schedule.
        warmup: share of the run in which the rate rises.
        ema: decay of the averaged weights that are validated and kept.
        clip: largest gradient norm.
        precision: "bf16" or "no".
        memory: what the backward pass recomputes: "keep", "steps" or "all"; gradients are the same.
        max_steps: end of the run by steps.
        validation_images: photographs of the validation folder that are used.
        validate_every: steps between validations, each with a preview.
        seed: of crops, permutations and initial weights.

    Raises:
        ValueError: a patch that is not a multiple of the block, or a value that the model refuses.
    """

    ratio: float = 0.25
    steps: int = 3
    channels: tuple[int, int] = (32, 64)
    attention: tuple[bool, bool] = (False, False)
    heads: int = 4
    normalised: bool = False
    wiring: float = 0.5
    patch: int = 64
    batch_size: int = 4
    learning_rate: float = 8e-4
    warmup: float = 0.02
    ema: float = 0.999
    clip: float = 0.5
    precision: str = "bf16"
    memory: str = "keep"
    max_steps: int = 200_000
    validation_images: int = 6
    validate_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        block = self.config().block
        if self.patch < block or self.patch % block:
            raise ValueError(f"patch must be a multiple of {block}, got {self.patch}")
        check_name("memory", self.memory, MEMORY)

    def config(self) -> IDMConfig:
        """What the model is built from."""
        return IDMConfig(
            ratio=self.ratio,
            steps=self.steps,
            channels=self.channels,
            attention=self.attention,
            heads=self.heads,
            groups=math.gcd(*self.channels) // 8 or 1,
            normalised=self.normalised,
            wiring=self.wiring,
            standardised=True,
            consistent=True,
        )


@dataclass(frozen=True)
class LumaCrops:
    """Random crops of the luma of photographs, from arrays in memory.

    Args:
        images: full-range luma (height, width) uint8.
        patch: side of a crop in pixels.

    Raises:
        ValueError: no image is as large as a crop.

    Example:
        >>> crops = LumaCrops((np.zeros((64, 48), np.uint8),), patch=32)
        >>> crops.batch(np.random.default_rng(0), 2)["x0"].shape
        torch.Size([2, 1, 32, 32])
    """

    images: tuple[np.ndarray, ...]
    patch: int

    def __post_init__(self) -> None:
        if not self.images or min(min(image.shape) for image in self.images) < self.patch:
            raise ValueError(f"images: every image must be as large as a patch of {self.patch} pixels")

    @classmethod
    def from_files(cls, source: str | Path, patch: int) -> LumaCrops:
        """Read a folder; photographs smaller than a crop are left out.

        Raises:
            ValueError: no images, or none as large as a crop.
        """
        images = (luma(read_rgb(file)) for file in list_images(source))
        return cls(tuple(image for image in images if min(image.shape) >= patch), patch)

    def batch(self, generator: np.random.Generator, n: int) -> dict[str, Tensor]:
        """Draw n crops, each with a symmetry of the square: "x0" (n, 1, patch, patch) in [0, 1]."""
        crops = np.stack([self._crop(generator) for _ in range(n)])
        return {"x0": torch.from_numpy(crops)[:, None].to(torch.float32) / 255}

    def _crop(self, generator: np.random.Generator) -> np.ndarray:
        image = self.images[int(generator.integers(len(self.images)))]
        top, left = (int(generator.integers(side - self.patch + 1)) for side in image.shape)
        return dihedral(image[top : top + self.patch, left : left + self.patch], int(generator.integers(8)))


class ReconstructionLoss:
    """Mean absolute error of reconstructions, the permutation drawn anew for every batch.

    L = E |IDM(A x) − x|, through all T steps.

    Args:
        config: of the model.
        memory: what the backward pass recomputes.

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", eq. 3.
    """

    def __init__(self, config: IDMConfig, memory: str = "keep") -> None:
        self.matrix = sensing_matrix(config.ratio, config.block, config.matrix_seed)
        self.memory = memory

    def __call__(
        self, net: Callable[..., Tensor], batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """The loss of a batch {"x0": luma in [0, 1]}."""
        x = batch["x0"]
        height, width = x.shape[-2:]
        order = torch.randperm(height * width, generator=generator, device=x.device)
        sensing = BlockSensing(self.matrix.to(x), order, (height, width))
        return (net(sensing.forward(x), sensing, memory=self.memory) - x).abs().mean()


class Validation:
    """PSNR on luma in the convention of compressed sensing, over the middles of photographs.

    Args:
        files: photographs.
        config: of the model.
        side: largest side of the middle part that is measured, a multiple of the block.
    """

    def __init__(self, files: list[Path], config: IDMConfig, side: int = 256) -> None:
        self.truth = [middle(luma(read_rgb(file)), config.block, side) for file in files]
        planes = [torch.from_numpy(image)[None, None].to(torch.float32) / 255 for image in self.truth]
        self.taken = [
            measure(plane, config.ratio, block=config.block, seed=seed, matrix_seed=config.matrix_seed)
            for seed, plane in enumerate(planes)
        ]

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Metrics of a model: "psnr" and "ssim"."""
        scores = [
            score(self._reconstruct(net, index), truth.astype(np.float64), "ycrcb")
            for index, truth in enumerate(self.truth)
        ]
        return {
            "psnr": float(np.mean([each.psnr for each in scores])),
            "ssim": float(np.mean([each.ssim for each in scores])),
        }

    def picture(self, net: nn.Module) -> np.ndarray:
        """First photograph: Aᵀy, reconstruction and truth side by side, (height, width) uint8."""
        taken = self.taken[0]
        blind = taken.sensing.adjoint(taken.values)[0, 0].clamp(0, 1).numpy() * 255
        columns = [blind, self._reconstruct(net, 0), self.truth[0]]
        return np.concatenate([np.rint(column).astype(np.uint8) for column in columns], axis=1)

    def _reconstruct(self, net: nn.Module, index: int) -> np.ndarray:
        assert isinstance(net, IDM)
        return net.reconstruct(self.taken[index])[0, 0].double().cpu().numpy() * 255


def luma(image: np.ndarray) -> np.ndarray:
    """Full-range luma of an RGB image, rounded to 8 bit as image files hold it."""
    return np.rint(luma_full(image)).astype(np.uint8)


def middle(image: np.ndarray, block: int, side: int) -> np.ndarray:
    """The middle part of an image with sides that are multiples of a block, at most `side`.

    Raises:
        ValueError: the image is smaller than a block.
    """
    if min(image.shape) < block:
        raise ValueError(f"image must be at least {block} pixels a side, got {image.shape}")
    height, width = (min(length // block * block, side) for length in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def train_idm(
    recipe: IDMRecipe,
    photographs: str | Path,
    validation: str | Path,
    output: str | Path,
    start: IDM | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train an IDM, or go on with a run that was stopped, and save it.

    The folder `output` holds the run (settings, log, checkpoints, previews) and, when the run is complete,
    the averaged weights as a loadable model in `output/model`.

    Args:
        recipe: settings; a run that goes on must be given the same ones.
        photographs: folder of training photographs.
        validation: folder of photographs that are never trained on.
        output: folder of the run.
        start: model whose weights are begun with, of any ratio and number of steps.
        max_minutes: minutes of training over all parts of the run, by which the learning rate anneals.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        ValueError: no photographs, a start of another network, or the folder holds a run of another recipe.
    """
    run, config = Run.begin(recipe, output, max_minutes, device), recipe.config()
    model = IDM(config)
    if start is not None:
        begin_with(model, start)
    crops = LumaCrops.from_files(photographs, recipe.patch)
    held_out = Validation(list_images(validation)[: recipe.validation_images], config)
    loss = ReconstructionLoss(config, recipe.memory)
    return run.restorer(
        model, loss, crops.batch, held_out, IDM.save_pretrained, recipe.max_steps, log_every=50
    )


def begin_with(model: IDM, start: IDM) -> None:
    """Give a model another one's weights.

    What belongs to a single step is taken from the step of the start that lies where it lies on the way; the
    noise levels go down as the start's do, in more or fewer steps.

    Raises:
        ValueError: the start has another network.
    """
    given, wanted = dict(start.state_dict()), model.state_dict()
    count, before = model.config.steps, start.config.steps

    def source(name: str) -> str:
        parts = name.split(".")
        for place, word in enumerate(parts[:-1]):
            # `f2i.0` and `i2f.0` are the last step's, `body.0` is the first one's.
            if word in ("f2i", "i2f"):
                parts[place + 1] = str(int(parts[place + 1]) * before // count)
            elif word == "body":
                left = (count - 1 - int(parts[place + 1])) * before // count
                parts[place + 1] = str(before - 1 - left)
        return ".".join(parts)

    weights = {name: given.get(source(name)) for name in wanted if name != "alpha"}
    if any(value is None or value.shape != wanted[name].shape for name, value in weights.items()):
        raise ValueError("start: its network is not that of the recipe")
    # Logarithms of the levels, linear between those of the start.
    known = np.pad(given["alpha"].clamp(min=1e-6).log().cumsum(0).double().numpy(), (1, 0))
    levels = np.interp(np.linspace(0, before, count + 1), np.arange(before + 1), known)
    weights["alpha"] = torch.from_numpy(np.exp(np.diff(levels))).to(given["alpha"])
    model.load_state_dict(weights)
