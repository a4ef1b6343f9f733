"""MR-Sampler as published, with separately interpolated tables, and with ours that fit each other."""

import pytest
import torch
from tests.core.goldens import Golden, assert_relative

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.grids.mean_reverting import SCHEDULES, published
from fewstep.core.sample import sample
from fewstep.core.solvers.mean_reverting import MRSampler, _Tables

GOLDEN = Golden("mrs_official")
MIXTURE = GOLDEN.mixture()
PATH = paths.MeanReverting(subtract_first=False)
Y = GOLDEN.tensors["in.mu"].double()


class Noise:
    """The network of the golden file: the exact noise at a and sigma interpolated linearly."""

    path, prediction, y = PATH, predictions.get("eps"), Y

    def __init__(self):
        self.tables, self.inputs = _Tables.of(PATH), []

    def predict(self, x, t):
        a, b, sigma = self.tables.coefficients(float(t))
        z = x - b * Y
        self.inputs.append(x.clone())
        return (z - a * MIXTURE.x0(z, a, sigma)) / sigma

    def __call__(self, x, t):
        return self.prediction.to_x0(PATH, t, x, self.predict(x, t), Y)


def run(case, net, **options):
    solver = MRSampler(case["order"], case["solver_type"], case["parameterization"], **options)
    times = GOLDEN.of(case, "out.ts").double().tolist()
    grid = (*times[:-1], max(times[-1], 0.0))
    x = GOLDEN.of(case, "in.x").double()
    return sample(net, PATH, solver, grid=grid, x=x, y=Y, noise=GOLDEN.recorded(case))


@GOLDEN.each()
def test_official(case):
    """The states at which the network is asked, and the result, which is clipped there."""
    net = Noise()
    got = run(case, net, interp="official")
    assert_relative(torch.stack(net.inputs), GOLDEN.of(case, "out.evals").double(), 1e-4)
    assert (got.clamp(0, 1) - GOLDEN.of(case, "out.x_clipped")).abs().max() < 1e-4
    assert len(net.inputs) == case["n_evals"]


@GOLDEN.each(lambda case: case["steps"] == 10 and case["time_schedule"] == "linspace")
def test_at_the_times_of_the_table_both_interpolations_agree(case):
    got, wanted = run(case, Noise()), run(case, Noise(), interp="official")
    assert (got - wanted).abs().max() < 1e-9


@GOLDEN.each()
def test_schedules(case):
    """float32 tables there, of which sigma near the clean end has few digits."""
    times = torch.tensor(published(PATH, case["steps"], case["time_schedule"]), dtype=torch.float64)
    tolerance = 1e-3 if case["time_schedule"] in ("karras-n", "linear-lambda") else 2e-5
    assert (times - GOLDEN.of(case, "out.ts")).abs().max() < tolerance


def test_tables():
    a, _, sigma = PATH.evaluate(torch.arange(101.0))
    assert (a - GOLDEN.tensors["sched.alpha"]).abs().max() < 3e-7
    assert (sigma - GOLDEN.tensors["sched.sigma"]).abs().max() < 3e-7
    assert (PATH.theta - GOLDEN.tensors["sched.theta"]).abs().max() < 3e-7


def test_every_case_has_a_test():
    assert GOLDEN.unused() == []


@pytest.mark.parametrize(("form", "family"), [("data", "dpmpp"), ("noise", "dpm")])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_dpm_solver_on_z(form, family, order):
    path, grid = PATH, grids.get("logsnr")(PATH, 12)
    name = f"{family}-{order}{'m' if order > 1 else ''}"
    plan = solvers.get(name, correction="taylor").compile(path, grid)
    assert MRSampler(order, form=form).compile(path, grid).rows == plan.rows


def test_velocity_network_gives_the_same():
    """v = a·lambda·eps − (sigma/lambda)·(x0 − y), through the path's own v."""
    path, y = paths.MeanReverting(), Y

    class Velocity(Noise):
        prediction = predictions.get("v")

        def predict(self, x, t):
            x0 = MIXTURE.denoiser(path, Y)(x, t)
            a, b, sigma = path.coefficients(float(t))
            eps = (x - b * Y - a * x0) / sigma
            return a * path.noise_scale * eps - sigma / path.noise_scale * (x0 - Y)

    Velocity.path = path
    x = path.start(GOLDEN.z, y)
    for form in ("data", "noise"):
        options = {"solver": MRSampler(2, form=form), "steps": 6, "grid": "mrs-trailing", "x": x, "y": y}
        got = sample(Velocity(), path, **options)
        assert (got - sample(MIXTURE.denoiser(path, y), path, **options)).abs().max() < 1e-10


def test_orders_below_ten_steps():
    """Published: the order falls to 1 one step before the last, which has full order again."""
    orders = {
        variant: [MRSampler(3, variant=variant)._most(i, 6) for i in range(6)]
        for variant in ("official", "exact")
    }
    assert orders == {"official": [3, 3, 3, 2, 1, 3], "exact": [3, 3, 3, 3, 2, 1]}
    assert [MRSampler(3)._most(i, 10) for i in range(10)] == [3] * 10


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grids_by_name_visit_the_published_times(schedule):
    name = {"karras-n": "karras", "linear-lambda": "logsnr"}.get(schedule, f"mrs-{schedule}")
    path = paths.MeanReverting()
    times = grids.get(name)(path, 8)
    assert times[-1] == path.t_clean
    assert len(times) == 9
    if name in ("mrs-linspace", "mrs-leading", "mrs-trailing"):
        assert times[:-1] == published(path, 8, schedule)[:-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver_order": 4}, r"solver_order must be one of \(1, 2, 3\) for the ode, not 4"),
        ({"solver_order": 3, "equation": "sde"}, r"solver_order must be one of \(1, 2\) for the sde, not 3"),
        ({"form": "velocity"}, "form must be 'data' or 'noise', not 'velocity'"),
        ({"interp": "cubic"}, "interp must be 'consistent' or 'official', not 'cubic'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MRSampler(**options)


def test_bad_paths_and_schedules():
    with pytest.raises(ValueError, match=r"interp 'official' needs MeanReverting\(subtract_first=False\)"):
        MRSampler(interp="official").compile(paths.MeanReverting(), (100.0, 50.0, 0.0))
    with pytest.raises(ValueError, match=r"schedule must be one of linspace, .*; not 'cosine'"):
        published(PATH, 5, "cosine")
    with pytest.raises(ValueError, match="schedule 'karras-n' needs a discrete path, not EDM"):
        published(paths.EDM(), 5, "karras-n")
    with pytest.raises(ValueError, match="'linear-lambda' needs sigma > 0 at the clean end"):
        published(paths.MeanReverting(), 5, "linear-lambda")
