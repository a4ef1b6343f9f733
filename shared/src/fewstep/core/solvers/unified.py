"""The unified solver: what every step does (time, prediction, order, corrector …) is data for a search."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Node, Solver, check_choice, levels
from fewstep.core.solvers.exponential import lagrange_weights, phi
from fewstep.core.solvers.first_order import first_order_step

Split = tuple[float, float]
PREDICTIONS: dict[str, Split] = {"x0": (1.0, 0.0), "eps": (0.0, -1.0)}
MAX_ORDER = 4


@dataclass(frozen=True)
class StepChoice:
    """What one step does.

    Args:
        t: the time at which it ends; None: the grid's.
        prediction: what is expanded along the step: "x0", "eps", or a pair (l, s). The step solves
            dz/a = −(l·z/a + f) dlam exactly in its linear part, f = (1 − l)·sigma/a·eps − l·x0, with
            e^(−s·lam)·f as a polynomial in lam; "x0" is (1, 0) and "eps" is (0, −1).
        order: terms of the expansion, 1 to 4; 0 asks no network and takes x0 as 0 (a far jump in pure noise).
        derivatives: "full": all derivatives from one polynomial through `order` values; "low": the k-th one
            from the k + 1 newest values.
        corrector: do the step again with the value at its end (no call more; not where nothing is asked).
        base: 0 to go on from the newest state; 1 to start again from the one before it (single-step methods).

    Raises:
        ValueError: if a choice is out of range.
    """

    t: float | None = None
    prediction: str | Split = "x0"
    order: int = 2
    derivatives: str = "full"
    corrector: bool = True
    base: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.prediction, str):
            if self.prediction not in PREDICTIONS:
                raise ValueError(f"prediction must be 'x0', 'eps' or a pair, not {self.prediction!r}")
        elif len(self.prediction) != 2 or not all(map(math.isfinite, self.prediction)):
            raise ValueError(f"prediction must be 'x0', 'eps' or a pair of numbers, not {self.prediction!r}")
        if self.order not in range(MAX_ORDER + 1):
            raise ValueError(f"order must be 0 to {MAX_ORDER}, not {self.order!r}")
        check_choice("derivatives", self.derivatives, ("full", "low"))
        if self.base not in (0, 1):
            raise ValueError(f"base must be 0 or 1, not {self.base!r}")

    @property
    def split(self) -> Split:
        """The pair (l, s)."""
        return PREDICTIONS[self.prediction] if isinstance(self.prediction, str) else self.prediction


@dataclass(frozen=True)
class UnifiedSolver(Solver):
    """Every exponential multistep and single-step method, mixed step by step.

    From lam_s to lam_t = lam_s + h, lam = log(a/sigma), with w_j = lagrange_weights(r, −(l + s)·h):

        z_t = a_t/a_s·e^(−l·h)·z_s − a_t·h·e^(s·h)·sum_j w_j·e^(−s·r_j·h)·((1 − l)·kappa_j·eps_j − l·x0_j).

    The step to sigma = 0 is z = a·x0, and a step from a = 0 has order 1.

    Args:
        steps: one choice per step, or none: `otherwise` for all.
        otherwise: the choice of every step where `steps` is empty.

    Raises:
        ValueError: if a choice is out of range, or (when compiled) the grid has another number of steps.

    Example:
        >>> from fewstep.core import paths
        >>> UnifiedSolver((StepChoice(1.0, order=1), StepChoice(0.0))).plan(paths.EDM()).nfe
        2

    Reference: Liu et al. 2024 (unified sampling framework), section 3; Zheng et al. 2023 (DPM-Solver-v3),
        equation 8, for the pair (l, s).
    """

    steps: tuple[StepChoice, ...] = ()
    otherwise: StepChoice = StepChoice()

    @property
    def name(self) -> str:
        return "unified"

    @property
    def order(self) -> int:
        """Of a chain on a uniform grid: the first step has order 1, which only a corrector makes up for."""
        every = self.steps or (self.otherwise,)
        return min(min(max(choice.order, 1), 2) + choice.corrector for choice in every)

    def plan(self, path: Path) -> Plan:
        """The plan from t_max with the steps' own times.

        Raises:
            ValueError: if a step has no time of its own.
        """
        times = [choice.t for choice in self.steps]
        if not times or None in times:
            raise ValueError("every step needs a time t of its own, or use compile(path, grid)")
        return self.compile(path, (path.t_max, *(t for t in times if t is not None)))

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        choices = self.steps or (self.otherwise,) * (len(grid) - 1)
        if len(choices) != len(grid) - 1:
            raise ValueError(f"grid must have {len(choices) + 1} times, one per step, it has {len(grid)}")
        own = (g if choice.t is None else choice.t for g, choice in zip(grid[1:], choices, strict=True))
        return _Chain(path, levels(path, (grid[0], *own)), choices, self.name).build()


class _Chain:
    """The states and calls so far."""

    def __init__(self, path: Path, points: list[Level], choices: Sequence[StepChoice], name: str) -> None:
        self.points, self.choices = points, choices
        self.builder = PlanBuilder(path, name)
        self.states: list[tuple[Vector, Level]] = [(self.builder.start(points[0].t), points[0])]
        self.nodes: list[Node] = []

    def build(self) -> Plan:
        for i, (choice, (t, s)) in enumerate(zip(self.choices, itertools.pairwise(self.points), strict=True)):
            if choice.order == 0:
                self._coast(t, s)
                continue
            self._ask(self.states[-1][0], t)
            asked = i + 1 < len(self.choices) and self.choices[i + 1].order > 0
            self._step(choice, t, s, choice.corrector and asked)
        return self.builder.build()

    def _ask(self, x: Vector, t: Level) -> None:
        if not (self.nodes and self.nodes[0].half_log_snr == t.half_log_snr):
            self.nodes.insert(0, Node(self.builder.ask(x), t.half_log_snr))

    def _coast(self, t: Level, s: Level) -> None:
        if s.sigma == 0.0:
            raise ValueError("order must be at least 1 in the step to sigma = 0")
        self.states.append((self.builder.step(s.t, {self.states[-1][0]: s.sigma / t.sigma}), s))

    def _step(self, choice: StepChoice, t: Level, s: Level, correct: bool) -> None:
        x = self.states[-1][0]
        h = s.half_log_snr - t.half_log_snr
        if not math.isfinite(h):
            self.states.append((first_order_step(self.builder, x, self.nodes[0].call, t, s), s))
            return
        back = choice.base if len(self.states) > choice.base and self.states[-1 - choice.base][1].a > 0 else 0
        base, start = self.states[-1 - back]
        # the value at the start of the step comes first, the others from the newest on
        usable = sorted(
            (node for node in self.nodes if math.isfinite(node.half_log_snr)),
            key=lambda node: node.half_log_snr != start.half_log_snr,
        )[: choice.order]
        guess = self.builder.step(s.t, _terms(choice, usable, base, start, s), inner=correct)
        if correct:
            self._ask(guess, s)
            guess = self.builder.step(s.t, _terms(choice, [*usable, self.nodes[0]], base, start, s))
        self.states.append((guess, s))


def _terms(
    choice: StepChoice, nodes: list[Node], base: Vector, start: Level, s: Level
) -> dict[Vector, float]:
    """The linear combination of one step from `start` to s."""
    linear, growth = choice.split
    h = s.half_log_snr - start.half_log_snr
    r = [(node.half_log_snr - start.half_log_snr) / h for node in nodes]
    z = -(linear + growth) * h
    low = choice.derivatives == "low" and 1.0 not in r  # a corrector interpolates
    terms = {base: s.a / start.a * math.exp(-linear * h)}
    for node, r_j, w in zip(nodes, r, _low_weights(r, z) if low else lagrange_weights(r, z), strict=True):
        whole = -s.a * h * w * math.exp(growth * h * (1.0 - r_j))
        terms[node.call.d] = -linear * whole
        terms[node.call.e] = (1.0 - linear) * math.exp(-node.half_log_snr) * whole
    return terms


def _low_weights(r: Sequence[float], z: float) -> list[float]:
    """Weights that take the k-th derivative from the divided difference of the first k + 1 nodes."""
    weights = [0.0] * len(r)
    for k in range(len(r)):
        for j in range(k + 1):
            gaps = math.prod(r[j] - r[i] for i in range(k + 1) if i != j)
            weights[j] += math.factorial(k) * phi(k + 1, z) / gaps
    return weights


SOLVERS = {
    "unified": Listed(
        UnifiedSolver,
        "Liu et al. 2024, USF (S³)",
        "n",
        "the space that `tune` searches; every choice is data",
    ),
}
