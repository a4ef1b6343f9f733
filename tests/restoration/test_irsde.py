"""IR-SDE against the published samplers: its own and MR-sampler's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core.noise import SampleNoise
from fewstep.core.sample import sample
from fewstep.restoration.methods.irsde import IRSDE
from fewstep.restoration.methods.irsde_config import RULES, IRSDEConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
SDE = load_file(GOLDEN / "irsde_sde.safetensors")
MRS = load_file(GOLDEN / "mrs_sampler.safetensors")
SDE_RUNS, MRS_RUNS = (
    json.loads((GOLDEN / f"{name}.json").read_text())["runs"] for name in ("irsde_sde", "mrs_sampler")
)
NAFNET = {"width": 8, "enc_blk_nums": [1], "dec_blk_nums": [1]}


class Closed(nn.Module):
    """The network of the golden files, whose states are in [0, 1]."""

    def __init__(self, max_sigma: float, target: str = "noise") -> None:
        super().__init__()
        self.sigma, self.target, self.seen = max_sigma / 255, target, []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.seen.append(x.clone())
        if self.target == "data":
            return 0.8 * torch.tanh(x) + 0.1 * y
        time = t.view(-1, 1, 1, 1).to(x)
        return 0.8 * torch.tanh(2 * (x - y) / self.sigma) + 0.1 * torch.sin(time / 7)


def recorded(first: Tensor, *later: Tensor):
    """A source of noise that gives what was drawn there."""
    draws = iter((first, *later))
    return lambda like: next(draws).to(like)


def border(image: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return 2 * image.double() - 1


def relative(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("run", SDE_RUNS, ids=lambda run: f"{run['index']}")
def test_tables(run):
    path = config_of(run).path()
    _, _, sigma = path.evaluate(torch.arange(run["T"] + 1))
    assert (sigma - SDE[f"s{run['index']}.sigma_bars"]).abs().max() < 1e-6
    assert (path.theta - SDE[f"s{run['index']}.thetas"]).abs().max() < 1e-6


def config_of(run: dict, **changes) -> IRSDEConfig:
    names = {"steps": run["T"], **{k: run[k] for k in ("max_sigma", "schedule", "eps")}}
    return IRSDEConfig(**names, **changes)


@pytest.mark.parametrize("equation", ["sde", "ode", "posterior"])
@pytest.mark.parametrize("run", SDE_RUNS, ids=lambda run: f"{run['index']}")
def test_published_samplers(run, equation):
    """All states that were kept; the published SDE step subtracts its draw, the posterior adds it.

    In float32 the posterior's 1 − C² has few digits near the clean end, which costs the published code
    5e-5 there; so it is compared with its formulas in float64, and these with it in float32.
    """
    s, steps = f"s{run['index']}", run["T"]
    later = SDE.get(f"{s}.in.noise_{equation}", torch.zeros(steps, 1, 3, 6, 6))
    noise = recorded(SDE[f"{s}.in.n0"], *(-later if equation == "sde" else later))
    states: dict[int, Tensor] = {}
    model = IRSDE(config_of(run), Closed(run["max_sigma"]))
    got = model.restore(
        border(SDE[f"{s}.in.y"]),
        solver=f"ir-{equation}",
        noise=noise,
        on_step=lambda info: states.update({round(float(info.t)): info.x.clone()}),
    )
    ours = torch.cat([states[t - 1] for t in range(steps, 0, -1) if t == steps or t % 10 == 1])
    wanted = SDE[f"{s}.out.{equation}"].flatten(0, 1)
    if equation == "posterior":
        assert relative(posterior(run, torch.float32), wanted) < 1e-6
        wanted = posterior(run, torch.float64)
    assert relative(ours, wanted) < (1e-10 if equation == "posterior" else 1e-5)
    assert torch.equal(got, border(states[0]).clamp(-1, 1))


def posterior(run: dict, dtype: torch.dtype) -> Tensor:
    """The published posterior sampling, written out; in float32 with its own tables."""
    s, most = f"s{run['index']}", run["max_sigma"] / 255
    theta, total, dt, bars = (
        SDE[f"{s}.{name}"].to(dtype) for name in ("thetas", "thetas_cumsum", "dt", "sigma_bars")
    )
    if dtype is torch.float64:
        theta = config_of(run).path().theta.double()
        total = theta.cumsum(0) - theta[0]
        dt = -math.log(run["eps"]) / total[-1]
        bars = most * (1 - torch.exp(-2 * total * dt)).sqrt()
    y, net, kept = SDE[f"{s}.in.y"].to(dtype), Closed(run["max_sigma"]), []
    x = y + most * SDE[f"{s}.in.n0"].to(dtype)
    for t, draw in zip(range(run["T"], 0, -1), SDE[f"{s}.in.noise_posterior"].to(dtype), strict=True):
        x0 = (x - y - bars[t] * net(x, torch.tensor([t]), y)) * torch.exp(total[t] * dt) + y
        a, b, c = (torch.exp(-k * dt) for k in (theta[t], total[t], total[t - 1]))
        mean = a * (1 - c**2) / (1 - b**2) * (x - y) + c * (1 - a**2) / (1 - b**2) * (x0 - y) + y
        variance = (1 - a**2) * (1 - c**2) / (1 - b**2)
        x = mean + variance.clamp(min=1e-20 * dt).sqrt() * most * draw
        if t == run["T"] or t % 10 == 1:
            kept.append(x)
    return torch.cat(kept)


@pytest.mark.parametrize("run", MRS_RUNS, ids=lambda run: f"{run['index']}")
def test_mr_sampler(run):
    """The states of every step, with tables interpolated as there, and the clipped result."""
    s = f"s{run['index']}"
    target = run["fit_target"]
    name = f"mrs-{'sde-' if run['solver_type'] == 'sde' else ''}{run['order']}"
    config = IRSDEConfig(
        subtract_first=False,
        interpolation="official",
        prediction={"noise": "eps", "data": "x0", "velocity": "v"}[target],
        grid=run["time_schedule"],
        solver=name + ("-noise" if run["parameterization"] == "noise" else ""),
        calls=run["num_sample_steps"],
    )
    states: list[Tensor] = []
    model = IRSDE(config, Closed(50, target))
    got = model.restore(
        border(MRS["in.y"]),
        noise=recorded(MRS["in.n0"], *MRS.get(f"{s}.in.noise", ())),
        on_step=lambda info: states.append(info.x.clone()),
    )
    wanted = MRS[f"{s}.out.states"]
    # Their lambda near the clean end comes from float32 sigmas of few digits.
    assert relative(torch.stack(states), wanted) < 1e-4
    assert (got - border(MRS[f"{s}.out.final"])).abs().max() < 2e-4
    assert len(states) == run["num_sample_steps"]


@pytest.mark.parametrize("rule", [name for name in RULES if name.startswith("mrs-")])
def test_few_steps_come_near_many(rule):
    """On the published (shifted) table, whose noise ends at 0 exactly, where log(a/sigma) is infinite.

    The SDE rules that interpolate noise need more steps: their last step draws as much as it removes.
    """
    steps = 50 if "sde" in rule and "noise" in rule else 10
    y = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = IRSDE(IRSDEConfig(), Exact())
    got = model.restore(y, solver=rule, seed=3, steps=steps)
    truth = (y + 1) / 2 * 0.5 + 0.2
    assert torch.isfinite(got).all()
    # Data whose spread is 0.01 around a function of y: a sample lies about that far from its mean.
    assert (got - border(truth)).std() < 0.03
    assert abs((got - border(truth)).mean()) < 0.01


class Exact(nn.Module):
    """The noise of normal data with mean ½·y + 0.2 and standard deviation 0.01."""

    spread = 0.01

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        a, b, sigma = IRSDEConfig().path().coefficients(float(t[0]))
        mean = 0.5 * y + 0.2
        variance = a**2 * self.spread**2 + sigma**2
        return sigma * (x - b * y - a * mean) / variance


def test_default_calls_and_times():
    model = IRSDE(IRSDEConfig(network_options=NAFNET)).eval()
    count = []
    choices: list[dict[str, Any]] = [{}, {"solver": "mrs-2"}, {"solver": "mrs-2", "steps": 4}]
    for options in choices:
        net = Closed(50)
        IRSDE(IRSDEConfig(), net).restore(torch.zeros(1, 3, 4, 4), **options)
        count.append(len(net.seen))
    assert count == [100, 10, 4]
    assert model.steps_of("sample") == 100
    assert IRSDE(IRSDEConfig(solver="mrs-2"), Closed(50)).steps_of("sample") == 10
    assert IRSDE(IRSDEConfig(solver="mrs-2", calls=5), Closed(50)).steps_of("sample") == 5
    assert model.times(model.bare_denoiser(model.net), "sample", 100)[:3] == [100.0, 99.0, 98.0]


def test_a_seed_is_a_picture_of_its_own():
    model = IRSDE(IRSDEConfig(network_options=NAFNET), Closed(50))
    lq = torch.rand(2, 3, 9, 5) * 2 - 1
    both = model.restore(lq, solver="mrs-sde-2", steps=5, seed=7)
    second = model.restore(lq[1:], solver="mrs-sde-2", steps=5, seed=8)
    assert torch.equal(both[1:], second)
    drawn = model.restore(lq, solver="mrs-sde-2", steps=5, noise=source(7, 2))
    assert torch.equal(drawn, both)


def source(seed: int, count: int):
    draws = SampleNoise(seed, count, torch.device("cpu"))

    def noise(like: Tensor) -> Tensor:
        fresh = torch.empty_like(like)
        draws.fill(fresh)
        return fresh

    return noise


def test_enlargement_and_unknown_pixels():
    seen = Closed(50)
    model = IRSDE(IRSDEConfig(scale=4), seen)
    assert model.restore(torch.zeros(1, 3, 5, 3), solver="mrs-1", steps=2).shape == (1, 3, 20, 12)
    assert model.state_ratio == 4
    model = IRSDE(IRSDEConfig(fill=1.0), Closed(50))
    assert model.takes == {"mask"}
    lq, mask = torch.rand(1, 3, 6, 6) * 2 - 1, torch.zeros(1, 1, 6, 6)
    mask[..., :2] = 1
    out = model.restore(lq, mask=mask, solver="mrs-1", steps=2)
    other = model.restore(torch.where(mask > 0, -lq, lq), mask=mask, solver="mrs-1", steps=2)
    assert torch.equal(out[..., 2:], lq[..., 2:])  # known pixels as they were given
    assert torch.equal(out, other)  # what is under the mask is not looked at
    y = model.denoiser(lq, mask).y
    assert y is not None
    assert (y[..., :2] == 1).all()


def test_latents_take_the_features_of_the_input():
    options = {"ch": 8, "ch_mult": [1, 2], "embed_dim": 4}
    network = {"img_channel": 4, **NAFNET}
    model = IRSDE(IRSDEConfig(autoencoder=options, network_options=network, solver="mrs-1", calls=2)).eval()
    assert (model.state_channels, model.state_ratio, model.config.padding) == (4, 0.5, 4)
    lq = torch.rand(1, 3, 10, 7) * 2 - 1
    shapes = []

    def noise(like: Tensor) -> Tensor:
        shapes.append(tuple(like.shape))
        return torch.zeros_like(like)

    got = model.restore(lq, noise=noise)
    assert shapes == [(1, 4, 6, 4)]
    with torch.no_grad():
        assert model.autoencoder is not None
        z, kept = model.autoencoder.encode((lq + 1) / 2)
        denoise = model.denoiser(lq)
        z = sample(denoise, solver="mrs-1", grid=[100.0, 50.0, 0.0], x=z, y=z)
        wanted = 2 * model.autoencoder.decode(z, kept)[..., :10, :7] - 1
    assert (got - wanted.clamp(-1, 1)).abs().max() < 1e-6


def test_mean_needs_a_network_that_determines_it():
    with pytest.raises(ValueError, match="mode must be 'sample': the noise that the network predicts"):
        IRSDE(IRSDEConfig(), Closed(50)).restore(torch.zeros(1, 3, 4, 4), mode="mean")
    net = Closed(50, "data")
    model = IRSDE(IRSDEConfig(prediction="x0"), net)
    lq = torch.rand(1, 3, 4, 4) * 2 - 1
    got = model.restore(lq, mode="mean", noise=torch.zeros_like)
    y = (lq + 1) / 2
    assert (got - border(0.8 * torch.tanh(y) + 0.1 * y)).abs().max() < 1e-6
    assert len(net.seen) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IRSDEConfig(prediction="score"), "prediction must be one of 'eps', 'x0', 'v', got 'score'"),
        (lambda: IRSDEConfig(solver="euler"), "solver must be one of 'ir-posterior', .*, got 'euler'"),
        (lambda: IRSDEConfig(grid="karras"), "grid must be one of 'linspace', .*, got 'karras'"),
        (lambda: IRSDEConfig(interpolation="official"), "interpolation must be 'consistent' unless"),
        (lambda: IRSDEConfig(fill=2.0), r"fill must lie in 0 … 1, got 2.0"),
        (lambda: IRSDEConfig(calls=101), "calls must lie in 1 … 100, the times of the path, got 101"),
        (lambda: IRSDEConfig(scale=0), "scale must be at least 1, got 0"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "heun"}, "solver must be one of 'ir-posterior', .*, got 'heun'"),
        ({"steps": 101}, "steps must lie in 1 … 100, the noise levels of the model, got 101"),
        ({"steps": 0}, "steps must lie in 1 … 100"),
        ({"mask": torch.zeros(1, 1, 4, 4)}, "mask must be left out"),
        ({"level": 5.0}, "level must be left out"),
        ({"mode": "median"}, "mode must be one of 'mean', 'sample', got 'median'"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        IRSDE(IRSDEConfig(), Closed(50)).restore(torch.zeros(1, 3, 4, 4), **options)
