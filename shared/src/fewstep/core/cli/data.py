"""Real samples from a file or a folder, as one tensor."""

from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.cli.inputs import expand

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


def read_samples(name: str, shape: Sequence[int]) -> Tensor:
    """Return the samples that a file, folder or pattern holds, shape (count, *shape), float32.

    Arrays (.npy, .npz, .safetensors; samples first) are taken as they are. Images become values in [−1, 1]
    and must have the size of a sample; they need Pillow.

    Args:
        name: file, folder or pattern.
        shape: of one sample, (channels, height, width).

    Raises:
        ValueError: if a file is missing, is of another kind or shape, or holds values that are not finite.
    """
    readers: dict[str, Callable[[Path, Sequence[int]], Tensor]] = {
        ".npy": _npy,
        ".npz": _npz,
        ".safetensors": _safetensors,
        **dict.fromkeys(IMAGES, _image),
    }
    sources, problems = expand([name], readers, recursive=True)
    if problems:
        raise ValueError(f"{problems[0].name} {problems[0].message}")
    parts = []
    for source in sources:
        reader = readers.get(source.path.suffix.lower())
        if reader is None:
            raise ValueError(f"{source.path} is not of a known kind: {', '.join(sorted(readers))}")
        try:
            part = reader(source.path, shape)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{source.path} cannot be read: {error}") from error
        if tuple(part.shape[1:]) != tuple(shape):
            got, wanted = tuple(part.shape[1:]), tuple(shape)
            raise ValueError(f"{source.path} holds samples of shape {got}, the model makes {wanted}")
        if not bool(part.isfinite().all()):
            raise ValueError(f"{source.path} holds values that are not finite")
        parts.append(part)
    return torch.cat(parts)


def _npy(file: Path, shape: Sequence[int]) -> Tensor:
    return _samples(np.load(file, allow_pickle=False), shape)


def _npz(file: Path, shape: Sequence[int]) -> Tensor:
    with np.load(file, allow_pickle=False) as arrays:
        return _samples(_only(dict(arrays)), shape)


def _safetensors(file: Path, shape: Sequence[int]) -> Tensor:
    return _samples(_only({name: value.float().numpy() for name, value in load_file(file).items()}), shape)


def _only(arrays: dict[str, np.ndarray]) -> np.ndarray:
    if len(arrays) != 1:
        raise ValueError(f"it must hold one array, it holds {', '.join(sorted(arrays)) or 'none'}")
    return next(iter(arrays.values()))


def _samples(array: np.ndarray, shape: Sequence[int]) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype}, not numbers")
    found = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    return found[None] if found.ndim == len(shape) else found


def _image(file: Path, shape: Sequence[int]) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("images need Pillow (pip install pillow)") from error
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"), np.float32)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels / 127.5 - 1.0))[None]
