"""FlowMap, the normalised clock, and Sampling on every path."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from itertools import pairwise

import pytest
import torch
from tests.core.path_cases import PATHS

from fewstep.core import paths, sample
from fewstep.core.clock import clock_at, clock_rate_at, denormalised, normalised, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import MLPConfig
from fewstep.core.sampling import Sampling

PLAIN = (paths.EDM(), paths.VP.linear(), paths.RectifiedFlow(), paths.RectifiedFlow(shift=3.0))
STD = 0.6


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times(path, count=5):
    t = torch.linspace(path.t_max, path.t_min, count + 2, dtype=torch.float64)[1:-1]
    return t.round() if path.is_discrete else t


def at(t, count=4):
    return torch.full((count,), t, dtype=torch.float64)


def gaussian(path):
    """The denoiser of N(0, STD²), as a plain function of state and time."""

    def x0(x, t):
        a, _, sigma = path.evaluate(t)
        return spread(a * STD**2 / (a**2 * STD**2 + sigma**2), x) * x

    return x0


def flow_of(path):
    """A FlowMap whose x0 is the Gaussian's; what the network is told is ignored."""
    flow = FlowMap(lambda x, t: x, path, "x0")
    flow.x0 = lambda x, t, s=None: gaussian(path)(x, t)
    return flow


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_path_is_rectified_flow_on_its_clock(path):
    t = times(path)
    x0, eps, y = (drawn(len(t), 3, seed=seed) for seed in range(3))
    y = y if path.uses_y else None
    x = path.corrupt(x0, t, eps, y)
    a, _, sigma = path.evaluate(t)
    keep = a + sigma > 0
    tau = clock_at(path, t)
    wanted = spread(a / (a + sigma), x) * x0 + spread(tau, x) * eps
    z = normalised(path, x, t, y)
    torch.testing.assert_close(z[keep], wanted[keep], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(denormalised(path, z, t, y)[keep], x[keep], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_the_clock_runs_back_and_its_rate_is_its_derivative(path):
    t = times(path)
    torch.testing.assert_close(time_of_clock(path, clock_at(path, t)), t, rtol=1e-8, atol=1e-9)
    h = 1e-6
    slope = (clock_at(path, t + h) - clock_at(path, t - h)) / (2 * h)
    torch.testing.assert_close(clock_rate_at(path, t), slope, rtol=1e-4, atol=1e-8)


def test_a_table_has_no_rate():
    with pytest.raises(ValueError, match="needs a continuous path"):
        clock_rate_at(paths.VP.from_betas([0.1, 0.2, 0.3]), torch.tensor([1.0]))


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_a_jump_is_a_ddim_step(path):
    t, s = float(times(path)[1]), float(times(path)[3])
    x = drawn(4, 3)
    flow = flow_of(path)
    moved = flow.jump(x, at(t), at(s))
    stepped = sample(lambda x, t: gaussian(path)(x, at(t)), path, "ddim", grid=[t, s], x=x)
    torch.testing.assert_close(moved, stepped, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_a_heun_step_is_that_of_the_solver_in_sigma_over_a(path):
    t, s = float(times(path)[1]), float(times(path)[3])
    x = drawn(4, 3)
    moved = flow_of(path).heun(x, at(t), at(s))
    stepped = sample(lambda x, t: gaussian(path)(x, at(t)), path, "edm", grid=[t, s], x=x)
    torch.testing.assert_close(moved, stepped, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PLAIN, ids=str)
@pytest.mark.parametrize("prediction", ["x0", "eps", "velocity", "v", "edm"])
def test_mean_velocity_is_the_way_to_x0_over_the_clock(path, prediction):
    flow = FlowMap(lambda x, t: torch.sin(x) + t[:, None] * 0, path, prediction)
    t, x = times(path), drawn(5, 3)
    velocity = flow.mean_velocity(x, t)
    wanted = (normalised(path, x, t) - flow.x0(x, t)) / spread(clock_at(path, t), x)
    torch.testing.assert_close(velocity, wanted, rtol=1e-8, atol=1e-8)


def test_on_rectified_flow_mean_velocity_is_the_raw_output_however_small_t():
    flow = FlowMap(lambda x, t: torch.sin(x), paths.RectifiedFlow(), "velocity")
    x = drawn(3, 2).float()
    t = torch.tensor([1e-3, 1e-2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(flow.mean_velocity(x, t), torch.sin(x), rtol=0, atol=0)
    torch.testing.assert_close(flow.jump(x, t, t / 2), x - spread(t / 2, x) * torch.sin(x), rtol=0, atol=1e-7)


def test_y_is_carried_by_jumps():
    path = paths.ResShift()
    x, y = drawn(2, 3), drawn(2, 3, seed=1)
    t, s = torch.tensor([12.0, 9.0]), torch.tensor([4.0, 2.0])
    x0 = drawn(2, 3, seed=2)
    flow = FlowMap(lambda x, t: x0, path, "x0", {"y": y})
    (a, b, sigma), (a_s, b_s, sigma_s) = path.evaluate(t), path.evaluate(s)
    eps = (x - spread(a, x) * x0 - spread(b, x) * y) / spread(sigma, x)
    wanted = spread(a_s, x) * x0 + spread(b_s, x) * y + spread(sigma_s, x) * eps
    torch.testing.assert_close(flow.jump(x, t, s), wanted, rtol=1e-12, atol=1e-12)


def test_the_target_is_told_clamped_to_the_path():
    seen = []

    def net(x, t, s):
        seen.append((t.clone(), s.clone()))
        return x

    path = paths.EDM()
    flow = FlowMap(net, path, "x0")
    flow.x0(drawn(2, 3), torch.tensor([2.0, 3.0]), torch.tensor([0.0, 5.0]))
    told = seen[0][1].double()
    wanted = torch.tensor([path.network_time(path.t_min), path.network_time(3.0)], dtype=torch.float64)
    torch.testing.assert_close(told, wanted, rtol=1e-6, atol=1e-6)


class TestSampling:
    @pytest.mark.parametrize("path", PLAIN, ids=str)
    @pytest.mark.parametrize("spacing", ["clock", "log", "karras"])
    @pytest.mark.parametrize("kind", ["ode", "consistency", "flow-map"])
    def test_grids_fall_from_the_start_to_the_end(self, path, spacing, kind):
        for steps in (1, 2, 5):
            grid = Sampling(kind, steps, spacing=spacing).grid(path)
            assert len(grid) == steps + 1
            assert grid[0] == path.t_max
            assert grid[-1] == (path.t_min if kind == "consistency" else path.t_clean)
            assert all(t > s for t, s in pairwise(grid)), grid

    def test_times_of_ones_own_hold_for_their_number_of_steps(self):
        chosen = Sampling("consistency", 2, times=(0.8,))
        assert chosen.grid(paths.EDM()) == [80.0, 0.8, 0.002]
        assert len(chosen.grid(paths.EDM(), 4)) == 5

    def test_kappa_is_the_same_level_on_every_path(self):
        for path in PLAIN:
            a, _, sigma = path.coefficients(Sampling(kappa=2.5).first(path))
            assert sigma / a == pytest.approx(2.5, rel=1e-6)

    @pytest.mark.parametrize("kind", ["ode", "consistency", "flow-map"])
    def test_samples_depend_on_their_own_seed_only(self, kind):
        torch.manual_seed(0)
        config = MLPConfig(shape=(3,), width=16, two_times=True)
        model = DiffusionModel.with_network(config, paths.EDM(), "edm", sampling=Sampling(kind, 3))
        torch.nn.init.normal_(model.net.last.weight, std=0.3)
        together = model.generate(4, seed=5)
        alone = model.generate(1, seed=7)
        torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(together[0], together[1])

    def test_one_step_of_each_kind_is_x0_at_the_start(self):
        path, noise = paths.EDM(), drawn(4, 3).float()
        flow = FlowMap(lambda x, t: torch.tanh(x), path, "x0")
        x = 2.5 * noise
        wanted = flow.x0(x, torch.full((4,), 2.5, dtype=torch.float64))
        for kind, solver in (("ode", "ddim"), ("flow-map", "heun")):
            made = Sampling(kind, 1, kappa=2.5, solver=solver).run(flow, (3,), noise=noise)
            torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "sde"}, "kind must be one of"),
            ({"spacing": "even"}, "spacing must be one of"),
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"kappa": -1.0}, "kappa must be positive"),
            ({"kappa": 2.0, "start": 3.0}, "without start"),
        ],
    )
    def test_bad_values_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            Sampling(**options)
