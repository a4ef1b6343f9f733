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
from .methods.irsde import IRSDE
from .methods.irsde_config import IRSDEConfig
from .methods.irsde_training import CleanErrorOfAllTimes
from .methods.rddm import RDDM, RDDMConfig
from .methods.told import told_maps
from .metrics import score, sharpness
from .pairs import Crops, Mixture, RealPairs
from .runs import Run
from .task_recipe import TaskRecipe

# Channels of the images that a network is told before the maps: the state and the input.
IMAGES = 6
# Of a pixel that is not to be filled, relative to one that is.
KNOWN_WEIGHT = 0.1


@dataclass(frozen=True)
class CleanError:
    """Mean absolute or squared error of the predicted clean image, at the times that sampling visits.

    L = E |x0_hat(x_t, t, y) − x0|^p,   x_t = a x + b y + sigma eps, y the degraded input, x the clean image
    x0 or the network's prediction from the start of the path with the same eps. Where the path has little
    noise, x_t and y betray x0: a network that only ever saw the clean image there trusts its first prediction
    blindly when it samples, and makes its errors worse; one that saw its own predictions corrects them.

    Args:
        model: whose path and prediction the network has.
        start_share: how often the start is drawn, relative to each other time.
        level_share: how often a known noise level is told.
        rollout_share: how often x is the network's prediction.
        power: p, 1 or 2.
    """

    model: PathModel
    start_share: float
    level_share: float
    rollout_share: float = 0.0
    power: int = 1

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
        maps = told_maps(self.model.takes, y, mask if "mask" in self.model.takes else None, level)
        given: dict[str, Any] = {"lq": y} if maps is None else {"lq": y, "maps": maps}
        clean = x0
        rolled = torch.rand(len(x0), device=device, generator=generator) < self.rollout_share
        rolled &= drawn > 0
        if rolled.any():
            start = torch.full_like(t[rolled], times[0])
            beside = {name: value[rolled] for name, value in given.items()}
            with torch.no_grad():
                first = denoise.path.corrupt(x0[rolled], start, noise[rolled], y[rolled])
                guess = denoise.given(**beside, y=y[rolled])(first, start).float()
            clean = x0.index_copy(0, rolled.nonzero()[:, 0], guess)
        x = denoise.path.corrupt(clean, t, noise, y)
        error = (denoise.given(**given, y=y)(x, t).float() - x0).abs() ** self.power
        return (weight_of(mask) * error).mean() if "mask" in self.model.takes else error.mean()


def weight_of(mask: Tensor) -> Tensor:
    """Weights of mean 1 of the pixels of a batch; a known pixel, which is put back, weighs `KNOWN_WEIGHT`.

    Args:
        mask: (batch, 1, h, w), 1 where unknown.

    Example:
        >>> mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
        >>> [round(weight, 2) for weight in weight_of(mask).ravel().tolist()]
        [3.08, 0.31, 0.31, 0.31]
    """
    weight = torch.lerp(torch.full_like(mask, KNOWN_WEIGHT), torch.ones_like(mask), mask)
    return weight / weight.mean()


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
    lq = model.preparation(bad.lq, bad.mask)
    restored = model.restore(
        to_signed(lq[None]),
        mode=mode,
        mask=mask if "mask" in model.takes else None,
        level=bad.level if "level" in model.takes else None,
        seed=seed,
    )[0]
    return restored.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def model_of(recipe: TaskRecipe, network: nn.Module | None = None) -> RDDM | IRSDE:
    """The model of a recipe, around a network or a new one."""
    options = {"widths": recipe.widths, "blocks": recipe.blocks, "fold": recipe.fold}
    if recipe.method == "irsde":
        own = {"prediction": "x0", "solver": "mrs-2", "calls": 10}
        return IRSDE(
            IRSDEConfig(
                **{**own, **recipe.method_options},
                network="small-unet",
                network_options=options,
                # Published: what is not known is white.
                fill=1.0 if "mask" in recipe.takes else None,
                tasks=recipe.tasks,
            ),
            network,
        )
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


def loss_of(recipe: TaskRecipe, model: RDDM | IRSDE) -> CleanError | CleanErrorOfAllTimes:
    """What the training of a recipe's model minimises."""
    if isinstance(model, IRSDE):
        return CleanErrorOfAllTimes(model, recipe.start_share)
    return CleanError(
        model, recipe.start_share, recipe.level_share, recipe.rollout_share, 1 + (recipe.error == "squared")
    )


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
    run = Run.begin(recipe, output, max_minutes, device)
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

    def save(averaged: nn.Module, place: Path) -> None:
        model_of(recipe, averaged).save_pretrained(place)

    return run.restorer(net, loss_of(recipe, model), data.batch, held, save, recipe.max_steps)


def _begin_with(net: nn.Module, start: PathModel) -> None:
    """Give a network the weights of another model of the same layout, which may be told other maps."""
    weights, wanted = dict(start.net.state_dict()), net.state_dict()
    for name, own in wanted.items():
        given = weights.get(name)
        if given is not None and given.ndim == 4 and given.shape[0] == own.shape[0]:
            # The maps are told last: of a network that is told others, only the images' weights are taken.
            fitted = torch.zeros_like(own)
            shared = (
                own.shape[1] if given.shape[1] == own.shape[1] else IMAGES * int(getattr(net, "fold", 1)) ** 2
            )
            fitted[:, :shared] = given[:, :shared]
            weights[name] = fitted
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"start: its network is not that of the recipe: {error}") from None


def _data(
    recipe: TaskRecipe, photographs: str | Path, pairs: tuple[str | Path, str | Path] | None
) -> Mixture:
    read = (read_rgb(file) for file in list_images(photographs))
    large = tuple(image for image in read if min(image.shape[:2]) >= recipe.patch)
    crops = Crops(large, recipe.degrade(), recipe.patch, model_of(recipe).preparation)
    if pairs is None:
        return Mixture([crops])
    real = RealPairs.from_folders(*pairs, recipe.patch)
    return Mixture([crops, real], [1 - recipe.pair_share, recipe.pair_share])
