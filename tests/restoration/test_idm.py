"""IDM as a restorer and its recipe: consistency with measurements, colour, sizes, a run that learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from fewstep.core.weights import CheckpointError
from fewstep.restoration.compressed_sensing import Measurement, measure
from fewstep.restoration.methods.idm import IDM, IDMConfig, brightness, from_planes, to_planes
from fewstep.restoration.train_idm import IDMRecipe, LumaCrops, Validation, begin_with, middle, train_idm

SMALL = IDMConfig(
    ratio=0.25,
    block=16,
    steps=2,
    channels=(16, 16),
    attention=(False, False),
    normalised=False,
    standardised=True,
    consistent=True,
    group=64,
)


def fresh(config: IDMConfig = SMALL, seed: int = 0) -> IDM:
    """A model whose every weight matters."""
    torch.manual_seed(seed)
    model = IDM(config).eval()
    for parameter in (model.unet.conv_out.weight, model.merge_scale_factor):
        torch.nn.init.constant_(parameter, 0.05)
    return model


@pytest.mark.parametrize("memory", ["keep", "steps", "all"])
@pytest.mark.parametrize("standardised", [False, True])
def test_the_result_has_the_given_measurements(standardised, memory):
    model = fresh(replace(SMALL, standardised=standardised))
    taken = model.measure(torch.rand(2, 1, 32, 48))
    out = model(taken.values, taken.sensing, memory=memory)
    torch.testing.assert_close(taken.sensing.forward(out), taken.values, rtol=0, atol=1e-5)


def test_published_models_leave_the_last_mixing_unprojected():
    model = fresh(replace(SMALL, consistent=False))
    taken = model.measure(torch.rand(2, 1, 32, 48))
    out = model(taken.values, taken.sensing)
    assert (taken.sensing.forward(out) - taken.values).abs().max() > 1e-3


def test_all_measurements_give_the_image_back():
    model = fresh(replace(SMALL, ratio=1.0))
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(model.reconstruct(model.measure(image)), image, rtol=0, atol=1e-5)


def test_mean_and_contrast_are_seen_through_the_measurements():
    torch.manual_seed(0)
    image = 0.4 + 0.1 * torch.randn(1, 1, 128, 128)
    taken = measure(image, 0.25)
    mean, contrast = brightness(taken.values, taken.sensing.forward(torch.ones_like(image)))
    # 4096 measurements: standard errors 0.1/√4096 = 0.0016 of the mean, 0.1/√8192 = 0.0011 of the contrast.
    assert abs(mean.item() - 0.4) < 4 * 0.0016
    assert abs(contrast.item() - 0.1) < 4 * 0.0011


def test_a_standardised_model_follows_brightness_and_contrast():
    model = fresh().double()
    image = torch.rand(1, 1, 32, 32, dtype=torch.float64)
    y = model.measure(image)
    dark = model.measure(0.2 + 0.3 * image)
    expected = 0.2 + 0.3 * model(y.values, y.sensing)
    torch.testing.assert_close(model(dark.values, dark.sensing), expected, rtol=0, atol=1e-6)


def test_a_flat_image_stays_flat():
    image = torch.full((1, 3, 20, 20), 0.25)
    taken = fresh().measure(image)
    # What the network adds has the least contrast, 0.001: it does not reach half a step of 8-bit images.
    torch.testing.assert_close(fresh().reconstruct(taken), image, rtol=0, atol=1 / 510)


@pytest.mark.parametrize("size", [(1, 1), (17, 40), (65, 130)])
def test_photographs_of_any_size(size):
    lq = torch.rand(2, 3, *size) * 2 - 1
    model = fresh(replace(SMALL, ratio=1.0))
    # All measurements: whatever the rectangles, planes and borders, the photograph comes back.
    torch.testing.assert_close(model.restore(lq), lq, rtol=0, atol=2e-5)
    assert fresh().restore(lq).shape == lq.shape


def test_planes_are_undone():
    image = torch.rand(2, 3, 5, 7, dtype=torch.float64) * 2 - 1
    planes = to_planes(image)
    torch.testing.assert_close(from_planes(planes), image, rtol=0, atol=1e-12)
    grey = to_planes(torch.full((1, 3, 1, 1), 0.2, dtype=torch.float64)).flatten()
    torch.testing.assert_close(grey, torch.tensor([0.6, 0.5, 0.5], dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_sample_does_not_depend_on_its_batch_mates_and_repeats():
    model, lq = fresh(), torch.rand(3, 3, 33, 20) * 2 - 1
    together = model.restore(lq, seed=7)
    torch.testing.assert_close(model.restore(lq[1:2], seed=7), together[1:2], rtol=0, atol=1e-5)
    assert not torch.allclose(model.restore(lq, seed=8), together, atol=1e-3)


def test_steps_are_watched_and_can_be_stopped():
    model, lq, seen = fresh(), torch.rand(1, 3, 32, 32), []
    watched = model.restore(lq, on_step=lambda info: seen.append((info.step, info.total, info.nfe)))
    assert seen == [(1, 2, 1), (2, 2, 2)]
    torch.testing.assert_close(watched, model.restore(lq), rtol=0, atol=1e-6)
    stopped = []
    model.restore(lq, on_step=lambda info: bool(stopped.append(info.step)))
    assert stopped == [1]


def test_a_saved_model_and_a_saved_measurement_give_the_same_image(tmp_path):
    model, image = fresh(), torch.rand(1, 1, 40, 50)
    taken = model.measure(image)
    model.save_pretrained(tmp_path / "model")
    taken.save(tmp_path / "y.npz")
    again = IDM.from_pretrained(tmp_path / "model").reconstruct(Measurement.load(tmp_path / "y.npz"))
    assert torch.equal(again, model.reconstruct(taken))
    with pytest.raises(CheckpointError, match="elsewhere"):
        IDM.from_pretrained(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "mean"}, "mode must be one of 'sample', got 'mean'"),
        ({"steps": 5}, "steps must be 2 or left out"),
        ({"solver": "ancestral"}, "solver must be one of 'ddim'"),
        ({"mask": torch.ones(1, 1, 32, 32)}, "mask must be left out"),
        ({"level": 10.0}, "level must be left out"),
    ],
)
def test_what_cannot_be_told_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fresh().restore(torch.zeros(1, 3, 32, 32), **arguments)


def test_measurements_of_another_kind_and_images_with_holes_are_refused():
    with pytest.raises(ValueError, match="64 values for 256 pixels, as this model was trained, got 26"):
        fresh().reconstruct(measure(torch.rand(1, 1, 32, 32), 0.1, block=16))
    with pytest.raises(ValueError, match="image must be finite"):
        fresh().restore(torch.full((1, 3, 32, 32), float("nan")))
    taken = fresh().measure(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="memory must be one of 'keep', 'steps', 'all', got 'none'"):
        fresh()(taken.values, taken.sensing, memory="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.0}, r"ratio must lie in \(0, 1\]"),
        ({"ratio": 1.5}, r"ratio must lie in \(0, 1\]"),
        ({"block": 18}, "block must be a multiple of 4"),
        ({"group": 8}, "group must be at least block 16"),
    ],
)
def test_configurations_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


RECIPE = IDMRecipe(
    steps=1,
    channels=(16, 16),
    patch=32,
    batch_size=2,
    ema=0.8,
    learning_rate=4e-3,
    max_steps=30,
    validation_images=1,
    validate_every=1000,
    precision="no",
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A cut of a photograph that ships with scikit-image."""
    folder = tmp_path_factory.mktemp("photographs")
    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as image:
        image.convert("RGB").crop((100, 60, 260, 220)).save(folder / "astronaut.png")
    return folder


def test_a_run_learns_and_goes_on(photographs, tmp_path):
    torch.set_num_threads(1)
    held_out = Validation(sorted(photographs.iterdir()), RECIPE.config(), side=160)
    start = held_out(IDM(RECIPE.config()).eval())
    assert train_idm(replace(RECIPE, max_steps=3), photographs, photographs, tmp_path / "a").step == 3
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        train_idm(RECIPE, photographs, photographs, tmp_path / "a")
    result = train_idm(RECIPE, photographs, photographs, tmp_path / "b", device="cpu")
    assert result.stopped == "max_steps"
    assert result.metrics["psnr"] > start["psnr"] + 1
    model = IDM.from_pretrained(tmp_path / "b" / "model")
    assert held_out(model)["psnr"] == pytest.approx(result.metrics["psnr"], abs=0.5)
    assert held_out.picture(model).shape == (160, 480)


def test_luma_crops_and_middles(photographs):
    crops = LumaCrops.from_files(photographs, 64)
    batch = crops.batch(np.random.default_rng(0), 3)["x0"]
    assert batch.shape == (3, 1, 64, 64)
    assert 0 <= float(batch.min()) < float(batch.max()) <= 1
    assert torch.equal(batch, crops.batch(np.random.default_rng(0), 3)["x0"])
    assert middle(np.zeros((100, 70), np.uint8), 32, 256).shape == (96, 64)
    with pytest.raises(ValueError, match="at least 32 pixels"):
        middle(np.zeros((31, 70), np.uint8), 32, 256)
    with pytest.raises(ValueError, match="as large as a patch of 512"):
        LumaCrops.from_files(photographs, 512)
    with pytest.raises(ValueError, match="patch must be a multiple of 32"):
        IDMRecipe(patch=48)


def test_a_model_of_more_steps_begins_with_those_of_another():
    torch.manual_seed(0)
    start, model = (IDM(replace(RECIPE, steps=steps).config()) for steps in (2, 4))
    for step in range(2):
        torch.nn.init.constant_(start.get_parameter(f"body.{step}.v"), 0.1 * step)
    torch.nn.init.uniform_(start.alpha, 0.2, 0.9)
    begin_with(model, start)
    # Each step of the start has become two, whose levels multiply to its own.
    products = model.alpha.detach().view(-1, 2).prod(1)
    torch.testing.assert_close(products, start.alpha.detach())
    uneven = IDM(replace(RECIPE, steps=3).config())
    begin_with(uneven, start)
    torch.testing.assert_close(uneven.alpha.detach().prod(), start.alpha.detach().prod())
    own, given = model.state_dict(), start.state_dict()
    assert [float(uneven.get_parameter(f"body.{step}.v").detach()) for step in range(3)] == [
        float(given[f"body.{step}.v"]) for step in (0, 1, 1)
    ]
    assert all(torch.equal(own[f"body.{step}.v"], given[f"body.{step // 2}.v"]) for step in range(4))
    injectors = [name for name in own if ".f2i.2." in name or ".f2i.3." in name]
    assert injectors
    for name in injectors:
        source = name.replace(".f2i.2.", ".f2i.1.").replace(".f2i.3.", ".f2i.1.")
        assert torch.equal(own[name], given[source])
    with pytest.raises(ValueError, match="start: its network"):
        begin_with(IDM(replace(RECIPE, steps=2, channels=(32, 16)).config()), start)
