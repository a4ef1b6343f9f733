"""What a run leaves in its folder, and what it refuses."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.core.trainer_cases import CONFIG, crops, denoising_loss, trainer
from torch import nn

from fewstep.core.training import (
    Trainer,
    TrainerConfig,
    load_weights,
    read_log,
)
from fewstep.core.training.state import step_files


def test_best_checkpoint_is_the_best_and_survives(tmp_path):
    scores = iter([1.0, 3.0, float("nan"), 2.0])
    weights = {}

    def validate(model):
        score = next(scores)
        weights[score] = model[0].weight.clone()
        return {"psnr": score}

    config = replace(CONFIG, max_steps=8, validate_every=2, monitor="psnr", keep=1, save_every_steps=1)
    result = trainer(tmp_path, config, validate=validate).fit()
    assert result.best == 3.0
    assert result.metrics == {"psnr": 2.0}
    assert torch.equal(load_weights(tmp_path, "best")["0.weight"], weights[3.0])
    assert torch.equal(load_weights(tmp_path)["0.weight"], weights[2.0])
    assert len(step_files(tmp_path)) == 1
    assert [line["psnr"] for line in read_log(tmp_path, "validate")][:2] == [1.0, 3.0]


def test_best_is_remembered_over_a_resume_and_smaller_can_be_better(tmp_path):
    config = replace(CONFIG, max_steps=2, monitor="loss", monitor_mode="min")
    trainer(tmp_path, config, validate=lambda model: {"loss": 0.5}).fit()
    longer = replace(config, max_steps=4)
    assert trainer(tmp_path, longer, validate=lambda model: {"loss": 0.7}).fit().best == 0.5


def test_unknown_monitor_is_named(tmp_path):
    config = replace(CONFIG, monitor="ssim")
    with pytest.raises(ValueError, match="monitor must be one of psnr, got 'ssim'"):
        trainer(tmp_path, config, validate=lambda model: {"psnr": 1.0}).fit()


def test_saving_by_the_clock(tmp_path):
    """With a period shorter than a step every step is saved."""
    run = trainer(tmp_path, replace(CONFIG, save_every_minutes=1e-9, keep=100))
    run.fit()
    assert len(step_files(tmp_path)) == 9


def test_log_holds_means_over_its_period(tmp_path):
    losses = []

    def loss(net, batch, generator):
        values = denoising_loss(net, batch, generator)
        losses.append(values["loss"].item())
        return values

    trainer(tmp_path, loss=loss).fit()
    lines = read_log(tmp_path, "train")
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [line["loss"] for line in lines] == pytest.approx(
        [np.mean(losses[i : i + 6]) for i in (0, 6, 12, 18)]
    )
    assert {"energy", "gradient_norm", "learning_rate", "minutes", "skipped"} <= set(lines[0])


def test_folder_has_config_previews_and_tensorboard(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    config = replace(CONFIG, preview_every=4, tensorboard=True)
    trainer(tmp_path, config, preview=lambda model: {"colour": picture, "grey": picture[..., 0]}).fit()
    assert TrainerConfig.load(tmp_path / "config.json") == config
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == [f"{name}-{step:08d}.png" for name in ("colour", "grey") for step in (4, 8, 9)]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "previews" / names[0])), picture)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]
    assert set(events.Tags()["images"]) == {"colour", "grey"}


def test_too_few_processes_fail_loudly(tmp_path):
    with pytest.raises(RuntimeError, match=r"asks for 2 processes but has 1.*torchrun --nproc_per_node=2"):
        trainer(tmp_path, replace(CONFIG, processes=2))
    assert not any(tmp_path.iterdir())


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'accelerate.*pip install "fewstep-core\[train\]"'):
        trainer(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", 0),
        ("max_minutes", -1.0),
        ("accumulate", 0),
        ("precision", "fp8"),
        ("clip", float("nan")),
        ("ema_decays", (1.0,)),
        ("ema_decays", (0.9, 0.9)),
        ("learning_rate", 0.0),
        ("max_bad_steps", -1),
        ("monitor_mode", "best"),
        ("device", "tpu"),
    ],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(Exception, match=field):
        replace(CONFIG, **{field: value})


def test_config_survives_json_and_refuses_unknown_fields(tmp_path):
    CONFIG.save(tmp_path / "c.json")
    assert TrainerConfig.load(tmp_path / "c.json") == CONFIG
    values = json.loads((tmp_path / "c.json").read_text())
    with pytest.raises(ValueError, match="no field stepz"):
        TrainerConfig.from_dict({**values, "stepz": 1})


@pytest.mark.parametrize(
    ("result", "message"),
    [({"mse": torch.zeros(())}, 'mapping with "loss", got mse'), (torch.zeros(3), r"one number.*\(3,\)")],
)
def test_bad_loss_is_named(tmp_path, result, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, loss=lambda net, batch, generator: result).fit()


def test_bad_training_data_is_named(tmp_path):
    with pytest.raises(Exception, match="train_data"):
        trainer(tmp_path, data=[])
    with pytest.raises(ValueError, match="no parameter"):
        Trainer(nn.Identity(), denoising_loss, crops, folder=tmp_path, config=CONFIG)


def test_bad_preview_is_named(tmp_path):
    with pytest.raises(ValueError, match="'preview' is float64"):
        trainer(tmp_path, preview=lambda model: np.zeros((4, 4))).fit()


def test_load_weights_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="no last checkpoint"):
        load_weights(tmp_path)
    run = trainer(tmp_path)
    run.fit()
    with pytest.raises(ValueError, match=r"decay must be one of 0\.9, 0\.5"):
        load_weights(tmp_path, decay=0.99)
    assert torch.equal(
        load_weights(tmp_path, decay=0.5)["0.weight"], run.ema.models[0.5].state_dict()["0.weight"]
    )
