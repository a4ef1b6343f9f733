"""One-step Flow Q-Learning: an actor that jumps from noise to the action by an average velocity."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap

from ..nets.mlp import ActorConfig, ActorMLP
from ..objective import mean_flow_error
from ..rl.actor import Actor


class MeanFlowActor(Actor):
    """An action by one call, in use and in training: a = clamp(ε − u_θ(ε, 1, 0; s), ±1).

    The behaviour is learned by the MeanFlow identity on x_t = (1 − t)a + tε; the derivative is computed only
    for the share of a batch whose two times differ. The critic's gradient passes through one call.
    The network is told t times its `time_scale`: its sines were made for levels 0, 1, …, so about 100 is
    needed, and much more would make the derivative noisy. The paper states neither a scale nor a clamp.

    Args:
        config: of the network, with two_times.
        flow_ratio: λ, share of a batch with equal times, which learns the velocity itself.

    Raises:
        ValueError: a network with one time, or λ outside [0, 1].

    Reference: Nguyen & Yoo 2025, "One-Step Flow Q-Learning: Addressing the Diffusion Policy Bottleneck in
        Offline Reinforcement Learning", section 4; Geng et al. 2025, "Mean Flows for One-step Generative
        Modeling", algorithm 1.

    Example:
        >>> actor = MeanFlowActor(ActorConfig(action_dim=2, state_dim=5, two_times=True))
        >>> actor.act(torch.zeros(7, 5), torch.zeros(7, 1, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(self, config: ActorConfig, flow_ratio: float = 0.5) -> None:
        super().__init__(config.action_dim)
        if not config.two_times:
            raise ValueError("config must have two_times=True, as an average velocity lies between two times")
        if not 0 <= flow_ratio <= 1:
            raise ValueError(f"flow_ratio must lie in [0, 1], got {flow_ratio}")
        self.net = ActorMLP(config)
        self.path, self.flow_ratio = paths.RectifiedFlow(time="t"), flow_ratio

    def flow(self, state: Float[Tensor, "batch state"]) -> FlowMap:
        """The network as a map between times of actions, told the states."""
        return FlowMap(self.net, self.path, "velocity", {"state": state})

    def act(
        self, state: Float[Tensor, "batch state"], noise: Float[Tensor, "batch draws numbers"]
    ) -> Float[Tensor, "batch numbers"]:
        """One jump from t = 1 to s = 0.

        Args:
            state: normalised.
            noise: one draw.
        """
        start = noise[:, 0]
        # u itself, as `flow` would give it; asked directly, as robots wait for it.
        return (start - self.net(start, 1.0, self.path.t_min, state=state)).clamp(-1, 1)

    def behaviour_loss(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch numbers"],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """mean over the batch of ‖u − sg(v − (t − r)·du/dt)‖², v = ε − a.

        Args:
            state: normalised.
            action: that was done there.
            generator: of times and noise.

        Reference: Nguyen & Yoo 2025, their loss of behaviour cloning; no adaptive weight.
        """
        return mean_flow_error(self.flow(state), action, generator, 1 - self.flow_ratio, power=0.0)
