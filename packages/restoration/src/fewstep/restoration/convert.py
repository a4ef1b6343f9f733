"""Official checkpoints made into our models, whatever system they are of."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.weights import CheckpointError

from .converters import idm, irsde, oftsr, rddm, resfusion, resshift
from .converters.official import Official
from .methods.base import RestorationModel

__all__ = ["SYSTEMS", "System", "from_official", "recognised", "system_of"]
SHOWN = 4


@dataclass(frozen=True)
class System:
    """A published system.

    Args:
        name: as its authors write it.
        recognises: whether weights by name are its network's.
        convert: makes our model of a file.
    """

    name: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[..., RestorationModel]

    @property
    def options(self) -> tuple[str, ...]:
        """What can be said about a file beside the weights."""
        return tuple(inspect.signature(self.convert).parameters)[1:]


SYSTEMS = (
    System("ResShift", resshift.recognises, resshift.from_official),
    System("RDDM", rddm.recognises, rddm.from_official),
    System("Resfusion", resfusion.recognises, resfusion.from_official),
    System("IR-SDE or Refusion", irsde.recognises, irsde.from_official),
    System("OFTSR", oftsr.recognises, oftsr.from_official),
    System("IDM", idm.recognises, idm.from_official),
)


def from_official(
    file: str | Path, autoencoder: str | Path | None = None, **options: Any
) -> RestorationModel:
    """Load a published model of any of the systems, which is told from names and shapes of its weights.

    The file is read once; averaged weights are preferred, and trainers' and Lightning's layouts understood.
    Nothing in it is executed.

    Args:
        file: the network.
        autoencoder: the file of the autoencoder that goes with it: ResShift's, or latent Refusion's.
        options: what the weights do not say, as the `from_official` of the system's converter takes it:
            `steps` (ResShift, IR-SDE), `max_sigma` (IR-SDE), `objective` (RDDM), `ratio` (IDM), `tasks`, …

    Returns:
        The model, in evaluation mode; `save_pretrained` writes it in our own format.

    Raises:
        CheckpointError: a file that cannot be read, or is of none of the systems.
        TypeError: an option that the system's converter has not.
        ValueError: something that the weights do not say, and the converter has to be told, is missing.
    """
    official = Official.of(file)
    system = system_of(official)
    if autoencoder is not None:
        options["autoencoder"] = autoencoder
    elif system.name == "ResShift":
        raise ValueError(
            f"autoencoder must be given: {file} is of ResShift, whose autoencoder is a file of its own"
        )
    unknown = [name for name in options if name not in system.options]
    if unknown:
        raise TypeError(
            f"{unknown[0]} cannot be said of {file}, which is of {system.name}; "
            f"what can be: {', '.join(system.options)}"
        )
    return system.convert(official, **options)


def system_of(official: Official) -> System:
    """The system that a file is of.

    Raises:
        CheckpointError: it is of none.
    """
    found = recognised(official.state)
    if not found:
        names = ", ".join(list(official.state)[:SHOWN])
        known = ", ".join(system.name for system in SYSTEMS)
        raise CheckpointError(f"{official} is of none of {known}; its weights are called {names}, …")
    return found[0]


def recognised(state: Mapping[str, Tensor]) -> list[System]:
    """The systems whose network has weights of these names: one of them or none."""
    return [system for system in SYSTEMS if system.recognises(state)]
