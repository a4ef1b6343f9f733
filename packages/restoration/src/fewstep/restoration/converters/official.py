"""A published file as the converters see it: read once, averaged weights first, without wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.keys import strip_prefixes
from fewstep.core.weights import CheckpointError, load_state_dict_file

WRAPPERS = ("module.", "_orig_mod.", "ema_model.", "online_model.", "denoising_module.", "model.")
AVERAGED, TRAINED = "ema_model.", "online_model."
# Given to averaged weights that a file holds as a list: they have no names of their own.
NAMELESS = "shadow_params."


@dataclass(frozen=True, eq=False)
class Official:
    """A published file that has been read.

    Args:
        file: which one; its name may say what the weights do not.
        tensors: as it holds them, of the entry that has the averaged weights where there are several.
    """

    file: Path
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, file: str | Path | Official) -> Official:
        """Read a file, unless that has been done; nothing in it is executed.

        Understood are safetensors and torch's own format: plain state dictionaries, those under the usual
        names ("state_dict" of Lightning, "model" and "ema" of trainers), and a list of averaged weights
        ({"ema": {"shadow_params": [...]}}), whose tensors get the names "shadow_params.0", …

        Raises:
            CheckpointError: it is no such file.
        """
        if isinstance(file, Official):
            return file
        path = Path(file)
        try:
            return cls(path, load_state_dict_file(path))
        except CheckpointError:
            listed = _listed(path)
            if listed is None:
                raise
            return cls(path, {f"{NAMELESS}{place}": value for place, value in enumerate(listed)})

    def __str__(self) -> str:
        """The file, for messages."""
        return str(self.file)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The weights without what stands before all names, the averaged ones where there are others too."""
        return without_wrappers(self.tensors)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefixes of training wrappers; of averaged and trained copies, the averaged.

    Example:
        >>> made = without_wrappers({"online_model.w": torch.zeros(1), "ema_model.module.w": torch.ones(1)})
        >>> made["w"].item()
        1.0
    """
    for copy in (AVERAGED, TRAINED):
        chosen = {name: value for name, value in state.items() if name.startswith(copy)}
        if chosen:
            return strip_prefixes(chosen, WRAPPERS)
    return strip_prefixes(state, WRAPPERS)


def _listed(path: Path) -> list[Tensor] | None:
    """The averaged weights of a file that holds them as a list; None of any other file."""
    if not path.is_file() or path.suffix == ".safetensors":
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the usual reader has said what is wrong with it
        return None
    average = content.get("ema") if isinstance(content, Mapping) else None
    values = average.get("shadow_params") if isinstance(average, Mapping) else None
    return values if isinstance(values, list) and all(isinstance(v, Tensor) for v in values) else None
