"""Training of models that keep the size: pairs, maps, the loss, and a run from the command line's parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from typer.testing import CliRunner

from fewstep.core.training import read_log
from fewstep.restoration import Restorer
from fewstep.restoration.cli import app
from fewstep.restoration.degradations import GaussianNoise, Masked
from fewstep.restoration.pairs import Crops, Mixture, RealPairs
from fewstep.restoration.task_recipe import RECIPES, TaskRecipe
from fewstep.restoration.task_training import (
    CleanError,
    Held,
    _begin_with,
    model_of,
    train_task,
)

SMALL = TaskRecipe(
    degradation={"name": "noise", "low": 25.0, "high": 25.0},
    takes=("level",),
    widths=(16, 16),
    blocks=1,
    patch=32,
    batch_size=4,
    learning_rate=3e-3,
    ema=0.9,
    precision="no",
    max_steps=60,
    validation_images=1,
    validate_every=1000,
)


def cut(name: str) -> np.ndarray:
    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        return np.asarray(image.convert("RGB").crop((100, 100, 228, 212)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Clean photographs, and the same ones with noise."""
    clean, noisy = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("noisy")
    for index, name in enumerate(("astronaut.png", "coffee.png")):
        image = cut(name)
        Image.fromarray(image).save(clean / name)
        made = GaussianNoise(25.0, 25.0)(image, np.random.default_rng(index)).lq
        Image.fromarray(made).save(noisy / name)
    return clean, noisy


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    clean, noisy = folders
    return folder, train_task(SMALL, clean, clean, folder, (noisy, clean), (noisy, clean), device="cpu")


def test_a_run_learns_to_denoise_and_leaves_a_model(run, folders):
    folder, result = run
    assert (result.stopped, result.step, result.skipped) == ("max_steps", SMALL.max_steps, 0)
    held = Held([folders[0] / "astronaut.png"], {"own": SMALL.degrade()}, lambda net: model_of(SMALL, net))
    fresh = held(model_of(SMALL).net)  # returns its input
    assert result.metrics["psnr_own_mean"] > fresh["psnr_own_mean"] + 1
    assert "psnr_real_mean" in result.metrics
    restorer = Restorer.from_pretrained(folder / "model", device="cpu")
    assert restorer.model.tasks == ("denoise",)
    assert restorer(np.zeros((9, 7, 3), np.uint8), level=25).pixels.shape == (9, 7, 3)


def test_the_command_goes_on_and_fine_tunes(run, folders, tmp_path):
    folder, _ = run
    clean, noisy = folders
    arguments = [
        "--data",
        clean,
        "--validation",
        clean,
        "--config",
        folder / "recipe.json",
        "--device",
        "cpu",
    ]
    pairs = ["--pairs", noisy, clean]
    begin = ["train", "--task", "denoise"]
    again = CliRunner().invoke(app, [*begin, *map(str, [*arguments, *pairs, "-o", folder])])
    assert again.exit_code == 0, again.output
    assert f"after {SMALL.max_steps} steps" in again.output
    # A run of no more than a warm-up's first step stays where its start is.
    (tmp_path / "r.json").write_text((folder / "recipe.json").read_text().replace(": 60,", ": 1,"))
    tuned = ["--config", tmp_path / "r.json", "--start", folder / "model", "-o", tmp_path / "tuned"]
    made = CliRunner().invoke(app, [*begin, *map(str, [*arguments, *tuned])])
    assert made.exit_code == 0, made.output
    before = read_log(folder, "validate")[-1]["psnr_own_mean"]
    assert abs(read_log(tmp_path / "tuned", "validate")[-1]["psnr_own_mean"] - before) < 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "paint"], "expected super-resolution or one of denoise"),
        (["--pairs", "{clean}", "{clean}"], "tasks that keep the size"),
        (["--task", "denoise", "--pairs", "{clean}", "{odd}"], "files of the same names"),
        (["--task", "denoise", "--pairs", "{clean}", "{small}"], "has sizes"),
        (["--task", "denoise", "--start", "nowhere"], "there is no checkpoint"),
        (["--task", "denoise", "--start", "resshift-x4"], "which this recipe does not train"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, words, folders, tmp_path):
    clean, _ = folders
    for name in ("odd", "small"):
        (tmp_path / name).mkdir()
    Image.fromarray(cut("coffee.png")).save(tmp_path / "odd" / "other.png")
    for name in ("astronaut.png", "coffee.png"):
        Image.fromarray(cut(name)[:50]).save(tmp_path / "small" / name)
    places = {"clean": clean, "odd": tmp_path / "odd", "small": tmp_path / "small"}
    given = [part.format(**places) for part in arguments]
    common = ["--data", str(clean), "--validation", str(clean), "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["train", *common, *given])
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("power", [1, 2])
def test_the_loss_is_the_error_of_the_estimate_at_times_that_are_visited(power):
    model = model_of(replace(SMALL, takes=("mask", "level")))
    asked = []

    def net(x, t, lq, maps):
        asked.append((t, maps))
        return lq

    crops = Crops((cut("coffee.png"),), Masked(kinds=("boxes",)), 32)
    batch = Mixture([crops]).batch(np.random.default_rng(0), 64)
    loss = CleanError(model, 1.0, 0.5, power=power)(net, batch, torch.Generator().manual_seed(0))
    mask = batch["mask"]
    weight = (0.1 + 0.9 * mask) / (0.1 + 0.9 * mask).mean()
    expected = (weight * (batch["y"] - batch["x0"]).abs() ** power).mean()
    torch.testing.assert_close(loss, expected)
    t, maps = asked[0]
    assert set(t.tolist()) == {999.0, 799.0, 599.0, 399.0, 199.0}
    assert torch.equal(maps[:, :1], 2 * batch["mask"] - 1)
    assert maps[:, 1:].abs().max() == 0, "no level is known of a masked photograph"


def test_known_levels_are_told_as_often_as_asked():
    model = model_of(SMALL)
    told = []

    def net(x, t, lq, maps):
        told.append(maps[:, 0, 0, 0])
        return lq

    crops = Crops((cut("coffee.png"),), GaussianNoise(), 32)
    batch = Mixture([crops]).batch(np.random.default_rng(0), 400)
    CleanError(model, 2.0, 0.25)(net, batch, torch.Generator().manual_seed(1))
    # Four standard deviations of a binomial share.
    assert abs(told[0].mean().item() - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_pairs_share_place_and_symmetry():
    good = cut("astronaut.png")
    pairs = RealPairs((good // 2,), (good,), 32)
    for seed in range(8):
        clean, bad = pairs.draw(np.random.default_rng(seed))
        assert np.array_equal(clean // 2, bad.lq)
        assert bad.level is None


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_make_batches(name):
    recipe = RECIPES[name]
    large = np.tile(cut("coffee.png"), (2, 2, 1))
    batch = Mixture([Crops((large,), recipe.degrade(), recipe.patch)]).batch(np.random.default_rng(0), 3)
    assert batch["x0"].shape == batch["y"].shape == (3, 3, recipe.patch, recipe.patch)
    assert (batch["x0"] - batch["y"]).abs().mean() > 0.001
    assert batch["mask"].bool().any().item() == ("mask" in recipe.takes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "other"}, "method must be one of rddm"),
        ({"task": "paint"}, "task must be of"),
        ({"patch": 30}, "patch must be a multiple of 4"),
        ({"level_share": 1.5}, "level_share must lie in"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_bad_recipes(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **change)


def test_later_states_are_made_from_the_first_prediction_as_in_sampling():
    model = model_of(SMALL)
    asked = []

    def net(x, t, lq, maps):
        asked.append((x.clone(), t.clone(), lq))
        return 0.5 * lq

    crops = Crops((cut("coffee.png"),), GaussianNoise(25.0, 25.0), 32)
    batch = Mixture([crops]).batch(np.random.default_rng(0), 32)
    CleanError(model, 1.0, 0.5, rollout_share=1.0)(net, batch, torch.Generator().manual_seed(0))
    (first, start, _), (x, t, _) = asked
    later = t < 999
    assert len(first) == int(later.sum())
    assert (start == 999).all()
    path, y = model.config.path(), batch["y"]
    a, b, sigma = (value.float().view(-1, 1, 1, 1) for value in path.evaluate(t.double()))
    b_start, sigma_start = (float(value) for value in path.coefficients(999.0)[1:])
    noise = (first - b_start * y[later]) / sigma_start
    expected = a[later] * 0.5 * y[later] + b[later] * y[later] + sigma[later] * noise
    torch.testing.assert_close(x[later], expected, atol=1e-4, rtol=0)


def test_a_network_that_is_told_other_maps_begins_with_the_images_weights(tmp_path, folders):
    told, untold = model_of(SMALL), model_of(replace(SMALL, takes=()))
    torch.nn.init.normal_(told.net.get_parameter("tail.weight"), std=0.05)
    _begin_with(untold.net, told)
    shared, head = 6 * SMALL.fold**2, "head.weight"
    begun = told.net.get_parameter(head)[:, :shared]
    torch.testing.assert_close(untold.net.get_parameter(head), begun)
    again = model_of(replace(SMALL, takes=("mask",)))
    _begin_with(again.net, told)
    assert again.net.get_parameter(head)[:, shared:].abs().max() == 0
    x, t = torch.rand(1, 3, 16, 16), torch.tensor([999.0])
    torch.testing.assert_close(
        again.net(x, t, x, torch.ones(1, 1, 16, 16)), untold.net(x, t, x), atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match="start: its network is not that of the recipe"):
        _begin_with(model_of(replace(SMALL, widths=(16, 32))).net, told)
