"""Several jump rules at once."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.core.objectives.trajectory.base import JumpRule, Situation


@dataclass(frozen=True)
class WeightedRules(JumpRule):
    """The weighted sum of the losses of several rules; each is logged under its name.

    Args:
        parts: (name, weight, rule) of each.

    Raises:
        ValueError: there are none, or two have the same name.
    """

    parts: tuple[tuple[str, float, JumpRule], ...]

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.parts]
        if not names or len({*names, "loss"}) != len(names) + 1:
            raise ValueError(f"rules need different names other than 'loss', got {names}")

    def __call__(self, situation: Situation) -> dict[str, Tensor]:
        """ "loss", and the loss of every rule before its weight."""
        losses = {}
        for name, _, rule in self.parts:
            made = rule(situation)
            losses[name] = (made if isinstance(made, Tensor) else made["loss"]).mean()
        return {"loss": sum_of(weight * losses[name] for name, weight, _ in self.parts), **losses}


def sum_of(terms) -> Tensor:
    """The sum of at least one tensor."""
    total, *others = terms
    for other in others:
        total = total + other
    return total
