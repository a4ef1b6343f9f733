"""Guidance, inverse problems and compute savers on a trained network: the digits that the core ships.

    python -m tests.bench.bench_guidance guidance | posterior | inverse | regions
    python -m tests.bench.bench_guidance exits --weights runs/exits.safetensors --minutes 8

Distances are Fréchet distances of raw pixels to all 1,797 pictures (two halves of them: 0.29), accuracy is
that of a support-vector machine that is right on 99.3 % of the pictures it was not trained on, computing time
is that of the process. `exits` trains further what the file holds, then measures.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from tools.train_digits import TRAINING_PICTURES, digits
from torch import Tensor

from fewstep.core import Denoiser, guidance, paths, sample
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import DiT
from fewstep.core.savers.early_exit import EarlyExit, exit_losses
from fewstep.core.savers.region_adaptive import RegionAdaptive

COUNT = 300


class Bench:
    """The model, the data, and what is measured."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.pictures, self.labels = digits()
        self.flat = self.pictures.flatten(1).numpy()
        self.judge = SVC(C=10.0).fit(self.flat[:TRAINING_PICTURES], self.labels[:TRAINING_PICTURES].numpy())
        self.model = DiffusionModel.from_pretrained("digits").eval()
        self.wanted = torch.arange(COUNT) % 10
        noise = torch.randn(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.start = noise * self.model.path.coefficients(self.model.path.t_max)[2]
        self.denoise = self.model.denoiser(label=self.wanted)
        self.free = self.model.denoiser(label=self.model.null_label)

    def sample(self, denoise, solver="ddim", steps=20, **options) -> Tensor:
        return sample(denoise, solver=solver, steps=steps, grid="karras", x=self.start, **options)

    def quality(self, x: Tensor) -> str:
        right = np.mean(self.judge.predict(x.flatten(1).numpy()) == self.wanted.numpy())
        return f"{frechet(x.flatten(1).numpy(), self.flat):.2f} | {100 * right:.1f} %"


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """|mean - mean'|² + tr(C + C' - 2·(C·C')^½)."""
    (values, vectors), other = np.linalg.eigh(np.cov(x, rowvar=False)), np.cov(y, rowvar=False)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + values.sum() + np.trace(other) - 2 * shared)


def rms(gap: Tensor) -> float:
    return float(gap.square().mean().sqrt())


def measure_guidance(bench: Bench) -> None:
    """Distance and accuracy of 20 DDIM steps."""
    linear = LogisticRegression(max_iter=2000).fit(
        bench.flat[:TRAINING_PICTURES], bench.labels[:TRAINING_PICTURES].numpy()
    )
    weight, bias = (torch.tensor(part, dtype=torch.float32) for part in (linear.coef_, linear.intercept_))

    def logits(x0: Tensor) -> Tensor:
        return x0.flatten(1) @ weight.T + bias

    def log_prob(x: Tensor, t: float) -> Tensor:
        sigma = float(t)
        each = (logits(x / (1 + sigma**2)) / (1 + sigma)).log_softmax(1)
        return each.gather(1, bench.wanted[:, None]).squeeze(1)

    null = {"label": bench.model.null_label}
    rows = {
        "no label": bench.free,
        "`ClassifierGuided(scale=3)`, linear classifier": guidance.ClassifierGuided(
            bench.free, log_prob, 3.0
        ),
        "with label": bench.denoise,
        "`ConfusionGuided(scale=3)`, linear classifier": guidance.ConfusionGuided(bench.denoise, logits, 3.0),
        "`Guided(scale=3)`": guidance.Guided(bench.denoise, 3.0, null),
        "`Guided(scale=3, rescale=0.7)`": guidance.Guided(bench.denoise, 3.0, null, rescale=0.7),
        "`Guided(scale=3, interval=(0.2, 2))`": guidance.Guided(
            bench.denoise, 3.0, null, interval=(0.2, 2.0)
        ),
    }
    print("| | Fréchet distance | right label |\n| --- | --- | --- |")
    for name, denoise in rows.items():
        print(f"| {name} | {bench.quality(bench.sample(denoise))} |", flush=True)

    print("\n| 10 steps of dpmpp-2m, scale 6 | Fréchet distance | right label |\n| --- | --- | --- |")
    for name, interval in (("everywhere", None), ("interval (0.2, 2)", (0.2, 2.0))):
        denoise = guidance.Guided(bench.denoise, 6.0, null, interval=interval)
        print(f"| {name} | {bench.quality(bench.sample(denoise, 'dpmpp-2m', 10))} |", flush=True)


def measure_posterior(bench: Bench) -> None:
    """DDNM+ on unit normal data of which the mean of four values was seen: 0.8 with noise 0.25, so 0.64."""
    path = paths.EDM()
    operator, observed = guidance.AveragePool(2), torch.full((4096, 1, 1, 1), 0.8)

    def normal(x: Tensor, t: float | Tensor) -> Tensor:
        return x / (1 + torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2)

    print("| | mean of the result |\n| --- | --- |")
    for steps in (20, 100):
        solver = guidance.NoisyRangeNull(operator, observed, 0.25)
        x = sample(normal, path, solver, steps, "karras", shape=(4096, 1, 2, 2))
        print(f"| DDNM+, {steps} steps | {float(x.mean()):.2f} |", flush=True)


def measure_inverse(bench: Bench) -> None:
    """Error against the truth and inconsistency, 300 pictures that the network was not trained on."""
    truth = bench.pictures[TRAINING_PICTURES:]
    known = torch.ones(1, 8, 8)
    known[:, 2:6, 2:6] = 0
    print(
        "| | hole of 4×4: error | inconsistency | 2×2 means: error | inconsistency |\n" + "| --- " * 5 + "|"
    )
    tasks = (guidance.Mask(known), 1.0), (guidance.AveragePool(2), 3.0)

    def row(name: str, run) -> None:
        cells = []
        for operator, scale in tasks:
            observed = operator.forward(truth)
            x = run(operator, observed, scale)
            cells += [f"{rms(x - truth):.3f}", f"{rms(operator.forward(x) - observed):.0e}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)

    path = bench.model.path
    row("unguided", lambda o, y, s: bench.sample(bench.free))
    row("A⁺y", lambda o, y, s: o.pseudo_inverse(y))

    def range_null(solver: str, steps: int):
        return lambda o, y, s: bench.sample(guidance.RangeNull(bench.free, o, y), solver, steps)

    def hooked(solver: str, make):
        return lambda o, y, s: bench.sample(bench.free, solver, on_step=make(o, y, s))

    row("`RangeNull`, `ancestral`", range_null("ancestral", 20))
    row(
        "mean of 4 of these",
        lambda o, y, s: torch.stack(
            [bench.sample(guidance.RangeNull(bench.free, o, y), "ancestral", seed=1000 * i) for i in range(4)]
        ).mean(0),
    )
    row("`RangeNull`, `dpmpp-2m`, 10 calls", range_null("dpmpp-2m", 10))
    row("`Replacement`, `ancestral`", hooked("ancestral", lambda o, y, s: guidance.Replacement(o, y, path)))
    row('`Steering(…, "sum")`, `ddim`', hooked("ddim", lambda o, y, s: guidance.Steering(o, y, s, "sum")))


def measure_regions(bench: Bench) -> None:
    """Region-adaptive sampling in 30 Euler steps, against fewer steps of the whole network."""
    print("| | computed | distance | right label | RMS to all tokens | seconds |\n" + "| --- " * 6 + "|")
    whole = torch.empty(0)
    for steps in (30, 24, 18, 12):
        start = time.process_time()
        x = bench.sample(bench.denoise, steps=steps)
        whole = x if steps == 30 else whole
        cost = f"{100 * steps / 30:.0f} %"
        print(f"| all tokens, {steps} steps | {cost} | {bench.quality(x)} | {rms(x - whole):.3f} | "
              f"{time.process_time() - start:.1f} |", flush=True)  # fmt: skip
    for ratio in (0.75, 0.5, 0.25):
        for variant in ("exact", "official"):
            saver = RegionAdaptive(bench.denoise, ratio, metric="norm", variant=variant)
            start = time.process_time()
            x = bench.sample(saver, steps=30)
            print(f"| ratio {ratio}, {variant} | {100 * saver.computed:.0f} % | {bench.quality(x)} | "
                  f"{rms(x - whole):.3f} | {time.process_time() - start:.1f} |", flush=True)  # fmt: skip


def measure_exits(bench: Bench, weights: Path, minutes: float) -> None:
    """Exits trained beside the frozen network, in 10 calls of dpmpp-2m."""
    model = bench.model.net
    assert isinstance(model, DiT)
    net = EarlyExit(model).requires_grad_(False)
    for layers in (net.adapters, net.doubts):
        layers.requires_grad_(True)
    steps = 0
    if weights.exists():
        kept = load_file(weights)
        steps = int(kept.pop("steps"))
        net.load_state_dict(kept, strict=False)
    steps = train_exits(bench, net, steps, minutes)
    exits = {name: value for name, value in net.state_dict().items() if not name.startswith("model.")}
    save_file({**exits, "steps": torch.tensor(steps)}, weights)
    print(f"{steps} updates\n\n| threshold | blocks of 6 | distance | right label | RMS | seconds |")
    print("| --- " * 6 + "|")
    denoise = Denoiser(net, bench.model.path, bench.model.config.prediction).given(label=bench.wanted)
    whole = None
    for net.threshold in (0.0, 0.05, 0.08, 0.12, 0.16, 0.2):
        net.reset()
        start = time.process_time()
        x = bench.sample(denoise, "dpmpp-2m", 10)
        whole = x if whole is None else whole
        print(f"| {net.threshold} | {net.blocks_used:.2f} | {bench.quality(x)} | {rms(x - whole):.3f} | "
              f"{time.process_time() - start:.1f} |", flush=True)  # fmt: skip


def train_exits(bench: Bench, net: EarlyExit, steps: int, minutes: float) -> int:
    """Train the exits towards the full network's own value; the number of updates so far."""
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 2e-3)
    generator, path, end = torch.Generator().manual_seed(steps), bench.model.path, time.time() + 60 * minutes
    while time.time() < end:
        chosen = torch.randint(TRAINING_PICTURES, (64,), generator=generator)
        sigma = (torch.randn(64, generator=generator) * 1.6 - 0.4).exp().clamp(0.002, 80.0).double()
        x0 = bench.pictures[chosen]
        x = path.corrupt(x0, sigma, torch.randn(x0.shape, generator=generator))
        x = x * path.input_scale_at(sigma).float().view(-1, 1, 1, 1)
        t, label = path.network_time_at(sigma).float(), bench.labels[chosen]
        losses = exit_losses(net, x, t, bench.model.net(x, t, label), label)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        steps += 1
    return steps


def main() -> None:
    """Measure one part and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("guidance", "posterior", "inverse", "regions", "exits"))
    parser.add_argument("--weights", type=Path, default=Path("runs/exits.safetensors"))
    parser.add_argument("--minutes", type=float, default=8.0)
    arguments = parser.parse_args()
    bench = Bench()
    if arguments.part == "exits":
        measure_exits(bench, arguments.weights, arguments.minutes)
        return
    parts = {
        "guidance": measure_guidance,
        "posterior": measure_posterior,
        "inverse": measure_inverse,
        "regions": measure_regions,
    }
    parts[arguments.part](bench)


if __name__ == "__main__":
    main()
