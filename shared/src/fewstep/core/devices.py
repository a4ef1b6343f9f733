"""Where a network runs, in which precision, and how much memory it may take."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_CPU_BUDGET = 1e9


def pick_device(name: str = "auto") -> torch.device:
    """Choose a device.

    Args:
        name: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1", "mps" …

    Returns:
        The device.

    Raises:
        ValueError: no such device here.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device: {name!r} cannot be used; there is {', '.join(_here())}") from error
    if device.type == "meta":
        raise ValueError("device: 'meta' computes nothing")
    return device


def _here() -> list[str]:
    have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*have, "mps"] if torch.backends.mps.is_available() else have


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Choose what a network computes in.

    Args:
        name: "float32", "bfloat16", "float16" (or "fp32", "bf16", "fp16"), or "auto": bfloat16 on a CUDA
            device that has it, float32 elsewhere.
        device: where it runs.

    Returns:
        The type.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    name = _SHORT.get(name, name)
    if name not in DTYPES:
        raise ValueError(f"dtype: {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def memory_budget(device: torch.device) -> float:
    """Return how much memory windows may take: half of what is free on a CUDA device, a gigabyte elsewhere.

    Args:
        device: where the network runs.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    return _CPU_BUDGET
