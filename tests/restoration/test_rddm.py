"""The RDDM model: every published sampler, the native rules, sizes, noise, masks, checkpoints."""

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core.noise import NoiseField
from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.methods.rddm_config import OBJECTIVES
from fewstep.restoration.methods.rddm_sampler import grid
from fewstep.restoration.methods.told import told_maps

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
TENSORS = load_file(GOLDEN / "rddm_sampler.safetensors")
RUNS = json.loads((GOLDEN / "rddm_sampler.json").read_text())["runs"][:6]
SMALL = {"network_options": {"dim": 8, "dim_mults": [1, 2]}, "padding": 2}


class ClosedForm(nn.Module):
    """The functions that stand for networks in the golden file; they record the times they were told."""

    def __init__(self, objective: str = "pred_res_noise") -> None:
        super().__init__()
        self.objective = objective
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, lq: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        self.told.append(t.clone())
        y = 0.0 if lq is None else lq
        first, second = (t, t) if t.ndim == 1 else t.unbind(1)
        residual = 0.3 * x.tanh()
        if lq is not None:
            residual = residual - 0.2 * y + 0.05 * (first / 100).sin().view(-1, 1, 1, 1)
        noise = 0.8 * (0.7 * x - 0.1 * y).tanh() + 0.02 * (second / 50).cos().view(-1, 1, 1, 1)
        heads = {
            "pred_res": [residual],
            "pred_noise": [noise],
            "pred_res_noise": [residual, noise],
            "pred_x0_noise": [0.9 * x.tanh(), noise],
            "pred_res_add_noise": [residual, residual + noise],
            "pred_x0_add_noise": [0.9 * x.tanh(), 0.9 * x.tanh() + noise],
        }
        return torch.cat(heads[self.objective], dim=1)


def closed_form(objective: str = "pred_res_noise", **changes) -> RDDM:
    return RDDM(RDDMConfig(objective=objective, padding=1, **changes), network=ClosedForm(objective))


def small(**changes) -> RDDM:
    """A small model with random weights."""
    torch.manual_seed(0)
    return RDDM(RDDMConfig(**(SMALL | changes))).eval()


def replay(model: RDDM, lq: Tensor, steps: int, noise: Tensor) -> Tensor:
    """The states after each step, in [0, 1], all published draws used up."""
    draws, states = iter(noise), []
    result = model.restore(
        lq, steps=steps, noise=lambda like: next(draws), on_step=lambda info: states.append(info.x.clone())
    )
    assert next(draws, None) is None
    torch.testing.assert_close(result, states[-1].clamp(-1, 1), rtol=0, atol=0)
    return (torch.stack(states) + 1) / 2


@pytest.mark.parametrize("index", range(6))
def test_restoration_equals_published(index):
    run = RUNS[index]
    golden = {k.split(".", 1)[1]: v for k, v in TENSORS.items() if k.startswith(f"s{index}.")}
    steps = run.get("sampling_timesteps", run["timesteps"])
    model = closed_form(
        run["objective"],
        steps=run["timesteps"],
        sum_scale=run["sum_scale"],
        solver="rddm" if "sampling_timesteps" in run else "rddm-posterior",
    )
    noise = golden["in.noise"] if golden["in.noise"].ndim == 5 else golden["in.noise"][None]
    states = replay(model, 2 * golden["in.y01"] - 1, steps, noise)
    torch.testing.assert_close(states, golden["out.states01"][1:], rtol=0, atol=1e-5)
    if "out.t" in golden:
        assert isinstance(model.net, ClosedForm)
        assert [float(t[0]) for t in model.net.told] == golden["out.t"].tolist()


@pytest.mark.parametrize(("name", "eta"), [("gen0", 0.0), ("gen1", 1.0)])
def test_generation_equals_published(name, eta):
    model = closed_form(eta=eta, conditions=())
    noise = TENSORS[f"{name}.in.noise"]
    states = replay(model, torch.zeros_like(noise[0]), 4, noise)
    torch.testing.assert_close(states, TENSORS[f"{name}.out.states01"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("exp0", {"clock": "coefficients", "solver": "rddm-residual-first"}), ("exp3", {"solver": "rddm"})],
)
def test_converted_schedule_equals_published(name, changes):
    """Experiment 0 takes the residual away first and tells the heads A and B; experiment 3 does neither."""
    model = closed_form(schedule="converted", **changes)
    states = TENSORS[f"{name}.out.states01"][1:]
    made = replay(model, 2 * TENSORS[f"{name}.in.y01"] - 1, len(states), TENSORS[f"{name}.in.noise"][None])
    torch.testing.assert_close(made, states, rtol=0, atol=1e-5)
    assert isinstance(model.net, ClosedForm)
    told = torch.cat([t if t.ndim == 2 else t[:, None].expand(1, 2) for t in model.net.told])
    # Times of up to 1000 from a product of a thousand float32 numbers.
    torch.testing.assert_close(told, TENSORS[f"{name}.out.times"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("objective", ["pred_res_noise", "pred_res_add_noise", "pred_x0_add_noise"])
@pytest.mark.parametrize("rule", ["rddm", "rddm-posterior", "ddim"])
def test_a_network_that_knows_restores_in_one_step(objective, rule):
    """With true heads every rule ends at the truth, as long as no residual is beyond the clamp."""

    class Knows(nn.Module):
        def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
            eps = (x - clean - path.coefficients(float(t[0]))[1] * (lq - clean)) / (
                path.coefficients(float(t[0]))[2]
            )
            return OBJECTIVES[objective].target(path, t, clean, eps, lq)

    config = RDDMConfig(objective=objective, padding=1)
    path = config.path()
    clean = 0.5 * torch.rand(1, 3, 6, 6)
    lq = clean + 0.4 * torch.rand(1, 3, 6, 6)
    out = RDDM(config, network=Knows()).restore(lq, solver=rule, steps=3)
    torch.testing.assert_close(out, clean, rtol=0, atol=1e-5)


def test_published_rule_cuts_large_residuals_and_native_ones_do_not():
    """Dark input of a bright image: R = −1.8 is cut to −1 by the published clamp."""

    class Knows(nn.Module):
        def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
            return torch.full_like(x, -1.8)

    model = RDDM(RDDMConfig(objective="pred_res", padding=1), network=Knows())
    lq = torch.full((1, 3, 4, 4), -0.9)
    torch.testing.assert_close(model.restore(lq), torch.full_like(lq, 0.1))
    torch.testing.assert_close(model.restore(lq, solver="ddim"), torch.full_like(lq, 0.9))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_native_rules_are_the_published_ones_where_nothing_is_clamped(eta):
    """One head that says the residual leaves noise and image no choice, so all rules agree."""

    class Mild(nn.Module):
        def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
            return 0.1 * (x + lq).tanh()

    model = RDDM(RDDMConfig(objective="pred_res", padding=1, eta=eta, sum_scale=0.01), network=Mild())
    lq = torch.rand(2, 3, 5, 5) - 0.5
    native = model.restore(lq, solver="ancestral" if eta else "ddim", seed=3)
    torch.testing.assert_close(native, model.restore(lq, solver="rddm", seed=3), rtol=0, atol=1e-5)
    if eta:
        torch.testing.assert_close(
            model.restore(lq, solver="rddm-posterior", seed=3), native, rtol=0, atol=1e-5
        )


def test_times_are_the_published_ones():
    assert grid(1000, 2) == [999, 499, -1]
    assert grid(10, 10) == [*range(9, -1, -1), -1]
    for calls in (1, 3, 7, 50, 999, 1000):
        times = grid(1000, calls)
        assert (times[0], times[-1], len(times)) == (999, -1, calls + 1)
        assert all(b < a for a, b in pairwise(times))


def test_mean_is_one_call():
    model = closed_form()
    lq = torch.rand(1, 3, 4, 4)
    for solver in model.solvers:
        infos = []
        model.restore(lq, mode="mean", solver=solver, on_step=infos.append)
        assert [info.nfe for info in infos] == [1]
    assert len(model.net.told) == len(model.solvers)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 10)])
@pytest.mark.parametrize("solver", ["rddm", "ddim"])
def test_every_size_is_restored(size, solver):
    restored = small().restore(torch.rand(2, 3, *size) * 2 - 1, solver=solver)
    assert restored.shape == (2, 3, *size)
    assert restored.isfinite().all()
    assert restored.abs().max() <= 1


def test_mask_is_told_and_known_pixels_are_kept():
    model = small(conditions=("input", "mask"))
    lq, mask = torch.rand(1, 3, 9, 8), torch.zeros(1, 1, 9, 8)
    mask[..., 2:6, 2:6] = 1
    restored = model.restore(lq, mask=mask)
    known = mask.expand_as(lq) == 0
    assert torch.equal(restored[known], lq[known])
    assert (restored - lq)[~known].abs().mean() > 0.05
    told = model.asked(lq[..., :8, :], mask[..., :8, :]).bound["mask"]
    assert torch.equal(told, mask[..., :8, :].expand(1, 3, 8, 8))


def test_small_network_is_told_mask_and_level():
    options = {"widths": (8, 8), "blocks": 1}
    model = small(
        network="small-unet",
        network_options=options,
        objective="pred_x0",
        solver="ddim",
        conditions=("input", "mask", "level"),
        padding=4,
    )
    torch.nn.init.normal_(model.net.get_parameter("tail.weight"), std=0.1)
    assert model.takes == {"mask", "level"}
    assert model.reach is not None
    lq, mask = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    assert model.restore(lq, mask=mask, level=torch.tensor([10.0, 25.0])).shape == lq.shape
    unknown = model.restore(lq, mask=mask)
    assert not torch.equal(unknown, model.restore(lq, mask=mask, level=0.0)), "not known is not no noise"


def test_maps_say_mask_then_whether_the_level_is_known_and_what_it_is():
    lq, mask = torch.rand(3, 3, 2, 2), torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    maps = told_maps({"level", "mask"}, lq, mask, torch.tensor([0.0, 25.0, -1.0]))
    assert maps is not None
    expected = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
    assert torch.equal(maps[..., 1, 1], expected)
    assert told_maps((), lq) is None
    with pytest.raises(ValueError, match="mask must be given"):
        told_maps({"mask"}, lq)


def test_seeds_tiles_copies_and_checkpoints(tmp_path):
    model = small(tasks=("denoise",), sampling_steps=2)
    lq = torch.rand(2, 3, 8, 8) * 2 - 1
    together = model.restore(lq, seed=[4, 9])
    torch.testing.assert_close(together[1:], model.restore(lq[1:], seed=9), rtol=0, atol=1e-5)
    window = NoiseField(4, 3).window((0, 0))
    one = model.restore(lq[:1], noise=window)
    torch.testing.assert_close(one, model.restore(lq[:1], noise=NoiseField(4, 3).window((0, 0))))
    assert torch.equal(copy.deepcopy(model).restore(lq, seed=[4, 9]), together)
    model.save_pretrained(tmp_path)
    loaded = RDDM.from_pretrained(tmp_path)
    assert torch.equal(loaded.restore(lq, seed=[4, 9]), together)
    assert (loaded.tasks, loaded.scale, loaded.state_channels, loaded.reach) == (("denoise",), 1, 3, None)


def test_on_step_stops_and_bfloat16_is_close():
    model = small()
    lq = torch.rand(1, 3, 16, 16) * 2 - 1
    steps: list[int] = []
    model.restore(lq, on_step=lambda info: steps.append(info.step) or len(steps) < 2)
    assert steps == [1, 2]
    exact = model.restore(lq)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        half = model.restore(lq)
    # Sixty layers round to 2^-8 in each of five calls: √300 · 2^-9 ≈ 0.035, partly amplified.
    assert (half - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "x0"}, "objective must be one of 'pred_res_noise', .*, got 'x0'"),
        ({"solver": "euler"}, "solver must be one of 'rddm', .*, got 'euler'"),
        ({"clock": "t"}, "clock must be one of 'index', 'coefficients', got 't'"),
        ({"network": "unet"}, "network must be one of 'unet-res', 'small-unet', got 'unet'"),
        ({"conditions": ("lq",)}, "conditions must be one of 'input', 'mask', 'level', got 'lq'"),
        ({"sampling_steps": 0}, r"sampling_steps must lie in 1 … 1000, got 0"),
        ({"eta": 2.0}, "eta must lie in 0 … 1, got 2.0"),
        ({"padding": 0}, "padding must be at least 1, got 0"),
        ({"sum_scale": -1.0}, "sum_scale"),
        ({"schedule": "cosine"}, "schedule"),
        ({"objective": "pred_noise", "solver": "ddim"}, "solver must be one of 'rddm'.* got 'ddim'"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        RDDMConfig(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "faithful"}, "mode must be one of 'mean', 'sample', got 'faithful'"),
        ({"mode": "mean", "steps": 4}, r"steps must be 1 or left out in mode 'mean'.* got 4"),
        ({"steps": 1001}, r"steps must lie in 1 … 1000.* got 1001"),
        ({"solver": "heun"}, "solver must be one of 'rddm', .*, got 'heun'"),
        ({"solver": "rddm-residual-first", "steps": 3}, "steps must be even .* got 3"),
        ({"mask": torch.ones(1, 1, 8, 8)}, "mask must be left out"),
        ({"level": 25.0}, "level must be left out"),
    ],
)
def test_restore_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        small().restore(torch.zeros(1, 3, 8, 8), **arguments)
