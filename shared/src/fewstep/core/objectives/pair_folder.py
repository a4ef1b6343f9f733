"""A folder of pairs: what stands in it, and the dataset that reads it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.core.files import atomic_path
from fewstep.core.noise import SampleNoise

MANIFEST = "pairs.json"


@dataclass(frozen=True)
class Manifest:
    """What a folder of pairs holds, its `pairs.json`.

    Args:
        shape: of one sample.
        count: of pairs.
        seed: of the first; pair i has the noise of seed + i.
        shard: pairs in a file (fewer in the last one).
        classes: labels go around 0 … classes − 1; 0: there are none.
        made_by: solver, steps and so on.
    """

    shape: tuple[int, ...]
    count: int
    seed: int
    shard: int
    classes: int
    made_by: dict[str, Any]

    @classmethod
    def load(cls, folder: File) -> "Manifest":
        """Read a folder's.

        Raises:
            ValueError: there is none, or it cannot be read.
        """
        file = folder / MANIFEST
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{**values, "shape": tuple(values["shape"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{folder} is no folder of pairs: {file.name} cannot be read ({error})"
            ) from error

    def save(self, folder: File) -> None:
        """Write it."""
        with atomic_path(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(vars(self), indent=2) + "\n", encoding="utf-8")

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.count // self.shard)

    def size(self, shard: int) -> int:
        """Pairs in a file."""
        return min(self.shard, self.count - shard * self.shard)


class Pairs:
    """A folder of pairs as a map-style dataset of {"x0", "noise"[, "label"]}.

    x0 is stored in float16 and given in float32. A file is opened when it is first needed.

    Args:
        folder: what `make_pairs` wrote.

    Raises:
        ValueError: it is no such folder, or a file is missing or damaged; the message names it.
    """

    def __init__(self, folder: str | File) -> None:
        self.folder = File(folder)
        self.manifest = Manifest.load(self.folder)
        for number in range(self.manifest.shards):
            complaint = complaint_about(self.folder, self.manifest, number)
            if complaint is not None:
                raise ValueError(
                    f"{complaint}; make the pairs again with the same options to mend the folder"
                )

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0 … {len(self) - 1}, got {index}")
        number, row = divmod(index, self.manifest.shard)
        x0 = self._file(number).get_slice("x0")[row].float()
        return {"x0": x0, **self._other([index], squeeze=True)}

    def tensors(self) -> dict[str, Tensor]:
        """All pairs in memory, kept for later calls."""
        return self._all

    def batches(self, size: int) -> Callable[[np.random.Generator], dict[str, Tensor]]:
        """A Trainer's function of batches: `size` random pairs of those in memory, fast for small samples."""
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")

        def draw(generator: np.random.Generator) -> dict[str, Tensor]:
            chosen = torch.from_numpy(generator.integers(len(self), size=size))
            return {name: value[chosen] for name, value in self.tensors().items()}

        return draw

    @cached_property
    def _all(self) -> dict[str, Tensor]:
        files = [self._file(number).get_tensor("x0") for number in range(self.manifest.shards)]
        return {"x0": torch.cat(files).float(), **self._other(range(len(self)), squeeze=False)}

    def _other(self, indices: Sequence[int], squeeze: bool) -> dict[str, Tensor]:
        noise, labels = noise_of(self.manifest, indices), labels_of(self.manifest, indices)
        found = {"noise": noise} if labels is None else {"noise": noise, "label": labels}
        return {name: value[0] for name, value in found.items()} if squeeze else found

    def _file(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = safe_open(shard_file(self.folder, number), "pt")
        return self._open[number]

    @cached_property
    def _open(self) -> dict[int, Any]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot go to another process; it opens its own.
        return {name: value for name, value in vars(self).items() if name != "_open"}


def noise_of(manifest: Manifest, indices: Sequence[int]) -> Tensor:
    """The start noise of some pairs, drawn again from their seeds."""
    seeds = [manifest.seed + i for i in indices]
    noise = torch.empty(len(seeds), *manifest.shape)
    SampleNoise(seeds, len(seeds)).fill(noise)
    return noise


def labels_of(manifest: Manifest, indices: Sequence[int]) -> Tensor | None:
    """The labels of some pairs; None: there are no classes."""
    return torch.tensor([i % manifest.classes for i in indices]) if manifest.classes else None


def shard_file(folder: File, number: int) -> File:
    return folder / f"pairs-{number:05d}.safetensors"


def complaint_about(folder: File, manifest: Manifest, number: int) -> str | None:
    """What is wrong with a file; None: nothing."""
    file = shard_file(folder, number)
    if not file.is_file():
        return f"{file} is missing"
    try:
        with safe_open(file, "pt") as opened:
            shape = tuple(opened.get_slice("x0").get_shape())
    except (SafetensorError, OSError) as error:
        return f"{file} is damaged ({error})"
    wanted = (manifest.size(number), *manifest.shape)
    return None if shape == wanted else f"{file} holds x0 of shape {shape}, not {wanted}"
