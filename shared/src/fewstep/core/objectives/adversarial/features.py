"""Where a judge's features come from: a network of the run, a frozen one, one of its own, or x itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.clock import spread
from fewstep.core.conditions import condition_names
from fewstep.core.paths import Path
from fewstep.core.training.phases import Networks

Layers = tuple[int, ...] | None
Maps = list[Tensor]


@dataclass(frozen=True)
class View:
    """What a judge looks at.

    Args:
        path: of the states.
        x: states.
        t: the time that x lies at.
        told: the time that the network is told; usually t.
        conditions: of the network, by name; those that it does not take are left out.
    """

    path: Path
    x: Float[Tensor, "batch *shape"]
    t: Shaped[Tensor, "batch"]
    told: Shaped[Tensor, "batch"]
    conditions: Mapping[str, Any]


def _states(x: Tensor, t: Tensor) -> Tensor:
    return x


class FeatureSource(ABC):
    """Gives the features of states."""

    @abstractmethod
    def __call__(self, networks: Networks, view: View) -> Maps:
        """The features, one tensor (batch, ...) per layer."""

    def trained(self) -> nn.Module | None:
        """A network that belongs to the judge and is trained with it."""
        return None

    def frozen(self) -> tuple[nn.Module, ...]:
        """Networks that never change."""
        return ()


@dataclass(frozen=True)
class NamedFeatures(FeatureSource):
    """Features of a network of the run; "fake" is DMD2's choice, and its judge trains the fake score too.

    Args:
        name: of the network.
        layers: places in the list that its `features` gives; None: all of them.

    Reference: Yin et al. 2024, "Improved Distribution Matching Distillation", section 4.3.
    """

    name: str = "fake"
    layers: Layers = (-1,)

    def __call__(self, networks: Networks, view: View) -> Maps:
        """The features."""
        if self.name not in networks:
            raise ValueError(f"features must name one of {', '.join(networks)}, got {self.name!r}")
        return features_of(networks[self.name], view, self.layers)


@dataclass(frozen=True)
class FrozenFeatures(FeatureSource):
    """Features of a network that never changes, such as the teacher.

    Args:
        net: with a method `features(x, t, **conditions)`, or callable like that.
        layers: as in NamedFeatures.

    Reference: Sauer et al. 2024, "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion
        Distillation", section 3.
    """

    net: nn.Module
    layers: Layers = (-1,)

    def __call__(self, networks: Networks, view: View) -> Maps:
        """The features; gradients pass to x."""
        return features_of(self.net, view, self.layers)

    def frozen(self) -> tuple[nn.Module, ...]:
        """The network."""
        return (self.net,)


@dataclass(frozen=True)
class OwnFeatures(FeatureSource):
    """Features of a network that is the judge's own and learns with it.

    Args:
        net: with a method `features(x, t, **conditions)`, or callable like that.
        layers: as in NamedFeatures.
    """

    net: nn.Module
    layers: Layers = (-1,)

    def __call__(self, networks: Networks, view: View) -> Maps:
        """The features."""
        return features_of(self.net, view, self.layers)

    def trained(self) -> nn.Module:
        """The network."""
        return self.net


@dataclass(frozen=True)
class PlainFeatures(FeatureSource):
    """A function of states and the times that they lie at, without weights; by default the states.

    Args:
        function: (x, t) → one tensor or several.
    """

    function: Callable[[Tensor, Tensor], Tensor | Sequence[Tensor]] = _states

    def __call__(self, networks: Networks, view: View) -> Maps:
        """The features."""
        return _listed(self.function(view.x, view.t))


Given = str | nn.Module | Callable[[Tensor, Tensor], Tensor | Sequence[Tensor]] | FeatureSource
"""What can be given as `features`."""


def feature_source(features: Given) -> FeatureSource:
    """Read what was given as `features`: a name, a frozen module, a function (x, t), or a FeatureSource.

    Raises:
        TypeError: it is none of them.
    """
    if isinstance(features, FeatureSource):
        return features
    if isinstance(features, str):
        return NamedFeatures(features)
    if isinstance(features, nn.Module):
        return FrozenFeatures(features)
    if callable(features):
        return PlainFeatures(features)
    raise TypeError(
        "features must be the name of a network, a frozen module, a function (x, t) or a FeatureSource, "
        f"not {type(features).__name__}"
    )


def features_of(net: nn.Module, view: View, layers: Layers) -> Maps:
    """Ask a network for features of scaled states, at the time that it is told.

    Args:
        net: with a method `features(x, t, **conditions)`, or callable like that.
        view: what it looks at.
        layers: places in its list; None: all of them.

    Raises:
        ValueError: a place is not in the list.
    """
    ask = getattr(net, "features", net)
    accepted = condition_names(ask)
    given = {name: value for name, value in view.conditions.items() if accepted is None or name in accepted}
    x = view.x * spread(view.path.input_scale_at(view.t), view.x)
    parameter = next(net.parameters(), x)
    dtype = torch.float64 if view.x.dtype is torch.float64 else torch.float32
    told = view.path.network_time_at(view.told.double()).to(x.device, dtype)
    maps = _listed(ask(x.to(parameter.dtype), told, **given))
    if layers is None:
        return maps
    if any(not -len(maps) <= place < len(maps) for place in layers):
        raise ValueError(f"layers must lie in [{-len(maps)}, {len(maps) - 1}], got {layers}")
    return [maps[place] for place in layers]


def _listed(maps: Tensor | Sequence[Tensor]) -> Maps:
    return [maps] if isinstance(maps, Tensor) else list(maps)
