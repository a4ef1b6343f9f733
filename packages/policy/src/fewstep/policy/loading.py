"""Finding a policy by its name and loading it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.core.checkpoints import CLASS_FIELD, CONFIG, resolve
from fewstep.core.weights import CheckpointError

if TYPE_CHECKING:
    from .model import PolicyModel

PACKAGE = "fewstep.policy"


def load_model(name: str | Path) -> "PolicyModel":
    """Load a policy's model.

    Args:
        name: a name that ships with the package, else a folder, else a Hugging Face Hub id.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: there is none, or it is no policy.
    """
    from .model import PolicyModel
    from .rl.policy_model import RLPolicy

    classes = {"PolicyModel": PolicyModel, "RLPolicy": RLPolicy}
    folder = resolve(name, PACKAGE)
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))[CLASS_FIELD]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not the configuration of a policy: {error!r}") from error
    if kind not in classes:
        raise CheckpointError(f"{folder} holds a {kind!r}; policies are {', '.join(classes)}")
    return classes[kind].from_pretrained(str(folder)).eval()
