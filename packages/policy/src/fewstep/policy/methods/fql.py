"""Flow Q-Learning: a velocity field that clones, and a one-step actor that follows it and the critic."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.objectives.sample_batch import normal_like, uniform

from ..nets.mlp import ActorConfig, ActorMLP, perceptron
from ..rl.actor import Actor


class FlowActor(Actor):
    """The one-step actor μ(s, z), held near the end of the flow of v_θ from the same z.

    loss = mean (v_θ(x_t, t, s) − v)² + α·mean (μ(s, z) − a_θ(s, z))²,  x_t = (1 − t)a + tε, v = ε − a,
    a_θ by Euler steps from z, clamped, without a graph. The paper's time runs the other way, which changes
    the sign of v and nothing else; the network is told t by sines (times its `time_scale`) where the paper's
    is told t itself.

    Args:
        config: of the velocity's network.
        alpha: α, the weight of the distillation.
        steps: of Euler's method.

    Raises:
        ValueError: α that is not positive, or no step.

    Reference: Park, Li & Levine 2025, "Flow Q-Learning", eqs. 6-8, algorithm 1.

    Example:
        >>> actor = FlowActor(ActorConfig(action_dim=2, state_dim=5))
        >>> actor.act(torch.zeros(7, 5), torch.zeros(7, 1, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(self, config: ActorConfig, alpha: float = 10.0, steps: int = 10) -> None:
        super().__init__(config.action_dim)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.velocity: nn.Module = ActorMLP(config)
        into = config.state_dim + config.action_dim
        self.one_step = perceptron(
            (into, *(config.hidden,) * config.depth, config.action_dim), config.activation
        )
        self.path, self.alpha, self.steps = paths.RectifiedFlow(time="t"), alpha, steps

    def act(
        self, state: Float[Tensor, "batch state"], noise: Float[Tensor, "batch draws numbers"]
    ) -> Float[Tensor, "batch numbers"]:
        """μ(s, z), clamped.

        Args:
            state: normalised.
            noise: z, one draw.
        """
        return self._followed(state, noise[:, 0]).clamp(-1, 1)

    @torch.no_grad()
    def flow_action(
        self, state: Float[Tensor, "batch state"], noise: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch numbers"]:
        """a_θ(s, z): Euler's method on the velocity field, clamped at its end.

        Args:
            state: normalised.
            noise: z.
        """
        x = noise
        for t, after in pairwise(1 - i / self.steps for i in range(self.steps + 1)):
            times = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
            x = x - (t - after) * self.velocity(x, times, state=state)
        return x.clamp(-1, 1)

    def behaviour_loss(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch numbers"],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Both losses of the class, and each of them for the log."""
        noise, t = normal_like(action, generator), uniform(len(action), generator, action.device)
        x = self.path.corrupt(action, t, noise)
        velocity = self.velocity(x, t.to(x.dtype), state=state)
        cloned = (velocity - (noise - action)).square().mean()
        start = normal_like(action, generator)
        followed = (self._followed(state, start) - self.flow_action(state, start)).square().mean()
        return {"loss": cloned + self.alpha * followed, "flow": cloned, "distilled": followed}

    def _followed(self, state: Tensor, noise: Tensor) -> Tensor:
        return self.one_step(torch.cat([state, noise], dim=1))
