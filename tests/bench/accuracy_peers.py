"""diffusers' schedulers on the tracks of GM-A, run as a pipeline would."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.core.gm_a import BUDGETS, GOLDEN, MIXTURE, TRACKS, Error

DDPM: Any = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
KARRAS, LU = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}
TRAILING: Any = {"timestep_spacing": "trailing"}
Row = tuple[str, str, dict[int, Error]]


def rows() -> Iterator[Row]:
    """(track, name, errors by budget); the names are those of the stored anchors."""
    import diffusers

    for name, kind, options in (
        ("EDMEuler", "EDMEulerScheduler", {}),
        ("EDMDPMSolverMultistep o2", "EDMDPMSolverMultistepScheduler", {"solver_order": 2}),
        ("EDMDPMSolverMultistep o3", "EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    ):
        scheduler = getattr(diffusers, kind)(**EDM, **options)
        yield "edm", f"diffusers {name}", _each(scheduler, _edm)
    multistep = {"DPMM++": "DPMSolverMultistep", "UniPC": "UniPCMultistep", "DEIS": "DEISMultistep"}
    for spacing, options in (("trailing", TRAILING), ("karras", KARRAS), ("lu_lambdas", LU)):
        for label, kind in multistep.items():
            if spacing == "lu_lambdas" and label != "DPMM++":
                continue
            for order in (2, 3):
                scheduler = getattr(diffusers, f"{kind}Scheduler")(**DDPM, solver_order=order, **options)
                rule = " bh2" if label == "UniPC" else ""
                yield "vp", f"diffusers {label} o{order}{rule} {spacing}", _each(scheduler, _vp)
    plms = diffusers.PNDMScheduler(**DDPM, **TRAILING, skip_prk_steps=True, set_alpha_to_one=True)
    yield "vp", "diffusers PNDM plms trailing", _each(plms, _vp)
    ddim = diffusers.DDIMScheduler(**DDPM, **TRAILING, set_alpha_to_one=True, clip_sample=False)
    yield "vp", "diffusers DDIM trailing", _each(ddim, _vp)
    euler, heun = diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.FlowMatchHeunDiscreteScheduler()
    yield "flow", "diffusers FlowMatchEuler shift1", _each(euler, _flow)
    halves = {budget: (budget + 1) // 2 for budget in BUDGETS}
    yield (
        "flow",
        "diffusers FlowMatchHeun shift1",
        {b: _flow(copy.deepcopy(heun), n) for b, n in halves.items()},
    )


def _each(scheduler: Any, run: Callable[[Any, int], Error]) -> dict[int, Error]:
    return {budget: run(copy.deepcopy(scheduler), budget) for budget in BUDGETS}


def _vp(scheduler: Any, steps: int) -> Error:
    track = TRACKS["vp"]
    scheduler.set_timesteps(steps)
    x = GOLDEN.z
    for t in scheduler.timesteps:
        a, _, sigma = track.path.coefficients(float(t))
        x = _next(scheduler, (x - a * MIXTURE.x0(x, a, sigma)) / sigma, t, x)
    return track.error(x, "clean", len(scheduler.timesteps))


def _edm(scheduler: Any, steps: int) -> Error:
    """The scheduler wants the raw network output of EDM's preconditioning."""
    track, data = TRACKS["edm"], EDM["sigma_data"]
    scheduler.set_timesteps(steps)
    x = track.start
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        norm = sigma**2 + data**2
        scheduler.scale_model_input(x, t)
        raw = (MIXTURE.x0(x, 1.0, sigma) - data**2 / norm * x) * norm**0.5 / (sigma * data)
        x = _next(scheduler, raw, t, x)
    return track.error(x, "clean", steps)


def _flow(scheduler: Any, steps: int) -> Error:
    track = TRACKS["flow"]
    scheduler.set_timesteps(steps)
    x = GOLDEN.z
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        x0 = MIXTURE.x0(x, 1.0 - sigma, sigma)
        x = _next(scheduler, (x - x0) / sigma, t, x)
    return track.error(x, "clean", len(scheduler.timesteps))


def _next(scheduler: Any, out: Tensor, t: Tensor, x: Tensor) -> Tensor:
    return scheduler.step(out, t, x, return_dict=False)[0].double()


def main() -> None:
    """Print how far each live row is from its stored anchor."""
    import json

    from tests.core.goldens import FOLDER

    stored = json.loads((FOLDER / "gm_accuracy.json").read_text())["anchors"]
    for track, name, found in rows():
        anchor = stored.get(f"{track}|{name}")
        gaps = [abs(e.median / anchor[str(b)]["median"] - 1) for b, e in found.items()] if anchor else ["-"]
        print(track, name, *(f"{gap:.1e}" if anchor else gap for gap in gaps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
