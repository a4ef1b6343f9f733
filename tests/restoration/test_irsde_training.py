"""IR-SDE's training: what the network is shown and asked, a run that goes on, the model it leaves."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from torch import Tensor

from fewstep.restoration import Restorer
from fewstep.restoration.catalogue import described
from fewstep.restoration.methods.irsde import IRSDE
from fewstep.restoration.methods.irsde_config import IRSDEConfig
from fewstep.restoration.methods.irsde_training import CleanErrorOfAllTimes
from fewstep.restoration.methods.loading import load_model
from fewstep.restoration.methods.padding import reflect_to_multiple
from fewstep.restoration.methods.resfusion import Resfusion, ResfusionConfig
from fewstep.restoration.task_recipe import RECIPES, TaskRecipe, recipe_for, with_method
from fewstep.restoration.task_training import loss_of, model_of, train_task
from fewstep.restoration.tiles import Tiling

SMALL = TaskRecipe(
    task="derain",
    method="irsde",
    method_options={"max_sigma": 30.0},
    degradation={"name": "rain"},
    widths=(16, 16),
    blocks=1,
    patch=32,
    batch_size=2,
    ema=0.5,
    precision="no",
    max_steps=4,
    validation_images=1,
    validate_every=1000,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A cut of a photograph that ships with scikit-image."""
    folder = tmp_path_factory.mktemp("photographs")
    with Image.open(Path(skimage.__file__).parent / "data" / "coffee.png") as image:
        image.convert("RGB").crop((100, 100, 180, 160)).save(folder / "coffee.png")
    return folder


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    assert train_task(SMALL, photographs, photographs, folder, device="cpu").step == SMALL.max_steps
    return folder


def new(recipe: TaskRecipe = SMALL) -> IRSDE:
    """A model that was not trained."""
    model = model_of(recipe)
    assert isinstance(model, IRSDE)
    return model


def batch_of(count: int, side: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, y = torch.rand(2, count, 3, side, side, generator=generator) * 2 - 1
    mask = (torch.rand(count, 1, side, side, generator=generator) < 0.3).float()
    return {"x0": x0, "y": y, "mask": mask, "level": -torch.ones(count)}


class Seeing:
    """A network that says the clean image is the degraded one, and keeps what it saw."""

    def __call__(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        self.x, self.t, self.lq = x, t, lq
        return lq


def test_the_loss_is_the_error_of_the_estimate_on_the_scale_of_states():
    batch, net = batch_of(64), Seeing()
    loss = CleanErrorOfAllTimes(new())(net, batch, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, (batch["y"] - batch["x0"]).abs().mean() / 2)
    torch.testing.assert_close(net.lq, batch["y"])


def test_states_are_those_of_the_path_at_every_time():
    batch, net, model = batch_of(4000, side=4), Seeing(), new()
    CleanErrorOfAllTimes(model)(net, batch, torch.Generator().manual_seed(1))
    assert set(net.t.tolist()) == set(range(1, 101))
    a, b, sigma = (part.view(-1, 1, 1, 1) for part in model.config.path().evaluate(net.t))
    x0, y, x = ((part.double() + 1) / 2 for part in (batch["x0"], batch["y"], net.x))
    noise = (x - a * x0 - b * y) / sigma
    # Standard deviation of n normal numbers: relative error 1/sqrt(2n), here four of them.
    assert noise.std().item() == pytest.approx(1, abs=4 / (2 * noise.numel()) ** 0.5)
    assert abs(noise.mean().item()) < 4 / noise.numel() ** 0.5
    assert sigma.max().item() == pytest.approx(30 / 255, rel=1e-4)


def test_the_last_time_as_often_as_asked():
    net = Seeing()
    CleanErrorOfAllTimes(new(), 99.0)(net, batch_of(2000, side=1), torch.Generator().manual_seed(1))
    # Four standard deviations of a binomial share of 99 in 198.
    assert (net.t == 100).double().mean().item() == pytest.approx(0.5, abs=4 * (0.25 / 2000) ** 0.5)


def test_unknown_pixels_are_shown_white():
    recipe = replace(SMALL, task="inpaint", degradation={"name": "mask"}, takes=("mask",))
    model, batch, net = new(recipe), batch_of(3), Seeing()
    loss_of(recipe, model)(net, batch, torch.Generator().manual_seed(1))
    assert model.takes == {"mask"}
    torch.testing.assert_close(net.lq, torch.where(batch["mask"] > 0, torch.ones(()), batch["y"]))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(photographs, trained, tmp_path, monkeypatch):
    whole, calls = CleanErrorOfAllTimes.__call__, []

    def stopping(self, *given):
        calls.append(0)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(self, *given)

    monkeypatch.setattr(CleanErrorOfAllTimes, "__call__", stopping)
    cut = train_task(SMALL, photographs, photographs, tmp_path, device="cpu")
    assert (cut.stopped, cut.step) == ("interrupted", 2)
    assert not (tmp_path / "model").exists()
    assert train_task(SMALL, photographs, photographs, tmp_path, device="cpu").step == 4
    assert len(calls) == 4
    first, second = (load_model(folder / "model").state_dict() for folder in (trained, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["net.tail.weight"].abs().max() > 0  # as it is in a fresh network


def test_the_model_restores_any_size(trained):
    model = load_model(trained / "model")
    assert isinstance(model, IRSDE)
    assert (model.tasks, model.config.padding, model.scale) == (("derain",), 4, 1)
    assert (model.steps_of("sample"), model.steps_of("sample", 100), model.steps_of("mean")) == (10, 100, 1)
    lq = torch.rand(1, 3, 10, 7) * 2 - 1
    seen = []
    for rule in ("mrs-2", "ir-posterior", "ir-sde"):
        made = model.restore(lq, solver=rule, steps=3, on_step=lambda info: seen.append(info.x.shape))
        assert made.shape == lq.shape
        assert torch.isfinite(made).all()
    assert set(seen) == {(1, 3, 12, 8)}
    restorer = Restorer.from_pretrained(trained / "model", device="cpu")
    assert restorer(np.zeros((9, 7, 3), np.uint8), mode="detailed").pixels.shape == (9, 7, 3)


def test_tiles_agree_with_the_whole(trained):
    model = load_model(trained / "model").double().eval()
    assert model.reach is not None
    lq = torch.rand(1, 3, 8, 200, dtype=torch.float64) * 2 - 1
    steps, noise = 2, torch.randn(3, 1, 3, 8, 200, dtype=torch.float64)

    def restored(stop: int) -> Tensor:
        draws = iter(noise[..., :stop])
        return model.restore(
            lq[..., :stop], solver="ir-posterior", steps=steps, noise=lambda like: next(draws)
        )

    whole, left = restored(200), restored(120)
    inside = 120 - model.reach * steps
    assert inside > 0
    torch.testing.assert_close(left[..., :inside], whole[..., :inside], rtol=0, atol=1e-12)
    assert not torch.equal(left[..., -4:], whole[..., 116:120])


def test_a_network_in_the_middle_of_its_scale():
    """States in [0, 1], images in [-1, 1]: the mean of a network that gives its input is the input."""
    model = new().double()
    lq = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(model.restore(lq, mode="mean"), lq, rtol=0, atol=1e-12)
    extended = reflect_to_multiple(lq[..., :7], 4)
    made = model.restore(lq[..., :7], mode="mean")
    torch.testing.assert_close(made, extended[..., :7], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "multiple"),
    [
        ({}, 16),
        ({"network_options": {"enc_blk_nums": [1, 2]}}, 4),
        ({"network": "conditional-unet"}, 16),
        ({"network": "conditional-unet", "network_options": {"ch_mult": [1, 2, 4]}}, 8),
        ({"network": "small-unet", "prediction": "x0"}, 8),
        ({"network": "small-unet", "prediction": "x0", "network_options": {"fold": 4, "widths": [8]}}, 4),
        ({"scale": 4}, 4),
        ({"autoencoder": {}, "network_options": {"enc_blk_nums": [1]}}, 16),
        ({"autoencoder": {"ch_mult": [1, 2]}, "network_options": {"enc_blk_nums": [1, 1]}}, 8),
    ],
)
def test_tiles_begin_where_the_network_reduces(fields, multiple):
    config = IRSDEConfig(**fields)
    assert config.padding == multiple
    tiling = Tiling.choose((500, 500), 100, 10, scale=config.scale, multiple=config.padding)
    assert tiling.tile % multiple == tiling.pad % multiple == 0


def test_the_list_says_how_many_calls():
    def calls(kind: str, **fields) -> int | None:
        return described("x", {"_class": kind, **fields}, 1).calls

    assert calls("IRSDE", calls=7) == 7
    assert calls("IRSDE") == 100
    assert calls("IRSDE", steps=50, network_options={"width": 8}) == 50
    assert calls("IRSDE", solver="mrs-3", tasks=["derain"]) == 10
    assert calls("Resfusion") == 5
    longer = Resfusion(ResfusionConfig(steps=100), torch.nn.Identity())
    assert calls("Resfusion", steps=100) == longer.steps_of("sample") > 5


def test_recipes_of_a_method():
    assert recipe_for("derain", "irsde") is RECIPES["irsde-derain"]
    assert recipe_for("derain") is RECIPES["irsde-derain"]
    rain = recipe_for("derain", "rddm")
    assert (rain.method, rain.method_options, rain.degradation) == ("rddm", {}, {"name": "rain"})
    made = recipe_for("denoise", "irsde")
    assert (made.task, made.method, made.takes, made.method_options) == ("denoise", "irsde", (), {})
    assert with_method(made, "irsde") is made
    with pytest.raises(ValueError, match="--method: expected one of rddm, irsde, got 'idm'"):
        recipe_for("derain", "idm")
    with pytest.raises(ValueError, match="takes must be without 'level' for method 'irsde'"):
        replace(SMALL, takes=("level",))
    with pytest.raises(ValueError, match="prediction must be 'x0' with network 'small-unet', got 'eps'"):
        model_of(replace(SMALL, method_options={"prediction": "eps"}))


def test_a_tunable_student_is_one_call():
    entry = described("oftsr-x4", {"_class": "TunableResShift", "tasks": ["super-resolution"], "steps": 4}, 0)
    assert entry.calls == 1
