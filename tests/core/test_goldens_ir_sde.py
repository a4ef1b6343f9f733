"""IR-SDE as published: its tables, reverse SDE, ODE and posterior, in float32 there."""

import pytest
import torch
from tests.core.goldens import Golden, assert_relative

from fewstep.core import paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers.ir_sde import IRSDE

GOLDEN = Golden("irsde_official")
MIXTURE = GOLDEN.mixture()


def path_of(case):
    return paths.MeanReverting(case["max_sigma"], case["T"], case["schedule"], case["eps"])


@GOLDEN.each(lambda case: case["kind"] == "schedule")
def test_schedule(case):
    path = path_of(case)
    times = torch.arange(case["T"] + 1, dtype=torch.float64)
    a, b, sigma = path.evaluate(times)
    for name, value in (("alpha", a), ("alpha", 1 - b), ("sigma", sigma), ("theta", path.theta)):
        assert (value - GOLDEN.of(case, name)).abs().max() < 3e-7, name
    dt = -torch.log(torch.tensor(case["eps"])) / (path.theta.sum() - path.theta[0])
    assert abs(dt - GOLDEN.of(case, "dt")) < 1e-6 * dt


@GOLDEN.each(lambda case: case["kind"] != "schedule")
def test_sampler(case):
    """The published SDE step subtracts its draw."""
    path, y = path_of(case), GOLDEN.tensors["in.mu"].double()
    recorded = GOLDEN.recorded(case)
    sign = -1.0 if case["kind"] == "reverse_sde" else 1.0
    got = sample(
        MIXTURE.denoiser(path, y),
        path,
        IRSDE(case["kind"].removeprefix("reverse_"), "official"),
        grid=range(case["T"], -1, -1),
        x=GOLDEN.of(case, "in.x").double(),
        y=y,
        noise=lambda like: sign * recorded(like),
    )
    assert_relative(got, GOLDEN.of(case, "out.x").double(), 1e-5)


def test_every_case_has_a_test():
    assert GOLDEN.unused() == []


@pytest.mark.parametrize(
    "path", [paths.MeanReverting(), paths.VP.linear(), paths.EDM(), paths.RectifiedFlow()]
)
def test_on_any_path_they_are_euler_and_ancestral_sampling(path):
    grid = [path.t_max * u for u in (1.0, 0.8, 0.5, 0.2)] + [path.t_clean]
    pairs = (
        (IRSDE("sde"), solvers.get("euler-maruyama")),
        (IRSDE("ode"), solvers.get("euler-maruyama", equation="ode")),
        (IRSDE("posterior"), solvers.get("ancestral")),
    )
    for ours, other in pairs:
        for row, known in zip(ours.compile(path, grid).rows, other.compile(path, grid).rows, strict=True):
            found, wanted = ({t.kind: t.coefficient for t in r.terms} for r in (row, known))
            assert found.keys() == wanted.keys()
            for kind in found:
                assert found[kind] == pytest.approx(wanted[kind], rel=1e-10, abs=1e-14)


def test_the_official_sde_draws_in_its_last_step():
    path = paths.MeanReverting(steps=10)
    grid = range(10, -1, -1)
    assert IRSDE("sde", "official").compile(path, grid).draws == 10
    assert IRSDE("sde").compile(path, grid).draws == 9
    assert IRSDE("posterior", "official").compile(path, grid).draws == 9
    assert [t.kind for t in IRSDE("ode").compile(path, grid).rows[-1].terms] == ["d"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equation": "heun"}, "equation must be one of sde, ode, posterior; not 'heun'"),
        ({"variant": "new"}, "variant must be 'exact' or 'official', not 'new'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        IRSDE(**options)
