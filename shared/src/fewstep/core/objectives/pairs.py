"""Pairs: samples of a model with the seeds of their noise, on disk."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core.bridges.diffusers_folder import DiffusersModel
from fewstep.core.files import atomic_path
from fewstep.core.flow_map import FlowMap
from fewstep.core.guidance import Guided
from fewstep.core.models import DiffusionModel
from fewstep.core.objectives.pair_folder import (
    MANIFEST,
    Manifest,
    Pairs,
    complaint_about,
    labels_of,
    noise_of,
    shard_file,
)
from fewstep.core.sample import sample
from fewstep.core.sampling import Sampling

__all__ = ["ADAPTIVE", "Manifest", "Pairs", "Progress", "make_pairs"]

ADAPTIVE = Sampling("ode", 1, solver="ode45")
"""The probability flow by an adaptive Runge–Kutta method of order 5, tolerances 1e-5, as for reflow."""


@dataclass(frozen=True)
class Progress:
    """How far `make_pairs` is.

    Args:
        done: pairs that are on disk.
        count: of all.
        reused: of them, those that an earlier run had made.
    """

    done: int
    count: int
    reused: int


def make_pairs(
    model: DiffusionModel | DiffusersModel | FlowMap,
    folder: str | File,
    count: int,
    *,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    sampling: Sampling = ADAPTIVE,
    guidance: float = 1.0,
    batch: int = 256,
    shard: int = 4096,
    on_progress: Callable[[Progress], None] | None = None,
) -> "Pairs":
    """Solve a model's ODE from `count` start noises and store what comes out.

    Noise i is what `SampleNoise(seed + i)` draws on the CPU, wherever the model runs, and is not stored. The
    samples of a model with classes have the labels 0, 1, …, 0, 1, … in turn. A run that was stopped goes on
    with the first file that is missing or damaged; each file appears only when it is complete.

    Args:
        model: the teacher; a FlowMap also needs `shape`.
        folder: where the pairs go; made when it is missing.
        count: of pairs.
        seed: of the first.
        shape: of one sample.
        sampling: of kind "ode".
        guidance: scale of classifier-free guidance; 1: none.
        batch: samples that are solved together.
        shard: pairs in a file.
        on_progress: called after every batch.

    Returns:
        The pairs.

    Raises:
        ValueError: an option is out of range, the path has y, or the folder holds pairs made otherwise.
    """
    flow, shape, classes = _source(model, shape)
    if sampling.kind != "ode":
        raise ValueError(f"sampling must be of kind 'ode', got {sampling.kind!r}")
    if min(count, batch, shard) < 1:
        raise ValueError(f"count, batch and shard must be at least 1, got {count}, {batch}, {shard}")
    if guidance != 1 and not classes:
        raise ValueError(f"guidance needs a model with classes, got guidance={guidance}")
    made_by = json.loads(json.dumps({**vars(sampling), "guidance": guidance}))
    manifest = Manifest(shape, count, seed, shard, classes, made_by)
    folder = File(folder)
    _begin(folder, manifest)
    done, reused = 0, 0
    for number in range(manifest.shards):
        size = manifest.size(number)
        if complaint_about(folder, manifest, number) is None:
            reused += size
            done += size
        else:
            parts = []
            for first in range(0, size, batch):
                start = number * shard + first
                indices = range(start, start + min(batch, size - first))
                parts.append(_solve(flow, manifest, indices, sampling, guidance))
                if on_progress is not None:
                    on_progress(Progress(done + first + len(indices), count, reused))
            _write(folder, manifest, number, torch.cat(parts))
            done += size
    if on_progress is not None:
        on_progress(Progress(done, count, reused))
    return Pairs(folder)


def _source(
    model: DiffusionModel | DiffusersModel | FlowMap, shape: tuple[int, ...] | None
) -> tuple[FlowMap, tuple[int, ...], int]:
    if isinstance(model, FlowMap):
        flow, labels = model, ()
        if shape is None:
            raise ValueError("shape must be given with a FlowMap, got None")
    else:
        flow, shape = model.flow_map(), tuple(model.shape)
        labels = model.labels if isinstance(model, DiffusersModel) else model.config.labels
    if flow.path.uses_y:
        raise ValueError(f"pairs are of paths without y, got {flow.path}")
    return flow, tuple(shape), len(labels)


def _begin(folder: File, manifest: Manifest) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).is_file():
        found = Manifest.load(folder)
        for name, value in vars(manifest).items():
            if getattr(found, name) != value:
                raise ValueError(
                    f"{folder} holds pairs with {name} {getattr(found, name)!r}, not {value!r}; "
                    "take another folder"
                )
    else:
        manifest.save(folder)


def _solve(flow: FlowMap, manifest: Manifest, indices: range, sampling: Sampling, guidance: float) -> Tensor:
    path, device = flow.path, _device_of(flow)
    noise, labels = noise_of(manifest, indices).to(device), labels_of(manifest, indices)
    denoise = flow.denoiser if labels is None else flow.given(label=labels.to(device)).denoiser
    if guidance != 1:
        denoise = Guided(denoise, guidance, {"label": float(manifest.classes)})
    times = sampling.grid(path)
    x = path.coefficients(times[0])[2] * noise
    seeds = [manifest.seed + i for i in indices]
    with torch.no_grad():
        return sample(denoise, path, sampling.solver, grid=times, x=x, seed=seeds).half().cpu()


def _write(folder: File, manifest: Manifest, number: int, x0: Tensor) -> None:
    if not bool(x0.isfinite().all()):
        raise ValueError(
            f"samples {number * manifest.shard} and on are not finite in float16; nothing is written"
        )
    with atomic_path(shard_file(folder, number)) as temporary:
        save_file({"x0": x0.contiguous()}, temporary)


def _device_of(flow: FlowMap) -> torch.device:
    parameters = flow.net.parameters() if isinstance(flow.net, nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
