"""Names of observations: ours, and those of LeRobot's data sets."""

_LEROBOT_NAMES = {
    "observation.state": "state",
    "observation.environment_state": "environment_state",
    "observation.image": "image",
    "observation.points": "points",
    "next.reward": "reward",
    "next.done": "done",
    "next.success": "success",
}
_OUR_NAMES = {ours: theirs for theirs, ours in _LEROBOT_NAMES.items()}
_THEIR_CAMERAS, _OUR_CAMERAS = "observation.images.", "image."


def is_image(name: str) -> bool:
    """Whether an array or observation of that name holds camera pictures.

    Example:
        >>> is_image("image"), is_image("image.wrist"), is_image("state")
        (True, True, False)
    """
    return name == "image" or name.startswith(_OUR_CAMERAS)


def from_lerobot_name(name: str) -> str:
    """Our name of a LeRobot feature; a feature without one keeps its own.

    Example:
        >>> from_lerobot_name("observation.state"), from_lerobot_name("observation.images.top")
        ('state', 'image.top')
    """
    if name.startswith(_THEIR_CAMERAS):
        return _OUR_CAMERAS + name[len(_THEIR_CAMERAS) :]
    return _LEROBOT_NAMES.get(name, name)


def to_lerobot_name(name: str) -> str:
    """LeRobot's name of one of our arrays, the inverse of `from_lerobot_name`."""
    if name.startswith(_OUR_CAMERAS):
        return _THEIR_CAMERAS + name[len(_OUR_CAMERAS) :]
    return _OUR_NAMES.get(name, name)
