"""Resfusion against the published schedules, sampler and training loss."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core import paths, predictions
from fewstep.restoration.methods.resfusion import Resfusion, classes
from fewstep.restoration.methods.resfusion_config import ResfusionConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
SAMPLER, SCHEDULES = (
    load_file(GOLDEN / f"resfusion_{name}.safetensors") for name in ("sampler", "schedules")
)
RUNS = json.loads((GOLDEN / "resfusion_sampler.json").read_text())["runs"]
TABLE = json.loads((GOLDEN / "resfusion_schedules.json").read_text())["table"]
PREDICTIONS = {"epsilon": "resnoise", "sample": "x0", "residual": "residual"}


class Closed(nn.Module):
    """The network of the golden files."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode, self.told = mode, []

    def forward(self, x: Tensor, t: Tensor, lq: Tensor, mask: Tensor | None = None) -> Tensor:
        self.told.append((t.clone(), mask))
        time = t.view(-1, 1, 1, 1).to(x)
        if self.mode == "epsilon":
            return 0.8 * torch.tanh(0.7 * x - 0.1 * lq) + 0.02 * torch.cos(time / 5)
        if self.mode == "sample":
            return 1.2 * 0.95 * torch.tanh(0.6 * x + 0.7 * lq)
        return 0.3 * torch.tanh(x) - 0.2 * lq + 0.05 * torch.sin(time / 10)


def told_of(model: Resfusion) -> list:
    assert isinstance(model.net, Closed)
    return model.net.told


def model_of(run: dict, **changes) -> Resfusion:
    config = ResfusionConfig(
        steps=run["T"], schedule=run["schedule"], prediction=PREDICTIONS[run["mode"]], **changes
    )
    return Resfusion(config, Closed(run["mode"]))


@pytest.mark.parametrize(("schedule", "steps", "calls"), [row[:3] for row in TABLE])
def test_schedules(schedule, steps, calls):
    path = ResfusionConfig(steps=steps, schedule=schedule).path()
    assert int(path.t_max) + 1 == calls == int(SCHEDULES[f"{schedule}{steps}.T_acc"])
    r = 1 - path.evaluate(torch.arange(calls))[1]
    wanted = SCHEDULES[f"{schedule}{steps}.alphas_hat"][:calls].sqrt()
    assert (r - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['schedule']}-{run['mode']}")
def test_sampler(run):
    """Every state and the result; draws are the published ones, of which the last is not used."""
    s = f"s{run['index']}"
    draws = iter(SAMPLER[f"{s}.in.noise"].double())
    states: list[Tensor] = []
    model = model_of(run, padding=1)
    got = model.restore(
        SAMPLER[f"{s}.in.y"].double(),
        noise=lambda like: next(draws),
        on_step=lambda info: states.append(info.x.clone()),
    )
    wanted = SAMPLER[f"{s}.out.states"]
    assert (torch.stack(states) - wanted[1:]).abs().max() < 1e-5 * wanted.abs().max()
    assert (got - wanted[-1].clamp(-1, 1)).abs().max() < 1e-5
    assert [int(t[0]) for t, _ in told_of(model)] == SAMPLER[f"{s}.out.t"].tolist()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['schedule']}-{run['mode']}")
def test_training_loss(run):
    """What training asks: the state at a time and the target there."""
    s = f"s{run['index']}.loss"
    x0, y = (2 * SAMPLER[f"{s}.in.{name}"] - 1 for name in ("x0_01", "y01"))
    t, noise = SAMPLER[f"{s}.in.t"], SAMPLER[f"{s}.in.noise"]
    model = model_of(run)
    path = model.config.path()
    target = predictions.get(model.config.prediction).target(path, t, x0, noise, y)
    made = model.net(path.corrupt(x0, t, noise, y), t, y)
    assert abs((made - target).square().mean() - SAMPLER[f"{s}.out"]) < 1e-5 * SAMPLER[f"{s}.out"]


@pytest.mark.parametrize("solver", Resfusion.solvers)
@pytest.mark.parametrize("prediction", ["resnoise", "x0", "residual"])
def test_fewer_steps_and_other_rules(solver, prediction):
    """With the exact network of one clean image every rule ends at it, whatever the number of calls."""
    generator = torch.Generator().manual_seed(0)
    clean, lq = (torch.rand(1, 3, 6, 5, generator=generator).double() * 1.6 - 0.8 for _ in range(2))
    path = paths.Resfusion(steps=12)

    class Exact(nn.Module):
        def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
            return predictions.get(prediction).from_x0(path, float(t[0]), x, clean, lq)

    model = Resfusion(ResfusionConfig(prediction=prediction, padding=1), Exact())
    for calls in range(1, 6):
        got = model.restore(lq, solver=solver, steps=calls)
        assert (got - clean).abs().max() < 1e-6
    assert (model.restore(lq, mode="mean") - clean).abs().max() < 1e-6


def test_times():
    model = model_of(RUNS[0])
    denoise = model.denoiser(torch.zeros(1, 3, 8, 8))
    assert model.times(denoise, "sample", 5) == [4, 3, 2, 1, 0, -1]
    assert model.times(denoise, "sample", 3) == [4, 2, 0, -1]
    assert model.times(denoise, "mean", 1) == [4, -1]
    assert (model.steps_of("sample"), model.steps_of("sample", 2), model.steps_of("mean")) == (5, 2, 1)


def test_mask_is_told_as_two_classes_and_nothing_is_pasted():
    model = model_of(RUNS[0], mask=True)
    assert model.takes == {"mask"}
    lq, mask = torch.rand(2, 3, 8, 16) - 0.5, torch.zeros(2, 1, 8, 16)
    mask[..., :3] = 1
    out = model.restore(lq, mask=mask)
    told = told_of(model)[0][1]
    assert torch.equal(told, classes(mask))
    assert told[:, 0, 0, 5].tolist() == [1, 1]
    assert told[:, 1, 0, 5].tolist() == [-1, -1]
    assert not torch.equal(out[..., 3:], lq[..., 3:])


def test_only_estimates_of_images_are_clamped():
    """A network that asks for 5 gets 1 with x0, and what its noise says with resnoise."""

    class Constant(nn.Module):
        def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
            return torch.full_like(x, 5.0)

    lq = torch.zeros(1, 3, 8, 8)
    for prediction, most in (("x0", 1.0), ("resnoise", 5.0)):
        model = Resfusion(ResfusionConfig(prediction=prediction), Constant())
        first: list[Tensor] = []
        model.restore(lq, on_step=lambda info, first=first: first.append(info.x0.abs().max()), steps=2)
        assert first[0] == pytest.approx(most) if prediction == "x0" else first[0] > most


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (9, 17)])
def test_any_size_with_either_network(size):
    unet = {"dim": 8, "dim_mults": (1, 2), "condition_channels": 3}
    ddim = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "condition_channels": 3}
    for network, options in (("rddm-unet", unet), ("ddim-unet", ddim)):
        model = Resfusion(ResfusionConfig(network=network, network_options=options)).eval()
        lq = torch.rand(1, 3, *size) * 2 - 1
        assert model.restore(lq, steps=2).shape == lq.shape


def test_saving(tmp_path):
    options = {"dim": 8, "dim_mults": (1, 2), "condition_channels": 3}
    model = Resfusion(ResfusionConfig(network_options=options, tasks=("derain",))).eval()
    model.save_pretrained(tmp_path)
    again = Resfusion.from_pretrained(str(tmp_path)).eval()
    lq = torch.rand(1, 3, 8, 8) * 2 - 1
    assert torch.equal(again.restore(lq), model.restore(lq))
    assert again.tasks == ("derain",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "eps"}, "prediction must be one of 'resnoise', 'x0', 'residual', got 'eps'"),
        ({"schedule": "sqrt"}, "schedule must be one of 'linear', 'cosine', got 'sqrt'"),
        ({"network": "edsr"}, "network must be one of 'rddm-unet', 'ddim-unet', got 'edsr'"),
        ({"padding": 0}, "padding must be at least 1, got 0"),
        ({"scale": 4}, "scale must be 1, got 4"),
        ({"steps": 1}, "steps must be at least 2"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        ResfusionConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 6}, "steps must lie in 1 … 5, the noise levels of the model, got 6"),
        ({"mask": torch.zeros(1, 1, 8, 8)}, "mask must be left out"),
        ({"level": 10.0}, "level must be left out"),
        ({"solver": "heun"}, "solver must be one of 'ancestral', .*, got 'heun'"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        model_of(RUNS[0]).restore(torch.zeros(1, 3, 8, 8), **options)
