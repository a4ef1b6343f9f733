"""Pairs on disk: their noise from seeds, interrupted and damaged folders, the command."""

import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch.utils.data import DataLoader

from fewstep.core import paths
from fewstep.core.cli import pairs as command
from fewstep.core.flow_map import FlowMap
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import MLPConfig
from fewstep.core.noise import SampleNoise
from fewstep.core.objectives.pairs import Pairs, make_pairs
from fewstep.core.sampling import Sampling

SHAPE = (1, 4, 5)
QUICK = {"sampling": Sampling("ode", 3, solver="ddim"), "batch": 3, "shard": 4}


def a_model(classes=0):
    torch.manual_seed(0)
    labels = tuple(map(str, range(classes)))
    config = MLPConfig(shape=SHAPE, width=8, depth=1, classes=classes)
    model = DiffusionModel.with_network(config, paths.EDM(), "edm", labels=labels)
    last: Any = model.net.last
    with torch.no_grad():
        last.weight.normal_(std=0.1)
    return model


@pytest.fixture
def made(tmp_path):
    return make_pairs(a_model(), tmp_path / "pairs", 10, seed=5, **QUICK)


def test_a_pair_is_its_seed_s_noise_and_what_the_ode_makes_of_it(made):
    assert len(made) == 10
    assert sorted(file.name for file in made.folder.iterdir()) == [
        "pairs-00000.safetensors",
        "pairs-00001.safetensors",
        "pairs-00002.safetensors",
        "pairs.json",
    ]
    pair = made[7]
    assert set(pair) == {"x0", "noise"}
    wanted = torch.empty(1, *SHAPE)
    SampleNoise(12, 1).fill(wanted)
    assert bool((pair["noise"] == wanted[0]).all())
    solved = a_model().generate(noise=wanted, sampling=Sampling("ode", 3, solver="ddim"))
    torch.testing.assert_close(pair["x0"], solved[0], rtol=1e-3, atol=1e-3)


def test_one_by_one_and_all_at_once_agree(made):
    every = made.tensors()
    for i in range(len(made)):
        assert bool((made[i]["x0"] == every["x0"][i]).all())
        assert bool((made[i]["noise"] == every["noise"][i]).all())
    assert every["x0"].dtype == torch.float32
    batch = made.batches(32)(np.random.default_rng(0))
    assert batch["x0"].shape == (32, *SHAPE)
    which = (batch["x0"][:, None] == every["x0"]).flatten(2).all(2).long().argmax(1)
    assert bool((batch["noise"] == every["noise"][which]).all())
    assert len(which.unique()) > 5
    with pytest.raises(IndexError, match="index must lie in 0 … 9, got 10"):
        made[10]


def test_workers_open_their_own_files(made):
    assert bool((made[3]["x0"] == pickle.loads(pickle.dumps(made))[3]["x0"]).all())
    batches = list(DataLoader(made, batch_size=5, num_workers=1))
    assert bool((torch.cat([batch["x0"] for batch in batches]) == made.tensors()["x0"]).all())


def test_labels_go_around_and_guidance_moves_the_samples(tmp_path):
    model = a_model(classes=3)
    plain = make_pairs(model, tmp_path / "plain", 7, **QUICK)
    assert plain.tensors()["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert int(plain[4]["label"]) == 1
    wanted = model.generate(
        noise=plain.tensors()["noise"], label=plain.tensors()["label"], sampling=QUICK["sampling"]
    )
    torch.testing.assert_close(plain.tensors()["x0"], wanted, rtol=1e-3, atol=1e-3)
    guided = make_pairs(model, tmp_path / "guided", 7, guidance=4.0, **QUICK)
    assert float((guided.tensors()["x0"] - plain.tensors()["x0"]).abs().max()) > 1e-2


def test_the_default_is_the_exact_flow(tmp_path):
    path = paths.EDM()
    flow = FlowMap(lambda x, t: x * 0.0, path, "edm")
    pairs = make_pairs(flow, tmp_path, 6, shape=(2,))
    # F = 0 is the denoiser of normal data with sigma_data, whose flow only scales.
    scale = 80 * (0.25 / (80**2 + 0.25)) ** 0.5
    torch.testing.assert_close(pairs.tensors()["x0"], scale * pairs.tensors()["noise"], rtol=2e-3, atol=1e-3)


def test_a_stopped_run_goes_on_and_a_damaged_file_is_made_again(tmp_path):
    folder = tmp_path / "pairs"
    whole = make_pairs(a_model(), tmp_path / "whole", 10, **QUICK)

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.done == 7:
            raise Stop

    with pytest.raises(Stop):
        make_pairs(a_model(), folder, 10, on_progress=stop, **QUICK)
    assert [file.name for file in sorted(folder.glob("*.safetensors"))] == ["pairs-00000.safetensors"]
    with pytest.raises(ValueError, match=r"pairs-00001\.safetensors is missing; make the pairs again"):
        Pairs(folder)
    seen = []
    on = make_pairs(a_model(), folder, 10, on_progress=seen.append, **QUICK)
    assert seen[-1].reused == 4
    assert bool((on.tensors()["x0"] == whole.tensors()["x0"]).all())

    file = folder / "pairs-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"pairs-00002\.safetensors is damaged"):
        Pairs(folder)
    again = make_pairs(a_model(), folder, 10, on_progress=seen.append, **QUICK)
    assert seen[-1].reused == 8
    assert bool((again.tensors()["x0"] == whole.tensors()["x0"]).all())


def test_samples_do_not_depend_on_batches_or_files(tmp_path, made):
    other = make_pairs(a_model(), tmp_path / "other", 10, seed=5, **{**QUICK, "batch": 10, "shard": 10})
    torch.testing.assert_close(other.tensors(), made.tensors(), rtol=0, atol=1e-3)


def test_what_cannot_be_meant(tmp_path, made):
    with pytest.raises(ValueError, match="holds pairs with seed 5, not 6; take another folder"):
        make_pairs(a_model(), made.folder, 10, seed=6, **QUICK)
    with pytest.raises(ValueError, match="count, batch and shard must be at least 1"):
        make_pairs(a_model(), tmp_path / "a", 0, **QUICK)
    with pytest.raises(ValueError, match="sampling must be of kind 'ode'"):
        make_pairs(a_model(), tmp_path / "a", 2, sampling=Sampling("consistency", 1))
    with pytest.raises(ValueError, match="guidance needs a model with classes"):
        make_pairs(a_model(), tmp_path / "a", 2, guidance=2.0)
    with pytest.raises(ValueError, match="shape must be given"):
        make_pairs(a_model().flow_map(), tmp_path / "a", 2)
    restoring = FlowMap(lambda x, t: x, paths.MeanReverting(), "x0")
    with pytest.raises(ValueError, match="pairs are of paths without y"):
        make_pairs(restoring, tmp_path / "a", 2, shape=(2,))
    broken = FlowMap(lambda x, t: x + torch.nan, paths.EDM(), "edm")
    with pytest.raises(ValueError, match="not finite"):
        make_pairs(broken, tmp_path / "b", 2, shape=(2,), sampling=QUICK["sampling"])
    with pytest.raises(ValueError, match="is no folder of pairs"):
        Pairs(tmp_path)
    assert not list(tmp_path.glob("a/*"))


def test_the_command_makes_pairs_and_goes_on(tmp_path, capsys):
    model = tmp_path / "model"
    a_model(classes=2).save_pretrained(model)
    request = command.Request(str(model), str(tmp_path / "pairs"), 6, steps=2, device="cpu", as_json=True)
    assert command.run(request) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["count"], report["made"], report["reused"], report["classes"]) == (6, 6, 0, 2)
    assert (report["made_by"]["solver"], report["made_by"]["steps"]) == ("heun", 2)
    assert len(Pairs(report["folder"])) == 6
    assert command.run(replace(request, as_json=False)) == 0
    assert "6 pairs, 6 of them from before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"count": 0}, "--count"),
        ({"batch": 0}, "--batch"),
        ({"steps": 0}, "--steps"),
        ({"solver": "magic"}, "--solver"),
        ({"solver": "ode45", "steps": 4}, "--steps"),
        ({"model": "nowhere"}, "MODEL"),
        ({"device": "abacus"}, "--device"),
    ],
)
def test_the_command_refuses(tmp_path, change, hint):
    values = {"model": "digits", "output": str(tmp_path), "device": "cpu", **change}
    with pytest.raises(typer.BadParameter) as refused:
        command.run(command.Request(**values))
    assert refused.value.param_hint == hint
