"""Memory of training IDM end to end through T steps, with and without the invertible backward pass.

    python -m tests.bench.bench_idm_memory [--steps 1 2 4 …] [--patch 64] [--network small]

"Held" is the largest number of bytes that autograd holds for backward at any moment of a training step,
forward and backward, counted by its own hooks (each storage once, weights not at all): what grows with T.
"Peak" is what the process itself needed at most beyond what it had before the step (resident memory, in a
process of its own for every row; on a CUDA device, the allocator's peak).
"""

import argparse
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil
import torch
from torch import Tensor

from fewstep.restoration.compressed_sensing import measure
from fewstep.restoration.methods.idm import IDM, MEMORY, IDMConfig

NETWORKS = {
    "tiny": IDMConfig(ratio=0.25, channels=(16, 32), heads=2, groups=8, attention=(True, True)),
    "small": IDMConfig(ratio=0.25, channels=(32, 64), attention=(False, False), normalised=False),
    "published": IDMConfig(ratio=0.25),
}
MIB = 2**20


class Box:
    """What a hook gives autograd in place of a tensor, so that its end can be seen."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Held:
    """Bytes held for backward, now and at most; storages of weights are not counted."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.ignored = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.count: dict[int, int] = {}
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Box:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        box = Box(tensor)
        if place not in self.ignored:
            if self.count.get(place, 0) == 0:
                self.now += size
                self.most = max(self.most, self.now)
            self.count[place] = self.count.get(place, 0) + 1
            weakref.finalize(box, self.drop, place, size)
        return box

    def drop(self, place: int, size: int) -> None:
        self.count[place] -= 1
        if self.count[place] == 0:
            self.now -= size

    @staticmethod
    def unpack(box: Box) -> Tensor:
        return box.tensor


@contextmanager
def resident_peak() -> Iterator[list[int]]:
    """Most bytes beyond those at the start, watched a thousand times a second."""
    process, found, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.is_set():
            found[0] = max(found[0], process.memory_info().rss - before)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def training_step(model: IDM, x: Tensor, memory: str) -> None:
    """Forward and backward; gradients are thrown away."""
    taken = measure(x.cpu(), model.config.ratio, block=model.config.block)
    loss = (model(taken.values.to(x), taken.sensing.to(x), memory=memory) - x).abs().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)


def row(network: str, steps: int, memory: str, patch: int, batch: int, device: str) -> dict[str, float]:
    """One measurement, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = IDM(replace(NETWORKS[network], steps=steps)).to(device)
    x = torch.rand(batch, 1, patch, patch, device=device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training_step(model, x, memory)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with resident_peak() as found:
            training_step(model, x, memory)
        peak = found[0]
    held = Held(model)
    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, held.unpack):
        training_step(model, x, memory)
    return {"held": held.most / MIB, "peak": peak / MIB, "seconds": time.process_time() - start}


def report(rows: dict[int, dict[str, dict[str, float]]]) -> str:
    """A Markdown table, with the growth per step by a straight line through the first and last row."""
    first, last = min(rows), max(rows)
    head = " | ".join(f"{name}: held MiB | peak MiB | CPU s" for name in MEMORY)
    lines = [f"| T | {head} |", "|" + " --- |" * (1 + 3 * len(MEMORY))]
    for steps, row in sorted(rows.items()):
        cells = (f"{row[m]['held']:.1f} | {row[m]['peak']:.0f} | {row[m]['seconds']:.2f}" for m in MEMORY)
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    if last == first:
        return "\n".join(lines)
    for unit in ("held", "peak"):
        growth = {m: (rows[last][m][unit] - rows[first][m][unit]) / (last - first) for m in MEMORY}
        saved = {m: 100 * (1 - growth[m] / growth["keep"]) for m in MEMORY}
        parts = ", ".join(f"{m} {growth[m]:.2f} MiB ({saved[m]:.1f} % less)" for m in MEMORY)
        at_last = 100 * (1 - rows[last]["all"][unit] / rows[last]["keep"][unit])
        lines.append(f"\nGrowth of {unit} per step: {parts}. At T = {last}, all: {at_last:.1f} % less.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--one", choices=MEMORY, help="measure one row in this process and print it as JSON")
    given = parser.parse_args()
    if given.one:
        found = row(given.network, given.steps[0], given.one, given.patch, given.batch, given.device)
        print(json.dumps(found))
        return
    rows: dict[int, dict[str, dict[str, float]]] = {}
    for steps in given.steps:
        for memory in MEMORY:
            command = [sys.executable, "-m", "tests.bench.bench_idm_memory", "--one", memory]
            command += ["--steps", str(steps), "--network", given.network, "--device", given.device]
            command += ["--patch", str(given.patch), "--batch", str(given.batch)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.setdefault(steps, {})[memory] = json.loads(answer.stdout.splitlines()[-1])
            print(f"T = {steps}, {memory}: {rows[steps][memory]}", file=sys.stderr, flush=True)
    print(report(rows))


if __name__ == "__main__":
    main()
