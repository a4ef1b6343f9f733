"""Published RDDM files of every layout, rebuilt with random weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.weights import CheckpointError
from fewstep.restoration.converters.rddm import from_official, recognises
from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.nets.unet_res import unet_res

OPTIONS = {"dim": 8, "dim_mults": [1, 2, 4], "channels": 3, "condition_channels": 3, "share_encoder": 0}
LAYOUTS = {0: "pred_res_noise", 1: "pred_res_noise", -1: "pred_res"}


def weights(**changes) -> dict[str, Tensor]:
    """Random weights of the published layout."""
    return {k: torch.randn_like(v) for k, v in unet_res(**(OPTIONS | changes)).state_dict().items()}


def schedule(sum_scale: float = 0.01, steps: int = 50, converted: bool = False) -> dict[str, Tensor]:
    """The tables that the published trainer keeps, among others."""
    path = RDDMConfig(
        steps=steps, sum_scale=sum_scale, schedule="converted" if converted else "default"
    ).path()
    _, done, noise = path.evaluate(torch.arange(steps))
    return {"alphas_cumsum": done.float(), "betas2_cumsum": noise.square().float(), "betas": done.float()}


def trainer_file(
    file: Path, averaged: dict[str, Tensor], trained: dict[str, Tensor], tables: dict[str, Tensor]
) -> Path:
    """A file as the published trainer writes it."""

    def model(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        return {prefix + k: v for k, v in tables.items()} | {
            f"{prefix}model.{k}": v for k, v in state.items()
        }

    ema = model(trained, "online_model.") | model(averaged, "ema_model.")
    ema |= {"initted": torch.tensor([True]), "step": torch.tensor([7])}
    optimiser = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 8e-5}]}
    content = {"step": 80000, "model": model(trained), "opt": optimiser, "ema": ema, "scaler": None}
    torch.save(content, file)
    return file


def holds(model: RDDM, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.net.state_dict().items())


@pytest.mark.parametrize("share_encoder", LAYOUTS)
def test_every_layout_is_recognised_and_loaded(share_encoder, tmp_path):
    state = weights(share_encoder=share_encoder)
    assert recognises(state)
    torch.save(state, tmp_path / "net.pth")
    model = from_official(tmp_path / "net.pth", tasks=("derain",))
    assert model.config == RDDMConfig(
        objective=LAYOUTS[share_encoder],
        network_options=OPTIONS | {"share_encoder": share_encoder},
        padding=4,
        tasks=("derain",),
    )
    assert not model.training
    assert holds(model, state)
    assert model.restore(torch.zeros(1, 3, 9, 10)).shape == (1, 3, 9, 10)


@pytest.mark.parametrize("averaged", [True, False])
def test_trainer_files_prefer_the_average(averaged, tmp_path):
    states = {True: weights(), False: weights()}
    file = trainer_file(tmp_path / "model-80.pt", states[True], states[False], schedule())
    model = from_official(file, averaged=averaged)
    assert holds(model, states[averaged])
    config = model.config
    assert (config.steps, config.sum_scale, config.schedule) == (50, 0.01, "default")
    model.save_pretrained(tmp_path / "ours")
    assert holds(RDDM.from_pretrained(tmp_path / "ours"), states[averaged])


@pytest.mark.parametrize(("share", "objective"), [(0.52, "pred_res"), (0.47, "pred_noise")])
def test_the_objective_that_was_chosen_is_read(share, objective, tmp_path):
    state = weights(share_encoder=-1)
    tables = schedule(converted=True, steps=1000) | {"alpha_res": torch.tensor([share])}
    model = from_official(trainer_file(tmp_path / "model-80.pt", state, state, tables))
    assert (model.config.objective, model.config.schedule) == (objective, "converted")
    assert model.config.sum_scale == 1.0


@pytest.mark.parametrize(("channels", "conditions"), [(0, ()), (3, ("input",)), (6, ("input", "mask"))])
def test_what_is_told_is_read_from_the_first_convolution(channels, conditions, tmp_path):
    torch.save(weights(condition_channels=channels), tmp_path / "net.pth")
    assert from_official(tmp_path / "net.pth").config.conditions == conditions


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "ema_model.model.", "module.model."])
def test_prefixes_are_removed(prefix, tmp_path):
    state = weights(share_encoder=1)
    save_file({prefix + k: v for k, v in state.items()}, tmp_path / "net.safetensors")
    assert holds(from_official(tmp_path / "net.safetensors"), state)


def test_what_is_not_in_the_file_can_be_said(tmp_path):
    torch.save(weights(), tmp_path / "net.pth")
    config = from_official(
        tmp_path / "net.pth",
        objective="pred_x0_noise",
        sum_scale=0.01,
        clock="coefficients",
        sampling_steps=2,
    ).config
    assert (config.objective, config.sum_scale, config.clock) == ("pred_x0_noise", 0.01, "coefficients")
    assert config.sampling_steps == 2
    with pytest.raises(ValueError, match="objective must be one of"):
        from_official(tmp_path / "net.pth", objective="pred_v")


def test_something_else_is_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth is not an RDDM network: it has no unet0.init_conv"):
        from_official(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is not a file"):
        from_official(tmp_path / "none.pth")
    unnormalised = {k: v for k, v in weights().items() if ".norm." not in k}
    assert not recognises(unnormalised)  # IR-SDE's blocks have no norms
    assert not recognises({"input_blocks.0.0.weight": torch.zeros(1)})


def test_a_missing_or_additional_weight_is_named(tmp_path):
    state = weights()
    torch.save({k: v for k, v in state.items() if k != "unet1.final_conv.bias"}, tmp_path / "short.pth")
    torch.save(state | {"unet0.extra.weight": torch.zeros(1)}, tmp_path / "long.pth")
    for name, key in (("short", "unet1.final_conv.bias"), ("long", "unet0.extra.weight")):
        with pytest.raises(CheckpointError, match=rf"{name}.pth does not fit UnetRes: .*{key}"):
            from_official(tmp_path / f"{name}.pth")


def test_files_that_hold_code_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"ema": Trap()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError):
        from_official(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()
