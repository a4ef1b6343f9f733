"""Training for a fixed time of the processor: objectives of different cost compare on a busy machine."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.core.training import Ema, Moment, Objective
from fewstep.core.training.phases import STUDENT


def rows(pictures: Tensor, size: int = 128) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """Batches of rows of one tensor, as "x0"."""
    return lambda generator: {"x0": pictures[torch.randint(len(pictures), (size,), generator=generator)]}


def train(
    net: nn.Module,
    objective: Objective,
    batches: Callable[[torch.Generator], dict[str, Tensor]],
    seconds: float,
    rate: float = 1e-3,
) -> tuple[nn.Module, int]:
    """Averaged weights after `seconds` of processor time, and the updates: Adam, cosine to nothing, clip 1.

    For objectives with one phase; the networks that its phase names are trained.
    """
    (phase,) = objective.phases()
    networks = {STUDENT: net, **objective.modules()}
    parameters = [p for name in phase.trains for p in networks[name].parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    average, generator = Ema(net, (0.998,)), torch.Generator().manual_seed(3)
    step, began, progress = 0, time.process_time(), 0.0
    while progress < 1:
        moment = Moment(step, progress)
        losses = phase.loss(networks, batches(generator), generator, moment)
        loss = losses if isinstance(losses, Tensor) else losses["loss"]
        optimizer.param_groups[0]["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * progress))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(net)
        objective.after_update(phase.name, networks, moment)
        step += 1
        progress = (time.process_time() - began) / seconds
    return average.models[0.998], step
