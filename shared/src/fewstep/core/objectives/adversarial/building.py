"""The parts that the adversarial methods share, made from what a method has to work with."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fewstep.core.nets import MLPConfig
from fewstep.core.objectives.adversarial.conditional import PairJudge
from fewstep.core.objectives.adversarial.features import FrozenFeatures, OwnFeatures
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.adversarial.heads import HeadPerLayer, TimedHead, feature_shapes, head_for
from fewstep.core.objectives.adversarial.pool import HeadPool
from fewstep.core.objectives.adversarial.regularisers import Regulariser
from fewstep.core.objectives.methods.base import Material
from fewstep.core.objectives.times import TimeSampler
from fewstep.core.training.phases import MakeOptimizer


def adam(rate: float | None, betas: tuple[float, float]) -> MakeOptimizer | None:
    """Adam for the judge; None: the optimiser of the run."""
    if rate is None:
        return None

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=rate, betas=betas)

    return make


def call_times(material: Material, default: Any) -> tuple[float, ...]:
    """Times of the calls that the student will be sampled with; `default` where the material has none."""
    return tuple((material.sampling or default).grid(material.path)[:-1])


def shapes_in(net: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of a network's features.

    Raises:
        ValueError: the network has no `features`.
    """
    features = getattr(net, "features", None)
    if features is None:
        raise ValueError(f"a judge needs a network with features; {type(net).__name__} has none")
    like = next(net.parameters())
    return feature_shapes(features, like.new_zeros(1, *shape))


def own_judge(
    material: Material, times: TimeSampler, loss: str, regulariser: Regulariser | None
) -> AdversarialHead:
    """A trainable copy of the network, which begins as the teacher, with one head at its deepest layer."""
    trunk = copy.deepcopy(material.student).requires_grad_(True)
    head = head_for(shapes_in(trunk, material.shape)[-1])
    return AdversarialHead(material.path, head, OwnFeatures(trunk), times, loss, regulariser)


def frozen_judge(
    material: Material, times: TimeSampler | None, loss: str, regulariser: Regulariser | None
) -> AdversarialHead:
    """The frozen teacher with a head on every layer, told the time."""
    net = _teacher_net(material)
    shapes = shapes_in(net, material.shape)
    heads = HeadPerLayer([head_for(shape) for shape in shapes])
    widths = [shape[0] if len(shape) == 3 else shape[-1] for shape in shapes]
    head = TimedHead(heads, widths)
    return AdversarialHead(material.path, head, FrozenFeatures(net, None), times, loss, regulariser)


def pooled_judge(
    material: Material,
    times: TimeSampler,
    stretches: tuple[float, ...],
    count: int,
    judges: int,
    refresh_share: float,
) -> AdversarialHead:
    """The frozen teacher with a pool of heads on all layers.

    Args:
        material: of the method.
        times: where the inputs are noised to.
        stretches: increasing times of the path at which one stretch of heads ends.
        count: heads of a stretch.
        judges: of them that judge a batch.
        refresh_share: see HeadPool.
    """
    net = _teacher_net(material)
    makers: list[Callable[[], nn.Module]] = [
        lambda shape=shape: head_for(shape) for shape in shapes_in(net, material.shape)
    ]
    edges = material.path.network_time_at(torch.tensor(stretches, dtype=torch.float64)).tolist()
    pool = HeadPool(makers, count, judges, edges, refresh_share)
    return AdversarialHead(material.path, pool, FrozenFeatures(net, None), times, "hinge")


def pair_judge(material: Material) -> PairJudge:
    """A new network of the student's kind for two states at once, with one head at its deepest layer.

    Raises:
        ValueError: the student's network is not one of the core's, which say how they are built.
    """
    config: Any = getattr(material.student, "config", None)
    if not hasattr(config, "two_times"):
        name = type(material.student).__name__
        raise ValueError(f"a judge of pairs is built like the core's networks; {name} has no such config")
    if isinstance(config, MLPConfig):
        config = replace(config, shape=(2 * config.shape[0], *config.shape[1:]), two_times=False)
    else:
        config = replace(config, channels=2 * config.channels, two_times=False)
    net = type(material.student)(config)
    shape = (2 * material.shape[0], *material.shape[1:])
    return PairJudge(net, head_for(shapes_in(net, shape)[-1]))


def _teacher_net(material: Material) -> nn.Module:
    net = material.taught().net
    if not isinstance(net, nn.Module):
        raise ValueError("the judge looks at the teacher's features, so it must be a torch.nn.Module")
    return net
