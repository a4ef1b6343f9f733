"""OFQL and FQL: the MeanFlow identity in closed form, one call, and Euler's method beside it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import AdaptiveError
from fewstep.core.objectives.trajectory.mean_flow import mean_flow_pair
from fewstep.policy.methods.bc import RegressionActor
from fewstep.policy.methods.fql import FlowActor
from fewstep.policy.methods.ofql import MeanFlowActor
from fewstep.policy.nets.mlp import ActorConfig

FILE = load_file(Path(__file__).parents[1] / "golden" / "policy" / "meanflow_closed_form.safetensors")
TWO = ActorConfig(action_dim=2, state_dim=3, hidden=16, depth=1, two_times=True, time_scale=100.0)
ONE = ActorConfig(action_dim=2, state_dim=3, hidden=16, depth=1, time_scale=100.0)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def leaves() -> dict[str, Tensor]:
    return {name: FILE[f"in.{name}"].clone().requires_grad_() for name in "Abce"}


def flow_of(weights: dict[str, Tensor]) -> FlowMap:
    def net(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        times = weights["b"] * s[:, None] + weights["c"] * t[:, None]
        return torch.tanh(x @ weights["A"].T + times) + weights["e"]

    return FlowMap(net, paths.RectifiedFlow(time="t", t_min=1e-12), "velocity")


@pytest.mark.parametrize(("power", "suffix"), [(0.0, ""), (1.0, "_adaptive")])
def test_loss_of_the_identity(power: float, suffix: str) -> None:
    weights = leaves()
    flow = flow_of(weights)
    a, eps, t, r = (FILE[f"in.{name}"] for name in ("a0", "eps", "nt", "nr"))
    x = flow.path.corrupt(a, t, eps)
    u, target = mean_flow_pair(flow, x, t, r, eps - a)
    close(u.detach(), FILE["out.net_u"])
    close(target, FILE["out.target"])
    loss = AdaptiveError(power)(u, target)
    if not power:
        close(loss.detach(), FILE["out.loss_per_sample"])
    close(loss.mean().detach(), FILE[f"out.loss{suffix}"])
    loss.mean().backward()
    assert weights["A"].grad is not None
    close(weights["A"].grad, FILE[f"out.grad_A{suffix}"])
    if not power:
        for name in "bce":
            gradient = weights[name].grad
            assert gradient is not None
            close(gradient, FILE[f"out.grad_{name}"])


def test_one_step_action() -> None:
    eps = FILE["in.eps1"]
    t = torch.ones(len(eps), dtype=torch.float64)
    found = eps - flow_of(leaves()).predict(eps, t, torch.zeros_like(t)).detach()
    close(found, FILE["out.one_step_action"])


def test_actor_asks_its_network_once_and_clamps() -> None:
    actor, seen = MeanFlowActor(TWO), []
    actor.net.register_forward_hook(lambda *call: seen.append(1))
    state, noise = torch.randn(5, 3), torch.randn(5, 1, 2)
    acted = actor.act(state, 9 * noise)
    assert len(seen) == 1
    assert float(acted.detach().abs().max()) == 1.0
    t, s = torch.ones(5), torch.full((5,), 1e-3)
    wanted = (noise[:, 0] - actor.net(noise[:, 0], t, s, state=state)).clamp(-1, 1)
    close(actor.act(state, noise), wanted, 1e-5)
    # It is what the map that learns the behaviour says of these times.
    ends = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    mapped = actor.flow(state).predict(noise[:, 0], *ends)
    close(actor.act(state, noise), (noise[:, 0] - mapped).clamp(-1, 1), 1e-6)


def test_kept_times_follow_the_weights() -> None:
    actor = MeanFlowActor(TWO)
    state, noise = torch.randn(5, 3), torch.randn(5, 1, 2)

    def asked() -> torch.Tensor:
        with torch.no_grad():
            return actor.act(state, noise)

    with torch.enable_grad():
        fresh = actor.act(state, noise).detach()
    for _ in range(2):
        close(asked(), fresh, 1e-6)
    close(actor.act(state[:2], noise[:2]).detach(), fresh[:2], 1e-6)
    optimizer = torch.optim.Adam(actor.net.time_mlp.parameters(), 0.1)
    actor.act(state, noise).sum().backward()
    optimizer.step()
    moved = actor.act(state, noise).detach()
    assert not torch.allclose(moved, fresh, atol=1e-3)
    close(asked(), moved, 1e-6)
    other = MeanFlowActor(TWO)
    actor.load_state_dict(other.state_dict())
    close(asked(), other.act(state, noise).detach(), 1e-6)
    with torch.inference_mode():
        inferred = MeanFlowActor(TWO)
        inferred.load_state_dict(other.state_dict())
        close(inferred.act(state, noise), other.act(state, noise), 1e-6)
    with torch.no_grad():
        exact = actor.double().act(state.double(), noise.double())
    close(exact.float(), other.act(state, noise).detach(), 1e-5)


@pytest.mark.parametrize(("ratio", "rows"), [(1.0, [8]), (0.5, [4, 4]), (0.0, [8])])
def test_derivative_only_where_times_differ(ratio: float, rows: list[int]) -> None:
    actor, seen = MeanFlowActor(TWO, flow_ratio=ratio), []
    actor.net.register_forward_hook(lambda net, call, out: seen.append(len(out)))
    generator = torch.Generator().manual_seed(0)
    loss = actor.behaviour_loss(torch.randn(8, 3), torch.rand(8, 2), generator)["loss"]
    loss.backward()
    assert seen == rows
    assert all(parameter.grad is not None for parameter in actor.parameters())


def test_flow_action_is_eulers() -> None:
    actor = FlowActor(ONE, steps=4)
    state, z = torch.randn(6, 3), torch.randn(6, 2)
    x = z
    for t in (1.0, 0.75, 0.5, 0.25):
        x = x - 0.25 * actor.velocity(x, torch.full((6,), t), state=state)
    close(actor.flow_action(state, z), x.detach().clamp(-1, 1), 1e-5)


def test_fql_loss_has_both_parts() -> None:
    actor = FlowActor(ONE, alpha=3.0)
    told = actor.behaviour_loss(torch.randn(8, 3), torch.rand(8, 2), torch.Generator().manual_seed(0))
    close(told["loss"], told["flow"] + 3 * told["distilled"], 1e-6)
    told["distilled"].backward()
    assert all(parameter.grad is None for parameter in actor.velocity.parameters())
    assert all(parameter.grad is not None for parameter in actor.one_step.parameters())


def test_regression_needs_no_noise() -> None:
    actor, state = RegressionActor(ONE), torch.randn(4, 3)
    close(actor.act(state, torch.zeros(4, 1, 2)), actor.act(state, torch.randn(4, 1, 2)), 0)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MeanFlowActor(ONE), "two_times"),
        (lambda: MeanFlowActor(TWO, flow_ratio=1.5), "flow_ratio"),
        (lambda: FlowActor(ONE, alpha=0.0), "alpha"),
        (lambda: FlowActor(ONE, steps=0), "steps"),
    ],
)
def test_bad_actors(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
