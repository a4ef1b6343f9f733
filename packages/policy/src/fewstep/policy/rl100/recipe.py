"""Settings of a run of RL-100."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..recipe import PolicyRecipe
from ..rl.transitions import REWARDS


@dataclass(frozen=True)
class CriticRecipe:
    """Implicit Q-learning on the policy's encoded observations.

    Args:
        hidden: widths of the hidden layers.
        expectile: τ of the value.
        rate: learning rate.
        tau: share that the target critic moves.
        target_every: updates between two moves of the target.
        batch_size: transitions of a batch.
        updates: of value and critic each.

    Reference: Lei et al. 2025, "RL-100", released code; Kostrikov et al. 2022, "Implicit Q-Learning".
    """

    hidden: tuple[int, ...] = (512,)
    expectile: float = 0.7
    rate: float = 1.4e-4
    tau: float = 0.005
    target_every: int = 2
    batch_size: int = 256
    updates: int = 20_000


@dataclass(frozen=True)
class WorldRecipe:
    """The ensemble in which policies are judged.

    Args:
        hidden, depth, members, elites: see `ope.WorldModel`.
        rate: learning rate.
        batch_size: transitions of a batch.
        updates: of all members.
        held_out: share of the transitions that chooses the elites.
    """

    hidden: int = 400
    depth: int = 4
    members: int = 7
    elites: int = 5
    rate: float = 1e-3
    batch_size: int = 256
    updates: int = 5_000
    held_out: float = 0.1


@dataclass(frozen=True)
class OfflineStage:
    """Improvement behind the gate.

    Args:
        rate: learning rate of the policy.
        batch_size: decisions of a batch.
        updates: batches; each moves the policy once per denoising step.
        clip: c of the ratio at the start; it falls to a tenth along the stage.
        gradient: largest gradient norm.
        gate_every: batches between two looks at the gate.
        gate_share: δ/|Ĵ|.
        gate_patience: refusals in a row before the policy is put back.
        imagined: H, decisions of an imagined episode.
        starts: states that they start from.

    Reference: Lei et al. 2025, "RL-100", offline stage and released code.
    """

    rate: float = 1e-5
    batch_size: int = 512
    updates: int = 8_000
    clip: float = 0.25
    gradient: float = 0.5
    gate_every: int = 50
    gate_share: float = 0.05
    gate_patience: int = 5
    imagined: int = 20
    starts: int = 512


@dataclass(frozen=True)
class OnlineStage:
    """Proximal policy optimisation over the chain, in the environment.

    Args:
        iterations: of collecting and learning; the first `critic_first` train the value alone.
        episodes: of an iteration, side by side.
        passes: over what was collected.
        batch_size: decisions of a batch.
        lam: λ of the advantages.
        clip: c of the ratio, and of the value.
        gradient: largest gradient norm.
        rate: of the policy at the start; it follows the divergence within `rates`.
        rates: limits of that rate.
        divergence: KL that a pass should reach; after a pass that reaches twice of it the iteration's others
            train the value alone.
        value_rate: of the value.
        critic_first: iterations in which the policy waits for its value.

    Reference: Lei et al. 2025, "RL-100", online stage and released code; waiting for the value and stopping
        early are ours.
    """

    iterations: int = 100
    episodes: int = 16
    passes: int = 10
    batch_size: int = 128
    lam: float = 0.95
    clip: float = 0.2
    gradient: float = 0.5
    rate: float = 3e-6
    rates: tuple[float, float] = (5e-7, 1e-5)
    divergence: float = 0.02
    value_rate: float = 3e-4
    critic_first: int = 2


@dataclass(frozen=True)
class RL100Recipe:
    """What a run of the three stages depends on.

    Args:
        environment: a name of `envs.registry.env_names()`.
        imitation: of the first stage, and of every return to it.
        obs: what Push-T shows.
        chain_steps: K.
        std_min, std_max: limits of the deviation of a denoising step.
        reward: how rewards are tuned.
        discount: γ of a step.
        rounds: of the offline stage: critics, improvement, new episodes, imitation of all.
        new_episodes: that a round collects (0: none).
        imitation_updates: of a return to imitation (0: none).
        critics, world, offline, online: of the stages.
        student_updates: of the one-step student of a chain of several steps (0: none).
        student_episodes: of the chain, whose observations the student learns on beside the demonstrations'.
        evaluation: episodes after every stage (0: none), of seeds that neither training nor tests use.
        seed: of everything.

    Raises:
        ValueError: a value out of its range.

    Reference: Lei et al. 2025, "RL-100: Performant Robotic Manipulation with Real-World Reinforcement
        Learning".
    """

    environment: str = "pusht"
    imitation: PolicyRecipe = field(default_factory=PolicyRecipe)
    obs: str = "keypoints"
    chain_steps: int = 5
    std_min: float = 0.01
    std_max: float = 0.8
    reward: str = "minus-one"
    discount: float = 0.99
    rounds: int = 1
    new_episodes: int = 0
    imitation_updates: int = 0
    critics: CriticRecipe = field(default_factory=CriticRecipe)
    world: WorldRecipe = field(default_factory=WorldRecipe)
    offline: OfflineStage = field(default_factory=OfflineStage)
    online: OnlineStage = field(default_factory=OnlineStage)
    student_updates: int = 5_000
    student_episodes: int = 100
    evaluation: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reward not in REWARDS or self.reward == "normalize":
            raise ValueError(f"reward must be 'none', 'minus-one' or 'antmaze', got {self.reward!r}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {self.discount}")
        if self.chain_steps < 1:
            raise ValueError(f"chain_steps must be at least 1, got {self.chain_steps}")
        counts = ("rounds", "new_episodes", "imitation_updates", "evaluation")
        for name in (*counts, "student_updates", "student_episodes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
