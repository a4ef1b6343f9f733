"""Published IDM models made into ours."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fewstep.core.keys import rename
from fewstep.core.weights import CheckpointError, load_into

from ..compressed_sensing import BLOCK
from ..methods.idm import IDM, IDMConfig
from .official import Official

# The couplings of the published code hold their layers a second time.
RULES = ((r"\.rev_module_lists?\.(\d+\.)+body\.", None),)
# Of Stable Diffusion 1.5; neither number can be told from shapes of weights.
HEADS, GROUPS = 8, 32


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a published IDM model, without the prefixes of training wrappers."""
    return {"alpha", "body.0.v", "unet.down_blocks.0.injectors.0.f2i.0.1.weight"} <= set(state)


def from_official(
    file: str | Path | Official,
    *,
    ratio: float | None = None,
    block: int | None = None,
    heads: int = HEADS,
    groups: int = GROUPS,
) -> IDM:
    """Load a published IDM model.

    Channels, fold and steps are found from names and shapes. Ratio and block are not in the weights: they are
    those given, else those in the name of the published folder ("R_0.10_T_3_B_32/net_params_50.pkl").

    Args:
        file: a state dictionary, or what has been read of one; nothing in it is executed.
        ratio: measurements per pixel that it was trained for.
        block: side of the square with as many pixels as are measured together; 32 where nothing says another.
        heads: of its attentions.
        groups: of its group normalisations.

    Returns:
        The model, in evaluation mode; `save_pretrained` writes it in our own format.

    Raises:
        CheckpointError: a file that cannot be read or has another layout.
        ValueError: the ratio is needed.

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", released models.
    """
    official = Official.of(file)
    state = official.state
    if not recognises(state):
        raise CheckpointError(f"{file} is not an IDM model: it has no alpha, body.0.v and unet…injectors")
    named_ratio, named_block = named_sampling(official.file)
    ratio = named_ratio if ratio is None else ratio
    if ratio is None:
        raise ValueError(f"ratio must be given: neither the weights nor the folder of {file} say it")
    first, last = state["unet.conv_in.weight"], state.get("unet.down_blocks.1.resnets.1.conv1.weight")
    if last is None:
        raise CheckpointError(
            f"{file} is not an IDM model: it has no unet.down_blocks.1.resnets.1.conv1.weight"
        )
    model = IDM(
        IDMConfig(
            ratio=ratio,
            block=block or named_block or BLOCK,
            steps=len(state["alpha"]),
            channels=(first.shape[0], last.shape[0]),
            heads=heads,
            groups=groups,
            fold=round(first.shape[1] ** 0.5),
        )
    )
    load_into(model, rename(state, RULES).state, str(official))
    return model.eval()


def named_sampling(file: str | Path) -> tuple[float | None, int | None]:
    """Ratio and block in the name of a published folder, where they are.

    Example:
        >>> named_sampling("weight/R_0.10_T_3_B_32/net_params_50.pkl"), named_sampling("mine.pkl")
        ((0.1, 32), (None, None))
    """
    found = re.search(r"R_(\d+\.\d+)_T_\d+_B_(\d+)", str(file))
    return (float(found[1]), int(found[2])) if found else (None, None)
