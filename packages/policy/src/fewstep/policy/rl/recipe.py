"""Settings of offline training, those of the papers' tasks among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .actor_critic import ActorCriticConfig
from .policy_model import METHODS, RLPolicyConfig
from .transitions import REWARDS


@dataclass(frozen=True)
class OfflineRecipe:
    """What the training of an offline policy depends on; the defaults are Diffusion Q-Learning's.

    Args:
        method: "dql", "ofql", "fql" or "bc".
        environment: whose observations are learned; "": the demonstrations as they are.
        horizon: actions of a chunk, which the critic judges as a whole.
        n_action_steps: how many of them are executed.
        hidden: width of actor and critic.
        depth: their hidden layers.
        levels: T of "dql".
        flow_ratio: λ of "ofql".
        alpha: α of "fql".
        layer_norm: whether the critic has LayerNorm.
        candidates: actions among which the policy chooses by its critic.
        state_mode: how states are normalised, "gaussian", "limits" or "identity" (as in D4RL's benchmarks).
        reward: how rewards are tuned, see `transitions.tuned`.
        hindsight: pieces with another goal that are added for every episode, see `hindsight.with_hindsight`;
            only in environments with goals.
        discount: γ.
        learning: of critic and actor.
        clip: largest gradient norm of each (0: not clipped).
        batch_size: transitions of a batch.
        updates: of the actor.
        decay: whether the learning rates fall to 0 along a cosine.
        deploy: whether the trained "actor" acts in the end or its "average".
        validate_every: actor updates between validations.
        rollouts: episodes of the environment in a validation (0: none).
        seed: of weights, batches, noise.

    Raises:
        ValueError: a value out of its range.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", appendix.
    """

    method: str = "ofql"
    environment: str = ""
    horizon: int = 1
    n_action_steps: int = 1
    hidden: int = 256
    depth: int = 3
    levels: int = 5
    flow_ratio: float = 0.5
    alpha: float = 10.0
    layer_norm: bool = False
    candidates: int = 1
    state_mode: str = "gaussian"
    reward: str = "none"
    hindsight: int = 0
    discount: float = 0.99
    learning: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    clip: float = 0.0
    batch_size: int = 256
    updates: int = 1_000_000
    decay: bool = True
    deploy: str = "actor"
    validate_every: int = 5_000
    rollouts: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"method": METHODS, "reward": REWARDS, "deploy": ("actor", "average")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch_size", "updates", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("clip", "rollouts", "hindsight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {self.discount}")

    def config(
        self,
        observations: Mapping[str, tuple[int, ...]],
        action_dim: int,
        limits: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
        fps: float = 0.0,
    ) -> RLPolicyConfig:
        """What the policy of these settings is built from.

        Args:
            observations: shape of one step by name.
            action_dim: numbers of an action.
            limits: lowest and highest action.
            fps: control steps per second.
        """
        own = ("method", "horizon", "n_action_steps", "hidden", "depth", "levels", "flow_ratio", "alpha")
        rest = ("layer_norm", "candidates", "state_mode", "environment")
        fields = {name: getattr(self, name) for name in (*own, *rest)}
        return RLPolicyConfig(
            dict(observations),
            action_dim,
            activation="gelu" if self.method == "fql" else "mish",
            action_low=limits[0],
            action_high=limits[1],
            fps=fps,
            **fields,
        )


@dataclass(frozen=True)
class PaperTask:
    """What Diffusion Q-Learning chose for a task of D4RL.

    Args:
        eta: η.
        best_of: whether the target takes the best of 10 actions ("max_q_backup").
        clip: largest gradient norm.
        rate: learning rate of actor and critic.
        reward: how rewards are tuned.
        updates: of the actor.
    """

    eta: float
    best_of: bool
    clip: float
    rate: float = 3e-4
    reward: str = "none"
    updates: int = 2_000_000


def _maze(eta: float, best_of: bool, clip: float, rate: float = 3e-4) -> PaperTask:
    return PaperTask(eta, best_of, clip, rate, "antmaze", 1_000_000)


PAPER_TASKS: dict[str, PaperTask] = {
    "halfcheetah-medium-v2": PaperTask(1.0, False, 9.0),
    "hopper-medium-v2": PaperTask(1.0, False, 9.0),
    "walker2d-medium-v2": PaperTask(1.0, False, 1.0),
    "halfcheetah-medium-replay-v2": PaperTask(1.0, False, 2.0),
    "hopper-medium-replay-v2": PaperTask(1.0, False, 4.0),
    "walker2d-medium-replay-v2": PaperTask(1.0, False, 4.0),
    "halfcheetah-medium-expert-v2": PaperTask(1.0, False, 7.0),
    "hopper-medium-expert-v2": PaperTask(1.0, False, 5.0),
    "walker2d-medium-expert-v2": PaperTask(1.0, False, 5.0),
    "antmaze-umaze-v0": _maze(0.5, False, 2.0),
    "antmaze-umaze-diverse-v0": _maze(2.0, True, 3.0),
    "antmaze-medium-play-v0": _maze(2.0, True, 2.0, 1e-3),
    "antmaze-medium-diverse-v0": _maze(3.0, True, 1.0),
    "antmaze-large-play-v0": _maze(4.5, True, 10.0),
    "antmaze-large-diverse-v0": _maze(3.5, True, 7.0),
    "pen-human-v1": PaperTask(0.15, False, 7.0, 3e-5, "normalize", 1_000_000),
    "pen-cloned-v1": PaperTask(0.1, False, 8.0, 3e-5, "normalize", 1_000_000),
    "kitchen-complete-v0": PaperTask(0.005, False, 9.0, updates=1_000_000),
    "kitchen-partial-v0": PaperTask(0.005, False, 10.0, updates=1_000_000),
    "kitchen-mixed-v0": PaperTask(0.005, False, 10.0, updates=1_000_000),
}


def paper_recipe(task: str, method: str = "dql") -> OfflineRecipe:
    """The settings that Diffusion Q-Learning's table gives for a task of D4RL.

    Args:
        task: name of the data set, one of `PAPER_TASKS`.
        method: "dql" as published; others train with the same settings, but OFQL chose its own η.

    Raises:
        ValueError: an unknown task or method.

    Reference: Wang, Hunt & Zhou 2023, table of hyper-parameters and released code.

    Example:
        >>> recipe = paper_recipe("antmaze-medium-play-v0")
        >>> recipe.learning.eta, recipe.learning.backup, recipe.clip, recipe.learning.actor_rate
        (2.0, 'max', 2.0, 0.001)
    """
    if task not in PAPER_TASKS:
        raise ValueError(f"task must be one of {', '.join(PAPER_TASKS)}, got {task!r}")
    chosen = PAPER_TASKS[task]
    learning = ActorCriticConfig(
        eta=chosen.eta,
        backup="max" if chosen.best_of else "min",
        actor_rate=chosen.rate,
        critic_rate=chosen.rate,
    )
    return OfflineRecipe(
        method=method,
        candidates=50 if method == "dql" else 1,
        state_mode="identity",
        reward=chosen.reward,
        learning=learning,
        clip=chosen.clip,
        updates=chosen.updates,
    )


@dataclass(frozen=True)
class _Maze:
    """What suits a size of maze; fields as of `OfflineRecipe`, `ramp` as of `ActorCriticConfig`.

    The warm-up is as long as the ramp.
    """

    eta: float
    discount: float
    hindsight: int
    updates: int
    ramp: int
    flow_ratio: float


# Every reward before the goal is −1: the shortest way is the same for any γ, but found sooner for small.
_MAZES = {
    "umaze": _Maze(3.0, 0.97, 0, 5_000, 1_500, 0.5),
    "medium": _Maze(0.4, 0.985, 20, 16_000, 2_000, 0.75),
    "large": _Maze(0.4, 0.99, 20, 40_000, 2_000, 0.75),
}


def point_maze_recipe(size: str = "umaze", method: str = "ofql", eta: float | None = None) -> OfflineRecipe:
    """Settings for PointMaze: r − 1, chunks of four, the critic alone at first, then η from 0 to its value.

    The episodes that these settings were chosen with hold noise and random actions everywhere, so the critic
    can be trusted away from what was done, and η is large. A larger one still, or more updates, is faster
    where it arrives, but walks against walls that the critic does not see. In the medium maze the mean action
    of "bc" stays better than the best "ofql" that was found. Where data are narrow, OFQL's grid
    0.001 … 0.5 is the place to begin. Those of "large" are extrapolated, not tried.

    Args:
        size: "umaze", "medium" or "large".
        method: "ofql", "dql", "fql" or "bc".
        eta: η (None: as the size wants it).

    Raises:
        ValueError: an unknown size or method.

    Reference: Nguyen & Yoo 2025, "One-Step Flow Q-Learning" (grid of η); Li, Zhou & Levine 2025,
        "Reinforcement Learning with Action Chunking"; warm-up and ramp are ours.
    """
    if size not in _MAZES:
        raise ValueError(f"size must be one of {', '.join(_MAZES)}, got {size!r}")
    maze = _MAZES[size]
    learning = ActorCriticConfig(
        eta=maze.eta if eta is None else eta,
        warmup=maze.ramp,
        ramp=maze.ramp,
        average_from=500,
        critic_rate=1e-3,
        tau=0.01,
    )
    if method == "fql":
        # FQL's gain has no scale; its α balances it.
        learning = replace(learning, gain="plain", backup="mean", next_actions="current", eta=1.0)
    return OfflineRecipe(
        method=method,
        environment=f"pointmaze-{size}",
        horizon=4,
        n_action_steps=4,
        flow_ratio=maze.flow_ratio,
        layer_norm=True,
        reward="minus-one",
        hindsight=maze.hindsight,
        discount=maze.discount,
        learning=learning,
        clip=5.0,
        updates=maze.updates,
        deploy="average",
        rollouts=60,
    )
