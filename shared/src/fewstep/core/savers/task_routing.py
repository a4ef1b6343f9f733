"""Denoising task routing: every range of noise levels gets a window of channels of a transformer."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from fewstep.core.nets import DiT


def routing_masks(
    tasks: int, channels: int, share: float = 0.8, alpha: float = 4.0
) -> Bool[Tensor, "tasks channels"]:
    """Which channels each task uses: a window that moves with the task.

    Window of task i: floor(share·channels) channels from round((i/(tasks - 1))^alpha·(channels - floor(…))).
    Neighbouring tasks share most channels; alpha > 1 gives the clean ones (small i) the most in common.

    Args:
        tasks: number of ranges of noise levels, from clean to noisy.
        channels: of a token.
        share: of the channels that a task uses.
        alpha: exponent of the shift.

    Raises:
        ValueError: if there is no task or channel, or a number is out of range.

    Reference: Park et al. 2024, "Denoising Task Routing for Diffusion Models", section 4.2.

    >>> routing_masks(3, 5, share=0.6, alpha=1.0).int()
    tensor([[1, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1]], dtype=torch.int32)
    """
    if tasks < 1 or channels < 1:
        raise ValueError(f"tasks and channels must be at least 1, not {tasks} and {channels}")
    if not 0.0 < share <= 1.0 or int(channels * share) < 1:
        raise ValueError(f"share must lie in (0, 1] and leave a channel of {channels}, not {share}")
    if not alpha > 0.0:
        raise ValueError(f"alpha must be positive, not {alpha}")
    width = int(channels * share)
    place = torch.linspace(0.0, 1.0, tasks, dtype=torch.float64)
    first = (place**alpha * (channels - width)).round()[:, None]
    channel = torch.arange(channels, dtype=torch.float64)
    return (channel >= first) & (channel < first + width)


def uniform_tasks(low: float, high: float, tasks: int) -> Callable[[Tensor], Tensor]:
    """The task of a network time: `tasks` ranges of equal length from `low` (clean) to `high` (noisy).

    >>> uniform_tasks(0.0, 1000.0, 10)(torch.tensor([0.0, 99.9, 500.0, 1000.0]))
    tensor([0, 0, 5, 9])
    """
    if not low < high:
        raise ValueError(f"low must be less than high, not {low} and {high}")

    def task(t: Shaped[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return ((t - low) / (high - low) * tasks).floor().long().clamp(0, tasks - 1)

    return task


def route(
    block: Callable[[Tensor, Tensor], Tensor],
    tokens: Float[Tensor, "batch tokens width"],
    modulation: Float[Tensor, "batch features"],
    mask: Bool[Tensor, "batch width"],
) -> Float[Tensor, "batch tokens width"]:
    """A transformer block that sees a window of the channels: h <- block(m·h) + (1 - m)·h."""
    window = mask[:, None].to(tokens.dtype)
    return block(tokens * window, modulation) + tokens * (1 - window)


class TaskRouted(nn.Module):
    """A transformer whose blocks see, at every noise level, only the channels of its task.

    No weight is added. The network has to be trained this way; with share 1 it is the plain one.

    Args:
        model: a network with `embed`, `blocks` and `unembed`, such as `fewstep.core.nets.DiT`.
        task: the task of each network time, such as `uniform_tasks(0, 1000, 100)`.
        tasks: number of tasks.
        share: of the channels that a task uses.
        alpha: exponent of the shift.

    Reference: Park et al. 2024, "Denoising Task Routing for Diffusion Models", equations 4 to 6.

    Example:
        >>> from fewstep.core.nets import DiTConfig
        >>> net = TaskRouted(DiT(DiTConfig()), uniform_tasks(0.0, 1.0, 10), 10)
        >>> net(torch.zeros(2, 1, 8, 8), torch.tensor([0.1, 0.9])).shape
        torch.Size([2, 1, 8, 8])
    """

    masks: Tensor

    def __init__(
        self,
        model: DiT,
        task: Callable[[Tensor], Tensor],
        tasks: int,
        share: float = 0.8,
        alpha: float = 4.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        width = model.config.width
        self.register_buffer("masks", routing_masks(tasks, width, share, alpha), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        label: Shaped[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The network's raw value; the arguments are those of the network."""
        tokens, modulation = self.model.embed(x, t, label)
        mask = self.masks[self.task(t)]
        for block in self.model.blocks:
            tokens = route(block, tokens, modulation, mask)
        return self.model.unembed(tokens, modulation)
