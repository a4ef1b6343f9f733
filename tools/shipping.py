"""What shipping takes in every field: small weights with a card, checked, put in their place whole."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.core.cards import CardFacts
from fewstep.core.training import read_log


def known(name: str, texts: Mapping[str, object]) -> None:
    """Refuse a name that has no texts.

    Raises:
        ValueError: there are none of that name.
    """
    if name not in texts:
        raise ValueError(f"--name: expected one of {', '.join(texts)}, got {name!r}")


def run_length(run: Path) -> tuple[int, float]:
    """Updates and minutes of a training, from its log.

    Args:
        run: folder that holds log.jsonl.
    """
    lines = read_log(run)
    return int(lines[-1]["step"]), max(float(line.get("minutes", 0)) for line in lines)


def put(
    model: Any,
    target: Path,
    card: CardFacts,
    check: Callable[[Path], str],
    dtype: torch.dtype | None = torch.float16,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Store a checkpoint, check it, and only then let it take the place of an older one.

    Args:
        model: a checkpoint of the core.
        target: its folder in the package.
        card: what its card says.
        check: holds what was stored against the model, says how they differ, or raises.
        dtype: of the stored weights (None: as they are).
        beside: further files by name.

    Returns:
        The folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        made, old = Path(folder) / "new", Path(folder) / "old"
        model.save_pretrained(made, dtype=dtype, model_card_kwargs={"facts": card})
        for file, content in (beside or {}).items():
            (made / file).write_bytes(content)
        print(check(made))
        if target.exists():
            target.rename(old)
        made.rename(target)
    print(f"{target}: {megabytes(target):.2f} MB, {sum(p.numel() for p in model.parameters()):,} parameters")
    return target


def megabytes(folder: Path) -> float:
    """Size of all weights below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
