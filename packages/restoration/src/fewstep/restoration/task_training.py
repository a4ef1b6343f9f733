"""Training of the small models of tasks that keep the size: `fewstep restore train --task …`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.training import TrainResult

from .data import list_images, read_rgb, to_signed
from .degradations import Degradation, Degraded
from .methods.base import PathModel
from .methods.rddm import RDDM, RDDMConfig
from .methods.told import told_maps
from .metrics import score, sharpness
from .pairs import Crops, Mixture, RealPairs
from .recipes import remember
from .runs import trainer_of
from .task_recipe import TaskRecipe


@dataclass(frozen=True)
class CleanError:
    """Mean absolute error of the predicted clean image, at the times that sampling visits.

    L = E |x0_hat(x_t, t, y) − x0|,   x_t = a x0 + b y + sigma eps, y the degraded input.

    Args:
        model: whose path and prediction the network has.
        start_share: how often the start is drawn, relative to each other time.
        level_share: how often a known noise level is told.
    """

    model: PathModel
    start_share: float
    level_share: float

    def __call__(
        self, net: Callable[..., Tensor], batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """The loss of a batch of `pairs.Mixture`."""
        denoise = self.model.bare_denoiser(net)
        times = list(self.model.times(denoise, "sample", self.model.steps_of("sample")))[:-1]
        x0, y, mask = batch["x0"], batch["y"], batch["mask"]
        device = x0.device
        shares = torch.tensor([self.start_share] + [1.0] * (len(times) - 1), device=device)
        drawn = torch.multinomial(shares, len(x0), replacement=True, generator=generator)
        t = torch.tensor(times, dtype=torch.float64, device=device)[drawn]
        noise = torch.randn(x0.shape, device=device, generator=generator)
        told = torch.rand(len(x0), device=device, generator=generator) < self.level_share
        level = torch.where(told, batch["level"], -torch.ones_like(batch["level"]))
        assert denoise.path is not None
        x = denoise.path.corrupt(x0, t, noise, y)
        maps = told_maps(self.model.takes, y, mask if "mask" in self.model.takes else None, level)
        given: dict[str, Any] = {"lq": y} if maps is None else {"lq": y, "maps": maps}
        return (denoise.given(**given, y=y)(x, t).float() - x0).abs().mean()


class Held:
    """PSNR and sharpness over whole photographs, degraded once with fixed draws.

    Args:
        files: clean photographs.
        degradations: what is done to them, by name; every photograph is used for every one.
        model: that the network is put into.
        pairs: real (bad, good) photographs, scored as "real".
    """

    def __init__(
        self,
        files: Sequence[Path],
        degradations: Mapping[str, Degradation],
        model: Callable[[nn.Module], PathModel],
        pairs: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        self.model = model
        self.cases: list[tuple[str, np.ndarray, Degraded]] = []
        for name, degrade in degradations.items():
            for index, file in enumerate(files):
                truth = read_rgb(file)
                self.cases.append((name, truth, degrade(truth, np.random.default_rng(index))))
        self.cases += [("real", good, Degraded(bad)) for bad, good in pairs]

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Metrics of a network: "psnr_<name>_mean", "psnr_<name>_sample" and the sharpness of both."""
        model = self.model(net).eval()
        found: dict[str, list[float]] = {}
        for name, truth, bad in self.cases:
            for mode in model.modes:
                made = restore_bytes(model, bad, mode)
                found.setdefault(f"psnr_{name}_{mode}", []).append(score(made, truth, "rgb").psnr)
                found.setdefault(f"sharpness_{name}_{mode}", []).append(sharpness(made, truth))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def picture(self, net: nn.Module) -> np.ndarray:
        """The first photograph of every kind: input, mean, sample, truth; (rows·height, 4·width, 3) uint8."""
        model = self.model(net).eval()
        rows, seen = [], set()
        for name, truth, bad in self.cases:
            if name not in seen:
                seen.add(name)
                made = [restore_bytes(model, bad, mode)[:256, :256] for mode in model.modes]
                rows.append(np.concatenate([bad.lq[:256, :256], *made, truth[:256, :256]], axis=1))
        return np.concatenate([row for row in rows if row.shape == rows[0].shape])


@torch.no_grad()
def restore_bytes(model: PathModel, bad: Degraded, mode: str, seed: int = 0) -> np.ndarray:
    """Restore one 8-bit image without tiling.

    Args:
        model: what restores.
        bad: the degraded image with what is known of it.
        mode: of the model.
        seed: of the noise.

    Returns:
        (height, width, 3) uint8.
    """
    mask = None if bad.mask is None else torch.from_numpy(bad.mask)[None, None].float()
    restored = model.restore(
        to_signed(bad.lq[None]),
        mode=mode,
        mask=mask if "mask" in model.takes else None,
        level=bad.level if "level" in model.takes else None,
        seed=seed,
    )[0]
    return restored.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def model_of(recipe: TaskRecipe, network: nn.Module | None = None) -> RDDM:
    """The model of a recipe, around a network or a new one."""
    options = {"widths": recipe.widths, "blocks": recipe.blocks, "fold": recipe.fold}
    usual = {"sampling_steps": 5, "sum_scale": 0.01, "objective": "pred_x0", "solver": "ddim"}
    config = RDDMConfig(
        **{**usual, **recipe.method_options},
        conditions=("input", *recipe.takes),
        network="small-unet",
        network_options=options,
        padding=recipe.fold * 2 ** (len(recipe.widths) - 1),
        tasks=recipe.tasks,
    )
    return RDDM(config, network)


def train_task(
    recipe: TaskRecipe,
    photographs: str | Path,
    validation: str | Path,
    output: str | Path,
    pairs: tuple[str | Path, str | Path] | None = None,
    validation_pairs: tuple[str | Path, str | Path] | None = None,
    held_out: Mapping[str, Degradation] | None = None,
    start: PathModel | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train a model, or go on with a run that was stopped, and save it in `output/model`.

    Args:
        recipe: settings; a run that goes on must be given the same ones.
        photographs: folder of clean photographs.
        validation: folder of clean photographs that are never trained on.
        output: folder of the run.
        pairs: folders of real pairs, (bad, good), with the same file names.
        validation_pairs: real pairs that are never trained on.
        held_out: degradations that validation uses, by name (None: the recipe's own).
        start: model whose weights the network begins with (fine-tuning).
        max_minutes: minutes of training over all parts of the run, by which the learning rate anneals.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        ValueError: no photographs, pairs or a start that do not fit, or the folder holds a run of another
            recipe.
    """
    folder = Path(output)
    remember(recipe, folder)
    torch.manual_seed(recipe.seed)
    model = model_of(recipe)
    net = model.net
    if start is not None:
        _begin_with(net, start)
    data = _data(recipe, photographs, pairs)
    own = {"own": recipe.degrade()} if held_out is None else held_out
    real = []
    if validation_pairs is not None:
        found = RealPairs.from_folders(*validation_pairs, recipe.patch)
        real = list(zip(found.bad, found.good, strict=True))
    files = list_images(validation)[: recipe.validation_images]
    held = Held(files, own, lambda averaged: model_of(recipe, averaged), real)
    loss = CleanError(model, recipe.start_share, recipe.level_share)
    trainer = trainer_of(recipe, net, loss, data.batch, folder, held, max_minutes, device)
    result = trainer.fit()
    if result.stopped != "interrupted":
        model_of(recipe, trainer.ema.models[recipe.ema]).save_pretrained(folder / "model")
    return result


def _begin_with(net: nn.Module, start: PathModel) -> None:
    """Give a network the weights of another model of the same layout."""
    try:
        net.load_state_dict(start.net.state_dict())
    except RuntimeError as error:
        raise ValueError(f"start: its network is not that of the recipe: {error}") from None


def _data(
    recipe: TaskRecipe, photographs: str | Path, pairs: tuple[str | Path, str | Path] | None
) -> Mixture:
    read = (read_rgb(file) for file in list_images(photographs))
    large = tuple(image for image in read if min(image.shape[:2]) >= recipe.patch)
    crops = Crops(large, recipe.degrade(), recipe.patch)
    if pairs is None:
        return Mixture([crops])
    real = RealPairs.from_folders(*pairs, recipe.patch)
    return Mixture([crops, real], [1 - recipe.pair_share, recipe.pair_share])
