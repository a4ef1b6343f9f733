"""Published models of Diffusion Q-Learning made into our networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewstep.core.weights import CheckpointError, load_into, load_state_dict_file

from ..nets.mlp import ActorConfig, ActorMLP, TwinCritic
from .official import under


@dataclass(frozen=True)
class OfficialAgent:
    """A published agent.

    Args:
        actor: predicts the noise of an action, told levels 0, 1, ….
        betas: of the diffusion, one per level.
        critic: two values of an action, if its file was given.
    """

    actor: ActorMLP
    betas: Tensor
    critic: TwinCritic | None = None


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of an actor of Diffusion Q-Learning."""
    return {
        "betas",
        "model.time_mlp.1.weight",
        "model.mid_layer.0.weight",
        "model.final_layer.weight",
    } <= set(state)


def from_official(actor: str | Path, critic: str | Path | None = None) -> OfficialAgent:
    """Load a published agent; sizes are found from the weights.

    Args:
        actor: "actor_<epoch>.pth".
        critic: "critic_<epoch>.pth" (None: none).

    Returns:
        The networks in evaluation mode.

    Raises:
        CheckpointError: a file that cannot be read or has another layout.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", released code.
    """
    state = load_state_dict_file(actor)
    if not recognises(state):
        raise CheckpointError(f"{actor} is not an actor of Diffusion Q-Learning: it has no betas and model.…")
    weights = under(state, "model.")
    first, last = weights["mid_layer.0.weight"], weights["final_layer.weight"]
    embedding = weights["time_mlp.1.weight"].shape[1]
    depth = sum(name.startswith("mid_layer.") and name.endswith(".weight") for name in weights)
    state_dim = first.shape[1] - embedding - last.shape[0]
    if state_dim < 1:
        raise CheckpointError(f"{actor} is not an actor of Diffusion Q-Learning: it is told no state")
    config = ActorConfig(last.shape[0], state_dim, first.shape[0], depth, embedding)
    net = ActorMLP(config)
    load_into(net, weights, str(actor))
    judge = None if critic is None else _critic(critic, config)
    return OfficialAgent(net.eval(), state["betas"], judge)


def _critic(file: str | Path, config: ActorConfig) -> TwinCritic:
    state = load_state_dict_file(file)
    names = sorted(name for name in state if name.startswith("q1_model.") and name.endswith(".weight"))
    hidden = [state[name].shape[0] for name in names[:-1]]
    critic = TwinCritic(config.state_dim, config.action_dim, hidden)
    load_into(critic, state, str(file))
    return critic.eval()
