"""DEIS against trajectories, coefficient tables and grids of the published code."""

import pytest
import torch
from tests.core.goldens import Golden, assert_relative

from fewstep.core import grids, paths
from fewstep.core.grids.deis import deis_log, deis_rho, deis_t
from fewstep.core.sample import sample
from fewstep.core.solvers.deis import DEIS
from fewstep.core.solvers.ipndm import IPNDM
from fewstep.core.solvers.runge_kutta import RungeKutta

GOLDEN = Golden("deis_official")
PATH = paths.VP.linear()
MULTISTEP = {"t_ab": "t", "rho_ab": "kappa"}
TABLEAUX = {
    "1euler": "euler",
    "2heun": "heun2",
    "3kutta": "kutta3",
    "3ral": "ralston3",
    "3heun": "heun3",
    "3vdh": "houwen3",
    "3ssprk": "ssprk3",
    "4rk": "rk4",
}


def solver_of(case, quadrature):
    if case["method"] in MULTISTEP:
        return DEIS(case["ab_order"], MULTISTEP[case["method"]], quadrature)
    return RungeKutta(TABLEAUX[case["rk_method"]]) if case["method"] == "rho_rk" else IPNDM()


def times_of(case):
    return grids.explicit(GOLDEN.of(case, "out.ts").tolist())


def result(case, solver):
    return sample(GOLDEN.mixture().denoiser(PATH), PATH, solver, grid=times_of(case), x=GOLDEN.z)


@GOLDEN.each()
def test_trajectory_with_the_published_quadrature(case):
    solver = solver_of(case, "official")
    assert solver.compile(PATH, times_of(case).times).nfe == case["nfe"]
    assert_relative(result(case, solver), GOLDEN.of(case, "out.x"), 1e-9)


@GOLDEN.each(lambda case: case["method"] in MULTISTEP)
def test_trajectory_with_exact_integrals(case):
    """The Riemann sum of the published code is off by its node distance, largest with three steps."""
    tolerance = 2e-3 if case["steps"] > 3 else 1.2e-2
    assert_relative(result(case, solver_of(case, "exact")), GOLDEN.of(case, "out.x"), tolerance)


@GOLDEN.each(lambda case: case["method"] == "t_ab")
@pytest.mark.parametrize(("quadrature", "tolerance"), [("official", 1e-11), ("exact", 1e-3)])
def test_coefficients(case, quadrature, tolerance):
    """Rows (Psi, C_0, C_1, …) of the published table, newest estimate first."""
    plan = solver_of(case, quadrature).compile(PATH, times_of(case).times)
    for step, (row, wanted) in enumerate(zip(plan.rows[1:], GOLDEN.of(case, "out.coef"), strict=True)):
        got = torch.zeros_like(wanted)
        for term in row.terms:
            assert isinstance(term.coefficient, float)
            got[0 if term.kind == "x" else 1 + step - term.index] = term.coefficient
        assert_relative(got, wanted, tolerance)


@GOLDEN.each()
def test_grid(case):
    make = {"t": deis_t, "log": deis_log, "rho": deis_rho}[case["ts_phase"]]
    assert grids.get(f"deis-{case['ts_phase']}") is make
    options = {} if case["ts_phase"] == "log" else {"exponent": case["ts_order"]}
    got = make(PATH, case["steps"], final="t_min", **options)
    assert torch.tensor(got, dtype=torch.float64).sub(GOLDEN.of(case, "out.ts")).abs().max() < 1e-12


def test_every_case_is_used():
    assert not GOLDEN.unused()
