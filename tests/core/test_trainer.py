"""Interrupted, crashed and continued runs end as unbroken ones do."""

import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.core.trainer_cases import CONFIG, Images, crops, denoising_loss, make_net, same, trainer
from torch import nn

from fewstep.core.training import (
    ConstantSchedule,
    Trainer,
    read_log,
)
from fewstep.core.training.state import seed_everything, step_files


@pytest.mark.parametrize("data", [crops, Images()], ids=["crops", "dataset"])
@pytest.mark.parametrize("stop_at_batch", [4, 8, 14])
def test_interrupted_run_goes_on_bit_for_bit(tmp_path, data, stop_at_batch):
    """A SIGINT within an accumulation window, and within an epoch of 10 images, changes nothing."""
    unbroken = trainer(tmp_path / "a", data=data)
    assert unbroken.fit().stopped == "max_steps"

    calls = 0

    def interrupted_loss(net, batch, generator):
        nonlocal calls
        calls += 1
        if calls == stop_at_batch:
            os.kill(os.getpid(), signal.SIGINT)
        return denoising_loss(net, batch, generator)

    handler = signal.getsignal(signal.SIGINT)
    first = trainer(tmp_path / "b", data=data, loss=interrupted_loss).fit()
    assert first.stopped == "interrupted"
    assert first.step == -(-stop_at_batch // 3), "the window is finished, then the run stops"
    assert signal.getsignal(signal.SIGINT) is handler
    seed_everything(99)
    resumed = trainer(tmp_path / "b", data=data)
    result = resumed.fit()
    assert result.stopped == "max_steps"
    assert result.step == 9
    assert same(unbroken, resumed)


def test_global_generators_survive_a_checkpoint(tmp_path):
    from fewstep.core.training.state import rng_state, save_payload, set_rng_state

    def draw():
        return random.random(), random.gauss(), np.random.normal(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    seed_everything(3, 4)
    draw()  # both gauss functions now remember the second one of a pair
    save_payload(rng_state(), tmp_path / "rng.pt")
    expected = draw()
    seed_everything(5)
    state = torch.load(tmp_path / "rng.pt", weights_only=True)
    set_rng_state(state)
    assert draw() == expected


def test_crash_within_a_window_resumes_from_the_last_checkpoint(tmp_path):
    unbroken = trainer(tmp_path / "a")
    unbroken.fit()
    calls = 0

    def crashing_loss(net, batch, generator):
        nonlocal calls
        calls += 1
        if calls == 20:
            raise OSError("disk gone")
        return denoising_loss(net, batch, generator)

    config = replace(CONFIG, save_every_steps=4)
    with pytest.raises(OSError, match="disk gone"):
        trainer(tmp_path / "b", config, loss=crashing_loss).fit()
    assert [path.name for path in step_files(tmp_path / "b")] == ["step-00000004.pt"]
    assert [line["step"] for line in read_log(tmp_path / "b")] == [2, 4, 6]
    resumed = trainer(tmp_path / "b", config)
    resumed.fit()
    assert same(unbroken, resumed)
    assert [line["step"] for line in read_log(tmp_path / "b", "train")] == [2, 4, 6, 8]


def test_validation_leaves_no_trace_in_the_training(tmp_path):
    plain = trainer(tmp_path / "a")
    plain.fit()

    def validate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"draw": float(torch.rand(())) + random.random() + float(np.random.rand())}  # noqa: NPY002

    watched = trainer(tmp_path / "b", replace(CONFIG, validate_every=2), validate=validate)
    watched.fit()
    assert same(plain, watched)


def test_a_longer_run_is_the_shorter_one_continued(tmp_path):
    """With a schedule that does not depend on the end, raising max_steps continues exactly."""

    def run(folder, steps):
        net = make_net()
        config = replace(CONFIG, max_steps=steps)
        made = Trainer(net, denoising_loss, crops, folder=folder, config=config, schedule=ConstantSchedule())
        made.fit()
        return made

    long = run(tmp_path / "a", 6)
    run(tmp_path / "b", 4)
    assert same(long, run(tmp_path / "b", 6))


def test_workers_give_the_batches_that_the_process_itself_gives(tmp_path):
    alone = trainer(tmp_path / "a")
    alone.fit()
    helped = trainer(tmp_path / "b", replace(CONFIG, workers=2))
    helped.fit()
    assert same(alone, helped)


def test_workers_resume_exactly_with_random_augmentation(tmp_path):
    config = replace(CONFIG, workers=1)
    long = trainer(tmp_path / "a", config, data=Images())
    long.fit()

    def stopping(net, batch, generator):
        if run.position.batches == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return denoising_loss(net, batch, generator)

    run = trainer(tmp_path / "b", config, data=Images(), loss=stopping)
    assert run.fit().stopped == "interrupted"
    resumed = trainer(tmp_path / "b", config, data=Images())
    resumed.fit()
    assert same(long, resumed)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    config = replace(CONFIG, save_every_steps=3)
    unbroken = trainer(tmp_path, config)
    unbroken.fit()
    newest = step_files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = trainer(tmp_path, config)
    resumed.fit()
    assert "step-00000009.pt cannot be read" in capsys.readouterr().err
    assert same(unbroken, resumed)


def test_all_checkpoints_damaged_is_an_error(tmp_path):
    trainer(tmp_path).fit()
    for path in step_files(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read"):
        trainer(tmp_path).fit()


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """A full disk in the middle of a write must not cost the checkpoint that was there."""
    from fewstep.core.training import state

    target = tmp_path / "step-00000001.pt"
    state.save_payload({"step": 1}, target)

    class Unpicklable:
        def __reduce__(self):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        state.save_payload({"step": 2, "bad": Unpicklable()}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_resume_false_refuses_a_folder_with_a_run(tmp_path):
    trainer(tmp_path).fit()
    with pytest.raises(ValueError, match="already holds a run"):
        trainer(tmp_path).fit(resume=False)


def test_other_network_in_the_folder_is_named(tmp_path):
    trainer(tmp_path).fit()
    other = Trainer(nn.Linear(2, 2), denoising_loss, crops, folder=tmp_path, config=CONFIG)
    with pytest.raises(ValueError, match="another network"):
        other.fit()


def test_changed_settings_are_told(tmp_path, capsys):
    trainer(tmp_path, replace(CONFIG, max_steps=3)).fit()
    trainer(tmp_path, replace(CONFIG, max_steps=4, ema_decays=(0.9, 0.7))).fit()
    told = capsys.readouterr().err
    assert "going on from step 3" in told
    assert "max_steps was 3, now 4" in told
    assert "no average with decay 0.7 was saved" in told
