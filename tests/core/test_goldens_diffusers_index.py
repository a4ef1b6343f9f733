"""The index-based schedulers of diffusers, whose tables are float32: DDIM, PNDM, DEIS, Euler, Heun, LMS …"""

import math

from tests.core.goldens import Golden, assert_relative, stable_diffusion_path

from fewstep.core import paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers import FirstOrder, Heun
from fewstep.core.solvers.deis import DEIS
from fewstep.core.solvers.edm import EDMSampler
from fewstep.core.solvers.pndm import PNDM

GOLDEN = Golden("diffusers_schedulers")
PATH = stable_diffusion_path()
TOLERANCE = 2e-5


def scheduled(*schedulers):
    return GOLDEN.each(lambda case: case["scheduler"] in schedulers)


def result(case, path, solver, times, x, denoise=None):
    denoise = denoise or GOLDEN.mixture().denoiser(path)
    return sample(denoise, path, solver, grid=tuple(times), x=x, noise=GOLDEN.recorded(case))


def compare(case, path, solver, times, x):
    assert_relative(result(case, path, solver, times, x), GOLDEN.of(case, "out.x"), TOLERANCE)


@scheduled("DDPMScheduler")
def test_ddpm(case):
    compare(case, PATH, FirstOrder(1.0), [*GOLDEN.of(case, "out.timesteps").tolist(), -1.0], GOLDEN.z)


@scheduled("DDIMScheduler")
def test_ddim(case):
    """Every step has the length ⌊1000/steps⌋, and its result is taken for a state at the next grid time."""
    solver, stride = FirstOrder(case["step_kwargs"].get("eta", 0.0)), 1000 // case["steps"]
    x, noise, denoise = GOLDEN.z, GOLDEN.recorded(case), GOLDEN.mixture().denoiser(PATH)
    for t in GOLDEN.of(case, "out.timesteps").tolist():
        x = sample(denoise, PATH, solver, grid=(t, max(t - stride, -1.0)), x=x, noise=noise)
    assert_relative(x, GOLDEN.of(case, "out.x"), TOLERANCE)


@scheduled("PNDMScheduler")
def test_pndm(case):
    """Its steps all have the length ⌊1000/steps⌋, and it ends at the first table entry."""
    times = GOLDEN.of(case, "out.timesteps").tolist()
    stride = float(1000 // case["steps"])
    if case["config"]["skip_prk_steps"]:
        solver, times = PNDM(4, "improved-euler", stride=stride), list(dict.fromkeys(times))
    else:
        solver, times = PNDM(4, "runge-kutta", stride=stride), [*times[:12:4], *times[12:]]
    # a grid that asks at index 0 takes a last step from there to itself
    compare(case, PATH, solver, times if times[-1] == 0.0 else [*times, 0.0], GOLDEN.z)


@scheduled("DEISMultistepScheduler")
def test_deis(case):
    times = [*GOLDEN.of(case, "out.timesteps").tolist(), 0.0]
    solver = DEIS(case["config"]["solver_order"] - 1, "lambda", lower_order_below=15)
    compare(case, PATH, solver, times, GOLDEN.z)


@scheduled(
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
def test_in_the_frame_of_sigma(case):
    """diffusers steps x/a and starts it at sigma_max·z; on our path that is a·sigma_max·z = sigma·z."""
    times = [*dict.fromkeys(GOLDEN.of(case, "out.timesteps").tolist()), -1.0]
    solver = {
        "EulerDiscreteScheduler": FirstOrder(),
        "EulerAncestralDiscreteScheduler": FirstOrder(1.0),
        "HeunDiscreteScheduler": Heun(),
        "LMSDiscreteScheduler": DEIS(3, "kappa", clean_step="full"),
    }[case["scheduler"]]
    compare(case, PATH, solver, times, PATH.coefficients(times[0])[2] * GOLDEN.z)


@scheduled("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
def test_flow(case):
    times = list(dict.fromkeys(GOLDEN.of(case, "out.sigmas").tolist()))
    heun = EDMSampler(schedule="path", scaling="path")  # straight steps in the flow's own time
    solver = heun if "Heun" in case["scheduler"] else FirstOrder()
    compare(case, paths.RectifiedFlow(), solver, times, GOLDEN.z)


@scheduled("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
def test_dpm_2(case):
    """With Karras spacing diffusers steps between exact noise levels, and tells rounded times."""
    told = GOLDEN.of(case, "out.timesteps").tolist()
    times, denoise = told[::2], None
    if case["config"].get("use_karras_sigmas"):
        sigmas = sorted({sigma for sigma in GOLDEN.of(case, "out.sigmas").tolist() if sigma}, reverse=True)
        times, denoise = [PATH.time_at(-math.log(sigma)) for sigma in sigmas], network_told(told)
    solver = solvers.get("dpm-2-ancestral" if "Ancestral" in case["scheduler"] else "dpm-2")
    x = PATH.coefficients(times[0])[2] * GOLDEN.z
    got = result(case, PATH, solver, [*times, -1.0], x, denoise)
    assert_relative(got, GOLDEN.of(case, "out.x"), TOLERANCE)


def network_told(times):
    """The noise network of the recording, told the nearest of these times; alpha-bar is linear between."""

    def level(t):
        low = PATH.coefficients(float(math.floor(t)))[0] ** 2
        high = PATH.coefficients(float(math.ceil(t)))[0] ** 2
        return low + (high - low) * (t - math.floor(t))

    def denoise(x, t):
        square = level(min(times, key=lambda told: abs(told - t)))
        x0 = GOLDEN.mixture().x0(x, square**0.5, (1.0 - square) ** 0.5)
        eps = (x - square**0.5 * x0) / (1.0 - square) ** 0.5
        a, _, sigma = PATH.coefficients(t)
        return (x - sigma * eps) / a

    return denoise
