"""The recipe of the super-resolution checkpoint: `fewstep restore train`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path as FilePath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.paths import Path
from fewstep.core.training import TrainResult

from .data import PairedCrops, list_images, read_rgb, reduce_image, to_signed
from .methods.resshift import ResShift, ResShiftConfig
from .metrics import score, sharpness
from .runs import Run


@dataclass(frozen=True)
class SuperResolutionRecipe:
    """Everything that the training of a small pixel-space ResShift depends on, apart from the photographs.

    The network sees exactly the `steps` noise levels that sampling visits. Their share of a batch is
    `step_shares`, from the cleanest to the noisiest; the last one is also the one-call operating point.

    Args:
        scale: enlargement.
        width: feature channels of the network.
        blocks: residual blocks of the network.
        steps: noise levels T of the ResShift path.
        kappa: noise of the path, per unit of √η.
        min_noise_level: √η of the first level is min(min_noise_level/κ, min_noise_level).
        step_shares: one positive weight per level.
        patch: side of a training crop in pixels of the truth.
        batch_size: crops per batch.
        learning_rate: largest rate of AdamW, under a cosine schedule.
        warmup: share of the run in which the rate rises.
        ema: decay of the averaged weights that are validated and shipped.
        clip: largest gradient norm.
        precision: "bf16" or "no".
        max_steps: end of the run by steps.
        validation_images: photographs of the validation folder that are used.
        validate_every: steps between validations, each with a preview.
        seed: of crops, noise and initial weights.
    """

    scale: int = 4
    width: int = 64
    blocks: int = 16
    steps: int = 4
    kappa: float = 0.5
    min_noise_level: float = 0.2
    step_shares: tuple[float, ...] = (1.0, 1.0, 1.0, 2.0)
    patch: int = 96
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.01
    ema: float = 0.999
    clip: float = 0.1
    precision: str = "bf16"
    max_steps: int = 500_000
    validation_images: int = 10
    validate_every: int = 5_000
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.step_shares) != self.steps or min(self.step_shares) <= 0:
            raise ValueError(
                f"step_shares must be {self.steps} positive numbers, one per step, got {self.step_shares}"
            )

    @classmethod
    def load(cls, path: str | FilePath) -> "SuperResolutionRecipe":
        """Read a recipe from a JSON file; fields that it does not name keep their defaults.

        Raises:
            ValueError: not JSON, or a key that the recipe has not.
        """
        try:
            values = json.loads(FilePath(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a JSON recipe ({error})") from None
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"{path}: a recipe has no field {', '.join(unknown)}; it has {known}")
        if "step_shares" in values:
            values["step_shares"] = tuple(float(share) for share in values["step_shares"])
        return cls(**values)

    def config(self) -> ResShiftConfig:
        """What the model is built from."""
        return ResShiftConfig(
            network="edsr",
            network_options={"width": self.width, "blocks": self.blocks, "scale": self.scale},
            first_stage="identity",
            prediction="xstart",
            scale=self.scale,
            steps=self.steps,
            kappa=self.kappa,
            min_noise_level=self.min_noise_level,
            latent=False,
            padding=1,
        )


@dataclass(frozen=True)
class ResShiftLoss:
    """Mean absolute error of the predicted clean image, at noise levels drawn with given shares.

    L = E |net(c_in(t) x_t, t, lq) − x0|,   x_t = (1 − η_t) x0 + η_t y + κ √η_t ε,  y = lq enlarged (bicubic).

    Args:
        path: the ResShift path; its levels are t = 0 … T − 1.
        shares: one positive weight per level.

    Reference: Yue et al. 2023, "ResShift", eq. 8; L1 in place of L2 as is usual in super-resolution.
    """

    path: Path
    shares: tuple[float, ...]

    def __call__(
        self, net: Callable[..., Tensor], batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """The loss of a batch {"x0": truth, "lq": its reduction}, both in [-1, 1]."""
        x0, lq = batch["x0"], batch["lq"]
        shares = torch.tensor(self.shares, device=x0.device)
        t = torch.multinomial(shares, len(x0), replacement=True, generator=generator)
        noise = torch.randn(x0.shape, device=x0.device, generator=generator)
        y = F.interpolate(lq, size=x0.shape[-2:], mode="bicubic")
        scales = torch.tensor([self.path.input_scale(i) for i in range(len(self.shares))], device=x0.device)
        x = self.path.corrupt(x0, t, noise, y) * scales[t].to(x0.dtype)[:, None, None, None]
        return (net(x, t, lq).float() - x0).abs().mean()


class Validation:
    """PSNR on luma and sharpness of both operating points over whole photographs.

    Args:
        files: photographs (the truth); each is cut to a multiple of the scale and reduced.
        config: of the model that the network is put into.
    """

    def __init__(self, files: list[FilePath], config: ResShiftConfig) -> None:
        self.config = config
        self.truth = [read_rgb(file, multiple=config.scale) for file in files]
        self.reduced = [reduce_image(image, config.scale) for image in self.truth]

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Metrics of a network: "psnr_y_mean", "psnr_y_sample", "sharpness_mean", "sharpness_sample"."""
        model = ResShift(self.config, network=net).eval()
        totals: dict[str, list[float]] = {}
        for truth, reduced in zip(self.truth, self.reduced, strict=True):
            for mode in ("mean", "sample"):
                restored = restore_bytes(model, reduced, mode)
                value = score(restored, truth, "y", border=self.config.scale).psnr
                totals.setdefault(f"psnr_y_{mode}", []).append(value)
                totals.setdefault(f"sharpness_{mode}", []).append(sharpness(restored, truth))
        return {name: float(np.mean(values)) for name, values in totals.items()}

    def picture(self, net: nn.Module) -> np.ndarray:
        """First photograph: truth, enlarged input, mean and sample side by side, (height, width, 3) uint8."""
        model = ResShift(self.config, network=net).eval()
        reduced = self.reduced[0]
        nearest = reduced.repeat(self.config.scale, axis=0).repeat(self.config.scale, axis=1)
        restored = [restore_bytes(model, reduced, mode) for mode in ("mean", "sample")]
        return np.concatenate([nearest, *restored, self.truth[0]], axis=1)


@torch.no_grad()
def restore_bytes(model: ResShift, reduced: np.ndarray, mode: str, seed: int = 0) -> np.ndarray:
    """Enlarge one 8-bit image without tiling.

    Args:
        model: a ResShift model.
        reduced: (height, width, 3) uint8.
        mode: "mean" or "sample".
        seed: of the noise.

    Returns:
        (scale·height, scale·width, 3) uint8.
    """
    restored = model.restore(to_signed(reduced[None]), mode=mode, seed=seed)[0]
    pixels = restored.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).numpy()


def train(
    recipe: SuperResolutionRecipe,
    photographs: str | FilePath,
    validation: str | FilePath,
    output: str | FilePath,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train a super-resolution model, or go on with a run that was stopped, and save it.

    The folder `output` holds the run (settings, log, checkpoints, previews) and, when the run is complete,
    the averaged weights as a loadable model in `output/model`.

    Args:
        recipe: settings; a run that goes on must be given the same ones.
        photographs: folder of training photographs.
        validation: folder of photographs that are never trained on.
        output: folder of the run.
        max_minutes: minutes of training over all parts of the run, by which the learning rate anneals.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        ValueError: no photographs, or the folder holds a run of another recipe.
    """
    run, config = Run.begin(recipe, output, max_minutes, device), recipe.config()
    model = ResShift(config)
    crops = PairedCrops.from_files(photographs, scale=recipe.scale, patch=recipe.patch)
    held_out = Validation(list_images(validation)[: recipe.validation_images], config)

    def save(averaged: nn.Module, place: FilePath) -> None:
        ResShift(config, network=averaged).save_pretrained(place)

    loss = ResShiftLoss(model.path, recipe.step_shares)
    return run.restorer(model.net, loss, crops.batch, held_out, save, recipe.max_steps)
