"""Time that a sampler adds to each network call, beside the samplers that people use instead.

The network returns the same tensor every time, so the sampler alone is measured. All run in one process on
one thread. CPU time of the thread is the figure to read on a busy machine; wall time is printed beside it.

    python tests/bench/bench_sampler_overhead.py [--json results.json] [--repeats 200]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path as File

import torch

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.run import run
from fewstep.core.sample import sample
from fewstep.core.schedule import schedule

Prepare = Callable[[], Callable[[], object]]

STEPS = 20
OURS = ("ddim", "dpmpp-2m", "dpmpp-3m", "dpm-3m", "lambda-ab-2", "ghvb", "unipc-2", "unipc-3")
Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = ((1, 4, 64, 64), (4, 3, 256, 256))
TARGETS: dict[Shape, float] = {SHAPES[0]: 10.0, SHAPES[1]: 200.0}  # microseconds a step


@dataclass
class Result:
    """Microseconds a step."""

    name: str
    shape: Shape
    cpu_min: float
    cpu_median: float
    wall_min: float
    wall_median: float


class Constant:
    """A denoiser with a free network."""

    y = None

    def __init__(self, path: paths.Path, prediction: str, out: torch.Tensor) -> None:
        self.path, self.prediction, self.out = path, predictions.get(prediction), out

    def predict(self, x, t):
        return self.out

    def __call__(self, x, t):
        return self.out


def measure(name: str, shape: Shape, prepare: Callable[[], Callable[[], object]], repeats: int) -> Result:
    """Time what `prepare` returns; `prepare` itself (a peer's time steps and buffers) is not counted."""
    cpu, wall = [], []
    for _ in range(repeats + 3):
        work = prepare()
        start, start_wall = time.thread_time_ns(), time.perf_counter_ns()
        work()
        cpu.append((time.thread_time_ns() - start) / STEPS / 1e3)
        wall.append((time.perf_counter_ns() - start_wall) / STEPS / 1e3)
    cpu, wall = cpu[3:], wall[3:]
    return Result(name, shape, min(cpu), statistics.median(cpu), min(wall), statistics.median(wall))


def ours(shape: Shape):
    """(name, prepare) of our samplers; buffers are made inside the timed call."""
    x, out = torch.randn(shape), torch.randn(shape)
    for prediction, path in (("x0", paths.EDM()), ("eps", paths.VP.from_betas(_betas()))):
        grid = grids.karras(path, STEPS) if prediction == "x0" else grids.trailing(path, STEPS)
        network = Constant(path, prediction, out)
        for solver in OURS:
            plan = solvers.get(solver).compile(path, grid).folded(network.prediction)
            yield f"fewstep {solver}, {prediction}", lambda p=plan, n=network: lambda: run(p, n.predict, x)
        yield (
            f"fewstep sample(dpmpp-2m), {prediction}",
            lambda n=network, g=grid: lambda: sample(n, solver="dpmpp-2m", grid=g, x=x),
        )


def diffusers(shape: Shape):
    """(name, prepare) of the schedulers of diffusers, if it is installed."""
    try:
        from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
    except ImportError:
        print("diffusers is not installed: left out")
        return
    x, out = torch.randn(shape), torch.randn(shape)
    for kind, order, name in (
        (DPMSolverMultistepScheduler, 2, "DPM++2M"),
        (DPMSolverMultistepScheduler, 3, "DPM++3M"),
        (UniPCMultistepScheduler, 2, "UniPC-2"),
        (UniPCMultistepScheduler, 3, "UniPC-3"),
        (DEISMultistepScheduler, 3, "DEIS-3"),
    ):
        scheduler = kind(beta_start=1e-4, beta_end=0.02, solver_order=order, timestep_spacing="trailing")

        def prepare(scheduler=scheduler):
            scheduler.set_timesteps(STEPS)
            return lambda: _loop(scheduler, x, out)

        yield f"diffusers {name}, eps", prepare


def _loop(scheduler, x, out):
    for t in scheduler.timesteps:
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return x


def k_diffusion(shape: Shape):
    """(name, prepare) of k-diffusion's 2M, if it is installed."""
    try:
        from k_diffusion.sampling import get_sigmas_karras, sample_dpmpp_2m  # type: ignore[import]
    except ImportError:
        print("k-diffusion is not installed: left out")
        return
    x, out, sigmas = torch.randn(shape), torch.randn(shape), get_sigmas_karras(STEPS, 0.002, 80.0)
    yield (
        "k-diffusion DPM++2M, x0",
        lambda: lambda: sample_dpmpp_2m(lambda x, s: out, x, sigmas, disable=True),
    )


def compile_times(repeats: int) -> dict[str, float]:
    """Milliseconds to compile, fold and schedule 50 steps (least of many)."""
    found = {}
    for solver in (*OURS, "heun"):
        parts = []
        for _ in range(max(10, repeats // 5)):
            path = paths.VP.linear()  # new, so that it remembers nothing
            grid = grids.logsnr(path, 50)
            start = time.thread_time()
            plan = solvers.get(solver).compile(path, grid)
            middle = time.thread_time()
            schedule(plan.folded(predictions.get("eps")), observed=False)
            parts.append((middle - start, time.thread_time() - start))
        found[f"{solver}: compile"] = 1e3 * min(part[0] for part in parts)
        found[f"{solver}: compile, fold and schedule"] = 1e3 * min(part[1] for part in parts)
    return found


def _betas() -> list[float]:
    return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()


def report(results: list[Result], shape: Shape) -> None:
    """Print one size as a table with the ratio of every peer to ours."""
    rows = [r for r in results if r.shape == shape]
    base = {r.name: r.cpu_min for r in rows}
    print(f"\n{'x'.join(map(str, shape))}: microseconds a step, target {TARGETS[shape]:g}")
    print(f"{'':34}{'CPU min':>9}{'median':>9}{'wall min':>10}{'median':>9}   times ours")
    for r in rows:
        ratio = ""
        if not r.name.startswith("fewstep"):
            kind = "unipc-" if "UniPC" in r.name else "dpmpp-"
            other = "3" if "3" in r.name.split(",")[0] else "2"
            mine = f"fewstep {kind}{other}{'m' if kind == 'dpmpp-' else ''}, {r.name.rsplit(' ', 1)[-1]}"
            ratio = f"{r.cpu_min / base[mine]:.1f} x {mine.removeprefix('fewstep ')}"
        print(
            f"{r.name:34}{r.cpu_min:9.1f}{r.cpu_median:9.1f}{r.wall_min:10.1f}{r.wall_median:9.1f}   {ratio}"
        )


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--json", type=File, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=200, help="at the small size; a tenth at the large")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    results: list[Result] = []
    for shape in SHAPES:
        repeats = options.repeats if shape == SHAPES[0] else max(5, options.repeats // 10)
        for family in (ours, diffusers, k_diffusion):
            results += [measure(name, shape, prepare, repeats) for name, prepare in family(shape)]
        report(results, shape)
    times = compile_times(options.repeats)
    print("\ncompile time for 50 steps, milliseconds (target 2)")
    for name, value in times.items():
        print(f"{name:44}{value:6.2f}")
    if options.json:
        content = {
            "steps": STEPS,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "results": [asdict(result) for result in results],
            "compile_ms": times,
        }
        options.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
