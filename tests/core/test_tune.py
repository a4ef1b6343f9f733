"""tune: the gain is real on fresh noise, reproducible, resumable and saved; objectives mean what they say."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tests.core.goldens import Golden
from tests.core.solver_problems import Mixture, smooth_mixture, start_noise

from fewstep.core import Path, grids, paths, predictions, sample, solvers
from fewstep.core.plan import Plan
from fewstep.core.search import (
    DataDistance,
    Evolution,
    ReferenceDistance,
    Starts,
    TuneSettings,
    energy_distance,
    load_plan,
    saved_budgets,
    sliced_wasserstein,
    tune,
    untuned_plans,
)

GM = Golden("gm_accuracy")
EDM = paths.EDM()
FEW = {"solvers": ("ddim", "dpmpp-2m", "heun"), "grids": ("karras", "logsnr")}
SHORT = Evolution(generations=3, population=16, parents=6, crossovers=8, mutations=8)
QUICK = TuneSettings(samples=24, reference_steps=32, evolution=SHORT, **FEW)
ONCE = replace(QUICK, evolution=replace(SHORT, generations=1), solvers=("dpmpp-2m",))


def gm(x, t):
    return GM.mixture().denoiser(EDM)(x, t)


def quick(budget=5, denoise=gm, path: Path = EDM, **options):
    settings = options.pop("settings", QUICK)
    return tune(denoise, path, budget, shape=(3, 4, 4), dtype=torch.float64, settings=settings, **options)


@pytest.fixture(scope="module")
def tuned():
    return quick()


def test_the_reference_is_the_exact_solution():
    starts = Starts(gm, EDM, GM.z)
    exact = GM.tensors["out.edm80_to_1e-6"]
    error = ReferenceDistance(starts, "median", 128).target - exact
    # 1e-5 of it is the step from sigma 0.002 to 0
    assert error.square().mean((1, 2, 3)).sqrt().median() < 2e-5


def test_a_tuned_plan_beats_all_untuned_ones_on_fresh_noise(tuned):
    assert tuned.plan.nfe == tuned.measured.calls == 5
    assert tuned.measured.solver == "tuned"
    assert tuned.gain > 1.3
    assert [one.score for one in tuned.untuned] == sorted(one.score for one in tuned.untuned)
    assert {one.calls for one in tuned.untuned} == {4, 5}  # Heun to t_min takes an even number
    # once more, with noise of its own and the published start noises
    exact = GM.tensors["out.edm80_to_1e-6"]

    def median(plan):
        return (sample(gm, EDM, plan, x=80 * GM.z) - exact).square().mean((1, 2, 3)).sqrt().median()

    untuned = [median(one.plan) for one in untuned_plans(EDM, 5, FEW["solvers"], FEW["grids"])]
    assert median(tuned.plan) < min(untuned)


def test_same_arguments_same_result(tuned):
    again = quick()
    assert again.plan == tuned.plan
    assert (again.measured, again.untuned, again.history) == (tuned.measured, tuned.untuned, tuned.history)


def test_an_interrupted_search_goes_on_where_it_was(tuned, tmp_path):
    state = tmp_path / "state.json"
    seen = []

    def interrupt(info):
        seen.append(info)
        if info.stage == "generation 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(state=state, on_progress=interrupt)
    calls = []
    resumed = quick(denoise=lambda x, t: calls.append(t) or gm(x, t), state=state)
    assert resumed.plan == tuned.plan
    assert resumed.measured == tuned.measured
    # a finished state measures nothing but the references and the best plan
    before = len(calls)
    calls.clear()
    assert quick(denoise=lambda x, t: calls.append(t) or gm(x, t), state=state).plan == tuned.plan
    assert len(calls) < 0.6 * before
    fractions = [info.fraction for info in seen]
    assert fractions == sorted(fractions)


def test_a_state_of_another_search_or_model_is_refused(tmp_path):
    state = tmp_path / "state.json"
    quick(state=state, settings=ONCE)
    with pytest.raises(ValueError, match="belongs to a search with budget = 5, not 6"):
        quick(budget=6, state=state, settings=ONCE)
    with pytest.raises(ValueError, match="belongs to another model"):
        quick(denoise=lambda x, t: 0.9 * gm(x, t), state=state, settings=ONCE)
    state.write_text("{")
    with pytest.raises(ValueError, match="is not the state of a search"):
        quick(state=state, settings=ONCE)


def test_little_time_gives_a_plan_all_the_same():
    settings = TuneSettings(samples=8, reference_steps=8, max_minutes=1e-4, **FEW)
    found = quick(settings=settings)
    assert not found.finished
    assert found.plan.nfe == 5
    assert 1 <= len(found.untuned) <= 3


def test_plan_and_report_lie_beside_the_checkpoint(tuned, tmp_path):
    file = tuned.save(tmp_path)
    assert file.name == "plan-5.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan-5.json", "plan-5.report.json"]
    assert load_plan(tmp_path, 5) == tuned.plan
    assert saved_budgets(tmp_path) == (5,)
    report = json.loads((tmp_path / "plan-5.report.json").read_text())
    assert report["gain"] == pytest.approx(tuned.gain)
    assert report["measured"]["score"] == tuned.measured.score
    with pytest.raises(ValueError, match="no tuned plan for budget 7; it has: 5"):
        load_plan(tmp_path, 7)
    (tmp_path / "plan-9.json").write_text("{}")
    with pytest.raises(ValueError, match="not a saved plan"):
        load_plan(tmp_path, 9)
    assert tuned.table(2).count("\n") == 4


@pytest.mark.parametrize("name", ["vp", "flow", "cosine", "table"])
def test_other_paths(name):
    path = {
        "vp": paths.VP.linear(),
        "flow": paths.RectifiedFlow(),
        "cosine": paths.VP.cosine(t_max=1.0),
        "table": paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    }[name]
    found = quick(4, smooth_mixture(48).denoiser(path), path, settings=ONCE)
    assert found.plan.nfe == 4
    assert found.gain > 1.0
    assert Plan.from_json(found.plan.to_json()) == found.plan


def test_a_path_with_a_degraded_input():
    path = paths.ResShift(steps=15)
    mixture = smooth_mixture(48)

    y = 0.3 * start_noise(96, (3, 4, 4), seed=3)

    class Bound:
        """What a Denoiser is: it can be given y."""

        def __init__(self, y=None):
            self.path, self.y = path, y
            self.prediction = predictions.get("x0")

        def given(self, y):
            return Bound(y)

        def predict(self, x, t):
            return mixture.denoiser(path, self.y)(x, t)

        __call__ = predict

    found = quick(3, Bound(), path, y=y, settings=ONCE)
    assert found.plan.nfe == 3
    assert found.gain >= 1.0
    with pytest.raises(ValueError, match=r"y must hold 3·samples = 72 inputs for this path, it holds 71"):
        quick(3, Bound(), path, y=y[:71])


def test_distances_to_data_and_an_objective_of_ones_own():
    generator = torch.Generator().manual_seed(0)
    data = GM.mixture().draw(256, (3, 4, 4), generator)
    for objective in ("energy", "sliced-wasserstein"):
        found = quick(objective=objective, data=data, settings=ONCE)
        assert found.reference_error is None
        assert math.isfinite(found.measured.score)
    wanted = quick(objective=lambda plan: abs(plan.rows[1].t - 7.0))
    assert wanted.plan.rows[1].t == pytest.approx(7.0, abs=0.5)


def test_distances_between_samples():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2000, 2, 2, dtype=torch.float64, generator=generator)
    for distance, small in ((energy_distance, 0.02), (sliced_wasserstein, 0.08)):
        assert abs(distance(x, y)) < small
        assert distance(x, y + 1.0) > 10 * small
        assert distance(x, 2.0 * y) > 4 * small
    # two point masses: 2·E|X − Y| = 2·|a − b|
    a, b = torch.zeros(5, 3), torch.ones(7, 3)
    assert energy_distance(a, b) == pytest.approx(2 * math.sqrt(3))
    normal = torch.randn(20000, 1, dtype=torch.float64, generator=generator)
    assert sliced_wasserstein(normal, normal[:5000] + 2.0) == pytest.approx(2.0, abs=0.08)


def test_starts_do_not_depend_on_batch_or_part():
    whole = Starts.draw(gm, EDM, (8, 3, 4, 4), 5, dtype=torch.float64)
    split = Starts.draw(gm, EDM, (8, 3, 4, 4), 5, batch=3, dtype=torch.float64)
    plan = solvers.get("dpmpp-2m").compile(EDM, grids.karras(EDM, 4))
    assert (whole.run(plan) - split.run(plan)).abs().max() < 1e-12
    assert torch.equal(whole.first(3).noise, whole.noise[:3])
    later = Starts.draw(gm, EDM, (4, 3, 4, 4), 9, dtype=torch.float64)
    assert torch.equal(later.noise, whole.noise[4:])
    early = solvers.get("ddim").compile(EDM, (10.0, 1.0, 0.0))  # a plan may start below t_max
    assert torch.equal(whole.at(10.0), 10.0 * whole.noise)
    assert whole.run(early).shape == whole.noise.shape


def test_untuned_plans_are_different_and_within_the_budget():
    found = untuned_plans(EDM, 6, ("ddim", "dpmpp-1", "heun", "ancestral", "dpmpp-2m"), ("karras", "uniform"))
    assert len(found) >= 12
    assert all(one.plan.nfe <= 6 and not one.plan.draws for one in found)
    names = {one.solver for one in found} | {name.split(",")[0] for one in found for name in one.same}
    assert {"ddim", "dpmpp-2m", "heun", "dpmpp-1"} <= names
    one = next(one for one in found if (one.solver, one.grid) == ("ddim", "karras"))
    assert any(name.startswith("dpmpp-1, karras") for name in one.same)  # the same plan is there once
    assert len(untuned_plans(EDM, 6, stop=lambda: True)) == 1


POINT = Mixture(torch.zeros(1, 48).double(), torch.ones(1).double(), torch.ones(1).double())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quick(0), "budget must be a number of network calls, at least 1, not 0"),
        (lambda: quick(objective="fid"), "objective must be one of reference, energy, sliced-wasserstein"),
        (lambda: quick(objective="energy"), "data is missing: objective 'energy' compares with it"),
        (lambda: quick(objective="energy", data=torch.zeros(8, 1)), r"data must have samples of shape"),
        (lambda: quick(objective="energy", data=torch.zeros(2, 3, 4, 4)), "at least 4 samples, it holds 2"),
        (lambda: tune(gm, None, 5, shape=(3, 4, 4)), "path is missing"),
        (lambda: tune(gm, EDM, 5), "shape is missing"),
        (lambda: TuneSettings(samples=1), "samples must be at least 2, not 1"),
        (lambda: TuneSettings(batch=0), "batch must be at least 1, not 0"),
        (lambda: TuneSettings(max_minutes=0.0), "max_minutes must be above 0"),
        (lambda: TuneSettings(reference_steps=2), "reference_steps must be at least 8, not 2"),
        (lambda: ReferenceDistance(Starts(gm, EDM, GM.z[:2]), "worst"), "statistic must be one of mean"),
        (lambda: quick(settings=TuneSettings(solvers=("none",))), "solver must be one of"),
        (lambda: DataDistance(Starts(gm, EDM, GM.z), torch.zeros(3, 1)), r"of shape \(3, 4, 4\), not \(1,\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
