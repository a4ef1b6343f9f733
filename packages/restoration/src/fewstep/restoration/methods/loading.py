"""From the name of a checkpoint to the model of the method that it belongs to."""

import json
from pathlib import Path

from fewstep.core.checkpoints import CLASS_FIELD, CONFIG, resolve
from fewstep.core.weights import CheckpointError

from .base import RestorationModel
from .denoising_sde import DenoisingSDE
from .idm import IDM
from .irsde import IRSDE
from .oftsr import OFTSR
from .rddm import RDDM
from .resfusion import Resfusion
from .resshift import ResShift
from .training_free import TrainingFree
from .tunable_resshift import TunableResShift

METHODS: dict[str, type[RestorationModel]] = {
    "resshift": ResShift,
    "tunable-resshift": TunableResShift,
    "rddm": RDDM,
    "resfusion": Resfusion,
    "irsde": IRSDE,
    "denoising-sde": DenoisingSDE,
    "oftsr": OFTSR,
    "training-free": TrainingFree,
    "idm": IDM,
}


def load_model(name: str | Path) -> RestorationModel:
    """Load a model: a name that ships with the package, else a folder, else a Hugging Face Hub id.

    Args:
        name: which one.

    Raises:
        CheckpointError: there is none, or it is of another kind.
    """
    folder = resolve(name, RestorationModel.package)
    kind = class_of(folder)
    for model in METHODS.values():
        if model.__name__ == kind:
            return model.from_pretrained(str(folder))
    known = ", ".join(model.__name__ for model in METHODS.values())
    raise CheckpointError(f"{folder} holds a {kind or 'model of no known class'}, not one of {known}")


def class_of(folder: Path) -> str | None:
    """Name of the class that a checkpoint's config.json states.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} is no configuration: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / CONFIG} is no JSON object")
    return values.get(CLASS_FIELD)
