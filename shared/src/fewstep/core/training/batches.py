"""Training batches as a function of their number, which makes resuming, workers and processes exact."""

import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from fewstep.core.training.state import seed_everything

Batch = Any
DrawBatch = Callable[[np.random.Generator], Batch]


@runtime_checkable
class MapDataset(Protocol):
    """What a map-style Dataset has: samples by index and their number."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


class RandomBatches(Dataset):
    """Batch number k of a function that draws batches at random, such as crops of photographs.

    Batch k is drawn with a generator seeded by (seed, rank, k): nothing has to be remembered but k.

    Args:
        draw: makes a batch with the numpy generator that it is given, and with no other source of randomness.
        seed: of the run.
        rank: of this process.
    """

    def __init__(self, draw: DrawBatch, seed: int, rank: int) -> None:
        self.draw, self.seed, self.rank = draw, seed, rank

    def __getitem__(self, k: int) -> Batch:
        return self.draw(np.random.default_rng([self.seed, self.rank, k]))


class DatasetBatches(Dataset):
    """Batch number k of a map-style Dataset visited in a new order in every epoch.

    The epochs' permutations, the same in all processes, follow each other without a gap: batch k of rank r
    holds the batch_size samples from (k·processes + r)·batch_size on of that endless sequence.

    Args:
        dataset: samples by index.
        batch_size: samples per batch and process.
        seed: of the permutations.
        rank: of this process.
        processes: their number.
    """

    def __init__(self, dataset: MapDataset, batch_size: int, seed: int, rank: int, processes: int) -> None:
        if len(dataset) == 0:
            raise ValueError("train_data is an empty dataset")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.processes = rank, processes
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, k: int) -> Batch:
        first = (k * self.processes + self.rank) * self.batch_size
        return default_collate([self.dataset[self._index(first + i)] for i in range(self.batch_size)])

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
            self._epoch = epoch
        return int(self._order[offset])


def make_batches(
    train_data: DrawBatch | MapDataset, batch_size: int, seed: int, rank: int, processes: int
) -> RandomBatches | DatasetBatches:
    """Number the batches of either kind of training data.

    Raises:
        TypeError: train_data is neither a function of a generator nor a map-style Dataset.
    """
    if isinstance(train_data, MapDataset):
        return DatasetBatches(train_data, batch_size, seed, rank, processes)
    if callable(train_data):
        return RandomBatches(train_data, seed, rank)
    raise TypeError(
        "train_data must be a function batches(generator) or a map-style Dataset "
        f"(with __getitem__ and __len__), got {type(train_data).__name__}"
    )


def iterate(batches: RandomBatches | DatasetBatches, start: int, workers: int, seed: int) -> Iterator[Batch]:
    """Batches number start, start + 1, … without end, prepared by `workers` background processes or here."""
    if workers == 0:
        return _count(batches, start)
    # Worker-global generators are seeded per batch: which worker gets which batch is then of no importance.
    numbered = _SeededInWorker(batches, seed)
    loader = DataLoader(
        numbered,
        batch_size=None,
        sampler=_Endless(start),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # or the loader would draw its seed from the global one
    )
    return iter(loader)


def _count(batches: RandomBatches | DatasetBatches, start: int) -> Iterator[Batch]:
    while True:
        yield batches[start]
        start += 1


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches workers too; only the training process may answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Endless(Sampler[int]):
    """The numbers from `start` on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        number = self.start
        while True:
            yield number
            number += 1


class _SeededInWorker(Dataset):
    """Batches whose worker's global generators are seeded by the batch's number."""

    def __init__(self, batches: RandomBatches | DatasetBatches, seed: int) -> None:
        self.batches, self.seed = batches, seed

    def __getitem__(self, k: int) -> Batch:
        seed_everything(self.seed, self.batches.rank, k)
        return self.batches[k]


def to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """Move tensors and arrays, in nested lists, tuples and dictionaries, to a device; the rest is kept."""
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch)
    if isinstance(batch, Tensor):
        if channels_last and batch.ndim == 4:
            return batch.to(device, non_blocking=True, memory_format=torch.channels_last)
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device, channels_last) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device, channels_last) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device, channels_last) for value in batch)
    return batch
