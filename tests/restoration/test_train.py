"""The recipe: a run learns, goes on where it stopped, and leaves a model that restores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from fewstep.core import paths
from fewstep.core.training import read_log
from fewstep.restoration import Restorer
from fewstep.restoration.nets.edsr import ConditionalEDSR
from fewstep.restoration.train import ResShiftLoss, SuperResolutionRecipe, Validation, train

SMALL = SuperResolutionRecipe(
    width=16,
    blocks=2,
    patch=32,
    batch_size=4,
    ema=0.9,
    max_steps=120,
    validation_images=1,
    validate_every=1000,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Cuts of photographs that ship with scikit-image."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut.png", "coffee.png"):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            image.convert("RGB").crop((100, 100, 260, 220)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
    """A finished short run: its folder and its result."""
    folder = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    return folder, train(SMALL, photographs, photographs, folder, device="cpu")


def test_the_run_ends_by_steps(run):
    _, result = run
    assert (result.stopped, result.step, result.skipped) == ("max_steps", SMALL.max_steps, 0)


def test_the_trained_model_beats_the_fresh_one_on_its_own_photographs(run, photographs):
    _, result = run
    validation = Validation(sorted(photographs.iterdir())[:1], SMALL.config())
    torch.manual_seed(0)
    fresh = validation(ConditionalEDSR(width=16, blocks=2))
    assert result.metrics["psnr_y_mean"] > fresh["psnr_y_mean"] + 0.05


def test_the_run_leaves_a_model_that_restores(run):
    folder, _ = run
    restored = Restorer.from_pretrained(folder / "model", device="cpu")(np.zeros((9, 7, 3), np.uint8))
    assert restored.pixels.shape == (36, 28, 3)


def test_a_stopped_run_goes_on_from_its_last_step(photographs, tmp_path):
    short = train(replace(SMALL, max_steps=4), photographs, photographs, tmp_path / "a", device="cpu")
    again = train(replace(SMALL, max_steps=4), photographs, photographs, tmp_path / "a", device="cpu")
    assert (short.step, again.step) == (4, 4)
    steps = [line["step"] for line in read_log(tmp_path / "a", "validate")]
    assert steps == [4]


def test_a_folder_of_another_recipe_is_refused(photographs, tmp_path):
    recipe = replace(SMALL, max_steps=1)
    train(recipe, photographs, photographs, tmp_path, device="cpu")
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(recipe, width=8), photographs, photographs, tmp_path, device="cpu")


def test_the_loss_is_zero_for_a_network_that_knows_the_answer():
    path = paths.ResShift(steps=4, kappa=0.5, latent=False)
    x0 = torch.rand(6, 3, 16, 16) * 2 - 1
    loss = ResShiftLoss(path, (1.0, 1.0, 1.0, 2.0))
    batch = {"x0": x0, "lq": torch.zeros(6, 3, 4, 4)}
    assert loss(lambda x, t, lq: x0, batch, torch.Generator().manual_seed(0)) == 0


def test_the_loss_shows_the_network_the_levels_that_sampling_visits():
    path = paths.ResShift(steps=4, kappa=0.5, latent=False)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def network(x, t, lq):
        seen.append((x, t))
        return x

    x0 = torch.zeros(4096, 1, 4, 4)
    batch = {"x0": x0, "lq": torch.zeros(4096, 1, 1, 1)}
    ResShiftLoss(path, (1.0, 1.0, 1.0, 2.0))(network, batch, torch.Generator().manual_seed(0))
    x, t = seen[0]
    for level in range(4):
        sigma = path.coefficients(level)[2] * path.input_scale(level)
        chosen = x[t == level]
        # Standard deviation of n normal numbers: relative error 1/sqrt(2n), here four of them.
        assert chosen.std().item() == pytest.approx(sigma, rel=4 / (2 * chosen.numel()) ** 0.5)
        share = (2 if level == 3 else 1) / 5
        assert (t == level).float().mean().item() == pytest.approx(share, abs=4 * (share / 4096) ** 0.5)


def test_a_recipe_file_overrides_fields_and_names_unknown_ones(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({"width": 32, "step_shares": [1, 2, 3, 4]}))
    assert SuperResolutionRecipe.load(file) == replace(
        SuperResolutionRecipe(), width=32, step_shares=(1.0, 2.0, 3.0, 4.0)
    )
    file.write_text('{"widht": 32}')
    with pytest.raises(ValueError, match="no field widht"):
        SuperResolutionRecipe.load(file)
    file.write_text("not json")
    with pytest.raises(ValueError, match="not a JSON recipe"):
        SuperResolutionRecipe.load(file)
