"""Samples, their average and their spread from the command line, of every method that draws."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from tests.restoration.conftest import make_tiny_model
from typer.testing import CliRunner

from fewstep.core import paths
from fewstep.restoration.cli import app
from fewstep.restoration.images import read
from fewstep.restoration.methods.base import RestorationModel
from fewstep.restoration.methods.denoising_sde import DenoisingSDE, DenoisingSDEConfig
from fewstep.restoration.methods.idm import IDM, IDMConfig
from fewstep.restoration.methods.irsde import IRSDE
from fewstep.restoration.methods.irsde_config import IRSDEConfig
from fewstep.restoration.methods.loading import METHODS
from fewstep.restoration.methods.oftsr import OFTSR, OFTSRConfig
from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.methods.resfusion import Resfusion
from fewstep.restoration.methods.resfusion_config import ResfusionConfig
from fewstep.restoration.methods.training_free import TrainingFree, TrainingFreeConfig

SIDE = 16
PHOTO = data.astronaut()[60 : 60 + SIDE, 150 : 150 + SIDE]
NAFNET = {"width": 8, "enc_blk_nums": [1], "dec_blk_nums": [1]}
UNET = {"dim": 8, "dim_mults": [1, 2]}
# Of images twice as large: an operator that sees everything leaves nothing to draw.
PRIOR = {
    "shape": [3, 2 * SIDE, 2 * SIDE],
    "network": "mlp",
    "network_options": {"shape": [3, 2 * SIDE, 2 * SIDE], "width": 16, "depth": 1},
    "path": paths.VP.cosine().to_config(),
    "prediction": "edm",
}


def rddm(**changes) -> RDDM:
    return RDDM(RDDMConfig(network_options=UNET, padding=2, sampling_steps=2, **changes))


def training_free() -> TrainingFree:
    return TrainingFree(TrainingFreeConfig(scale=2, steps=2, prior=PRIOR))


# {method: (model, further arguments)}; between them all classes of METHODS that draw.
MODELS: dict[str, tuple[Callable[[], RestorationModel], tuple[str, ...]]] = {
    "resshift": (make_tiny_model, ()),
    "rddm": (rddm, ()),
    "rddm, noise": (lambda: rddm(objective="pred_noise"), ()),
    "resfusion": (lambda: Resfusion(ResfusionConfig(network_options={**UNET, "condition_channels": 3})), ()),
    "irsde": (lambda: IRSDE(IRSDEConfig(network_options=NAFNET, steps=4)), ()),
    "irsde, clean": (
        lambda: IRSDE(IRSDEConfig(network_options=NAFNET, steps=4, prediction="x0", solver="mrs-2", calls=2)),
        (),
    ),
    "oftsr": (
        lambda: OFTSR(
            OFTSRConfig(
                "flow",
                network="small-unet",
                network_options={"widths": (8, 8), "blocks": 1},
                padding=1,
                steps=2,
            )
        ),
        (),
    ),
    "idm": (
        lambda: IDM(
            IDMConfig(
                ratio=0.25,
                block=8,
                steps=2,
                channels=(16, 16),
                attention=(False, False),
                normalised=False,
            )
        ),
        ("--ratio", "0.25"),
    ),
    "training-free": (training_free, ()),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("a.png")
    return tmp_path


def saved(model: RestorationModel) -> RestorationModel:
    torch.manual_seed(0)
    for parameter in model.parameters():
        # Far from what training makes, but noise and neighbours matter.
        torch.nn.init.normal_(parameter, std=0.05)
    if isinstance(model, IDM):
        model.alpha.data.fill_(0.5)
    model.save_pretrained("model")
    return model


def run(*arguments: str) -> tuple[int, str, str]:
    given = ["a.png", "--model", "model", "--device", "cpu", *arguments]
    done = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.stdout, re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr)


@pytest.mark.parametrize("name", MODELS)
def test_samples_average_and_uncertainty(name, folder):
    build, further = MODELS[name]
    scale = saved(build()).scale
    code, _, said = run(*further, "-o", "plain.png")
    assert code == 0, said
    code, out, said = run(*further, "--samples", "3", "--uncertainty", "--json", "--ext", "tiff", "-o", "out")
    assert code == 0, said
    details = json.loads(out)["files"][0]["details"]
    assert (details["mode"], details["seeds"]) == ("detailed", [0, 1, 2])
    files = sorted(path.name for path in Path("out").iterdir())
    assert len(files) == 4
    samples = np.stack([read(Path("out") / file).pixels.astype(float) for file in files[:3]])
    assert samples.shape == (3, scale * SIDE, scale * SIDE, 3)
    # Different seeds, different samples; the map says how much.
    deviation = 255 * read(Path("out") / files[3]).pixels[:, :, 0]
    spread = np.sqrt(samples.var(0, ddof=1).mean(2))
    assert spread.mean() > 0.05
    assert np.abs(deviation - spread).max() < 1.5
    code, _, said = run(*further, "--samples", "3", "--average", "--mode", "detailed", "-o", "mean.png")
    assert code == 0, said
    assert np.abs(read("mean.png").pixels - samples.mean(0)).max() < 1.1


def test_every_method_is_tried():
    tried = {type(build()) for build, _ in MODELS.values()}
    drawing = {model for model in METHODS.values() if model.draws}
    # A tunable ResShift draws as ResShift does.
    assert drawing - tried <= {model for model in drawing if model.__base__ in tried}


def test_a_method_that_draws_nothing_says_so(folder):
    saved(DenoisingSDE(DenoisingSDEConfig(network_options={"nf": 8, "depth": 1}, calls=2)))
    code, _, said = run("--sigma", "20", "--samples", "2", "--mode", "detailed")
    assert code == 2
    assert "--samples: this model draws nothing, so that all of them would be the same" in said
    assert run("--sigma", "20", "-o", "one.png")[0] == 0


def test_a_network_of_noise_has_no_mean(folder):
    """Published IR-SDE networks sample unless told otherwise, and refuse what they cannot do."""
    saved(IRSDE(IRSDEConfig(network_options=NAFNET, steps=4)))
    code, _, said = run("--mode", "faithful")
    assert code == 2
    assert "--mode: this model has detailed, not 'faithful'" in said
