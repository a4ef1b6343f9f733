"""Shipping a run's model: the card, float16 weights that make the same picture, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tools.ship_checkpoint import check, check_found, facts, metrics_of, ship
from tools.shipped_texts import TEXTS

from fewstep.restoration.methods.loading import load_model
from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.tasks import TASKS

ROW = {"psnr": 28.5, "ssim": 0.8, "sharpness": 0.7, "seconds_per_megapixel": 3.0}
RESULTS = {
    "noise 25": {
        "bsd100": {
            "input": ROW | {"psnr": 20.2},
            "TV 0.10": ROW | {"psnr": 27.5},
            "NLM, scikit-image": ROW,
            "rddm-denoise, faithful": ROW | {"psnr": 30.4},
            "rddm-denoise, faithful, level told": ROW | {"psnr": 30.5},
        }
    },
    "rain": {"bsd100": {"input": ROW, "rddm-jpeg, faithful": ROW}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What a training run leaves, of a small model."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = RDDMConfig(
        network="small-unet",
        network_options={"widths": (8, 8), "blocks": 1, "fold": 1},
        objective="pred_x0",
        conditions=("input", "level"),
        sampling_steps=2,
        tasks=("denoise",),
        padding=2,
    )
    model = RDDM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "model")
    lines = [{"step": 9, "kind": "train", "minutes": 29.7}, {"step": 9, "kind": "validate", "psnr": 30.0}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "figures.json").write_text(json.dumps(RESULTS))
    return folder


def test_a_checkpoint_is_written_with_its_card(run, tmp_path):
    folder = ship("rddm-denoise", run, [run / "figures.json"], "2 CPU cores", tmp_path)
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float16}
    card = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    for fact in (
        "# rddm-denoise",
        "non-commercial, as PolyU's says",
        "--pairs polyu/train/noisy polyu/train/clean --start FIRST -o runs/rddm-denoise --max-minutes 30",
        "| Optimiser steps | 9 |",
        "| Machine | 2 CPU cores |",
        "| noise 25, bsd100, faithful (beside NLM, scikit-image) | PSNR (dB) | 30.4 | 28.5 |",
        "| noise 25, bsd100, faithful, level told (beside NLM, scikit-image) | PSNR (dB) | 30.5 | 28.5 |",
        "## Limits",
        "stored are float16 weights",
    ):
        assert fact in card, fact
    assert "| rain" not in card
    assert load_model(folder).tasks == ("denoise",)
    # Again, in the place of the one that is there.
    (folder / "left-over").touch()
    ship("rddm-denoise", run, [], "one core", tmp_path)
    assert "left-over" not in {file.name for file in folder.iterdir()}
    assert "one core" in (folder / "README.md").read_text(encoding="utf-8")


def test_weights_that_float16_spoils_are_refused(run):
    original, stored = load_model(run / "model"), load_model(run / "model")
    assert check(original, stored) == "pictures differ by 0.0000 of 255 on average, 0 at most"
    with torch.no_grad():
        for parameter in stored.parameters():
            parameter.mul_(1.3)
    with pytest.raises(ValueError, match="float16 makes another picture"):
        check(original, stored)


def test_figures_of_super_resolution_and_compressed_sensing():
    bicubic, ours = {"psnr_y": 26.2, "ssim_y": 0.7}, {"psnr_y": 27.5, "ssim_y": 0.74}
    enlarged = {"set5": {"bicubic (MATLAB)": bicubic, "faithful, 1 call": ours}}
    assert metrics_of(enlarged, "resshift-x4") == {
        "set5, faithful, 1 call (beside bicubic (MATLAB))": {
            "PSNR Y (dB)": (27.5, 26.2),
            "SSIM Y": (0.74, 0.7),
        }
    }
    rebuilt = {"0.25": {"Aᵀ y": {"psnr": 12.0}, "total variation": {"psnr": 30.5}, "model": {"psnr": 32.4}}}
    assert metrics_of(rebuilt, "idm-25") == {
        "0.25, reconstructed (beside total variation)": {"PSNR (dB)": (32.4, 30.5)}
    }


def test_what_cannot_be_shipped_is_said(run, tmp_path):
    with pytest.raises(ValueError, match=r"--name: expected one of resshift-x4, .*got 'mine'"):
        ship("mine", run, [], "", tmp_path)
    with pytest.raises(ValueError, match="metrics: the file has no rows of idm-25"):
        facts("idm-25", run, [run / "figures.json"], "")
    with pytest.raises(ValueError, match="nothing is not among the shipped checkpoints"):
        check_found("nothing")
    assert not list(tmp_path.iterdir())


def test_every_default_has_its_texts():
    assert {task.model for task in TASKS.values()} <= set(TEXTS)
    assert all("{minutes" in texts.command for texts in TEXTS.values())
    assert check_found("resshift-x4") == ["super-resolution"]
