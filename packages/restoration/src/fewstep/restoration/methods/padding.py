"""Images extended to the sizes that a network can take."""

import torch
from jaxtyping import Float
from torch import Tensor


def reflect_to_multiple(
    x: Float[Tensor, "batch channels h w"], multiple: int
) -> Float[Tensor, "batch channels h2 w2"]:
    """Extend images on the right and below to multiples of a length, by reflection at the last row, column.

    Where the image is shorter than what is missing, the reflections go on back and forth; a single row or
    column is repeated. So every size from 1×1 up can be extended.

    Args:
        x: images.
        multiple: what the sides become multiples of.

    Example:
        >>> reflect_to_multiple(torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3), 8)[0, 0, 0].tolist()
        [1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0]
    """
    for dim in (-2, -1):
        length = x.shape[dim]
        missing = -length % multiple
        if missing:
            period = max(2 * (length - 1), 1)
            place = torch.arange(length + missing, device=x.device) % period
            x = x.index_select(dim, torch.minimum(place, period - place))
    return x
