"""The tasks of image restoration, and which shipped model does them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Something that can be done to a photograph.

    Args:
        summary: what, in a sentence.
        model: shipped model that is used unless another is named.
        needs: what must be given beside the photograph, of "mask" and "ratio".
    """

    summary: str
    model: str
    needs: tuple[str, ...] = ()


TASKS = {
    "super-resolution": Task("enlarge, with detail that interpolation lacks", "resshift-x4"),
    "denoise": Task("remove camera or Gaussian noise", "rddm-denoise"),
    "derain": Task("remove streaks of rain", "irsde-derain"),
    "low-light": Task("brighten a photograph taken in the dark", "rddm-low-light"),
    "jpeg": Task("remove the artefacts of strong JPEG compression", "rddm-jpeg"),
    "inpaint": Task("fill what a mask marks", "rddm-inpaint", needs=("mask",)),
    "compressed-sensing": Task("rebuild a photograph from few measurements", "idm-25", needs=("ratio",)),
}


def task_of(name: str) -> Task:
    """A task by its name.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> task_of("denoise").model
        'rddm-denoise'
    """
    if name not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]
