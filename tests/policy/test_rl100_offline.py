"""The offline stage on a world whose best action is known: the gate, putting back, resuming."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.policy.line_world import (
    ExactCritic,
    ExactValue,
    ExactWorld,
    line_data,
    line_model,
    line_policy,
)
from torch import Tensor

from fewstep.policy.rl100.fitting import fit_critics, fit_world
from fewstep.policy.rl100.offline import Judges, decides, improve_offline
from fewstep.policy.rl100.ope import Gate, WorldModel, imagined_value
from fewstep.policy.rl100.policy_chain import ChainPolicy
from fewstep.policy.rl100.recipe import CriticRecipe, OfflineStage, WorldRecipe

STAGE = OfflineStage(
    rate=1e-2, batch_size=128, updates=60, gradient=10.0, gate_every=10, imagined=4, starts=128
)


def judges() -> Judges:
    return Judges(ExactCritic(1, 1, (1,)), ExactValue(1, (1,)), ExactWorld(1, 1, 1, 1, 1, 1))


def judged(policy: ChainPolicy, seed: int = 0) -> float:
    starts = torch.linspace(-1, 1, 200)[:, None]
    generator = torch.Generator().manual_seed(seed)
    return imagined_value(decides(policy), judges().world, judges().critic, starts, generator, 4)


def weights(policy: ChainPolicy) -> Tensor:
    return torch.cat([value.flatten() for value in policy.model.net.state_dict().values()])


def test_imagined_value_by_hand() -> None:
    starts = torch.tensor([[1.0], [-1.0]])

    def home(state: Tensor, generator: torch.Generator) -> Tensor:
        return (-2 * state).clamp(-1, 1)

    found = imagined_value(home, judges().world, judges().critic, starts, torch.Generator(), 4)
    # From 1: to 1/2, to 0, and it stays.
    assert found == pytest.approx(-0.5 / 4)
    with pytest.raises(ValueError, match="length"):
        imagined_value(home, judges().world, judges().critic, starts, torch.Generator(), 0)


def test_gate_accepts_an_improved_policy_and_refuses_a_poisoned_one(tmp_path: Path) -> None:
    policy, gate = line_policy(std=0.5), Gate()
    before = judged(policy)
    result = improve_offline(policy, line_data(), judges(), STAGE, tmp_path)
    after = judged(policy)
    assert result.accepted >= 2
    assert gate.accepts(after, before)
    assert result.value > result.before
    poisoned = copy.deepcopy(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in poisoned.model.net.parameters():
            parameter += torch.randn_like(parameter)
    assert not gate.accepts(judged(poisoned), after)
    assert gate.fell(judged(poisoned), after)


def test_a_policy_that_fell_is_put_back(tmp_path: Path) -> None:
    good = line_policy(std=0.5)
    improve_offline(good, line_data(), judges(), STAGE, tmp_path / "good")
    kept = weights(good).clone()
    ruinous = OfflineStage(
        rate=1.0, batch_size=64, updates=4, gradient=1e6, gate_every=1, imagined=4, starts=64
    )
    result = improve_offline(good, line_data(), judges(), ruinous, tmp_path / "ruined")
    assert result.put_back >= 1
    if result.accepted == 0:
        assert torch.equal(weights(good), kept)
    assert result.value >= result.before


def test_gate_by_numbers() -> None:
    gate = Gate(share=0.05, patience=1)
    assert gate.accepts(-9.5, -10.0)
    assert not gate.accepts(-9.6, -10.0)
    assert not gate.accepts(float("nan"), -10.0)
    assert gate.fell(float("nan"), -10.0)
    assert gate.fell(-10.5, -10.0)
    assert not gate.fell(-10.4, -10.0)
    for bad in ({"share": -0.1}, {"patience": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Gate(**bad)  # type: ignore[arg-type]


def test_a_resumed_improvement_equals_an_unbroken_one(tmp_path: Path) -> None:
    stage = OfflineStage(rate=1e-3, batch_size=16, updates=6, gate_every=2, imagined=2, starts=16)
    whole, broken = line_policy(), line_policy()
    improve_offline(whole, line_data(8), judges(), stage, tmp_path / "whole")
    stops = iter([False, False, True, False, False, False])
    improve_offline(broken, line_data(8), judges(), stage, tmp_path / "broken", stop=lambda: next(stops))
    again = line_policy()
    result = improve_offline(again, line_data(8), judges(), stage, tmp_path / "broken")
    assert result.updates == 6
    assert torch.equal(weights(again), weights(whole))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_another_network_is_refused(tmp_path: Path) -> None:
    stage = OfflineStage(batch_size=8, updates=1, gate_every=1, imagined=1, starts=8)
    improve_offline(line_policy(), line_data(8), judges(), stage, tmp_path)
    other = line_policy()
    other.model.net = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="other networks"):
        improve_offline(other, line_data(8), judges(), stage, tmp_path)


def test_world_and_critics_are_learned(tmp_path: Path) -> None:
    data = line_data(200)
    world = fit_world(
        data,
        WorldRecipe(hidden=32, depth=2, members=3, elites=2, rate=3e-3, updates=150, batch_size=64),
        tmp_path / "world",
        seed=0,
        device="cpu",
    )
    rows = data.all
    went = world.step(rows.state, rows.action.flatten(1), torch.Generator().manual_seed(0))
    error = float((went - rows.next_state).square().mean())
    still = float((rows.state - rows.next_state).square().mean())
    assert error < 0.2 * still
    critic, value = fit_critics(
        data, CriticRecipe(hidden=(32,), rate=1e-2, tau=0.1, updates=150), tmp_path / "critics", 0, "cpu"
    )
    near, far = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    with torch.no_grad():
        assert float(value(near)) > float(value(far))
        homeward = critic.least(far, torch.tensor([[-1.0]]))
        assert float(homeward) > float(critic.least(far, torch.tensor([[1.0]])))


def test_world_needs_transitions_that_go_on() -> None:
    data = line_data(2)
    data.all.discount.zero_()
    with pytest.raises(ValueError, match="at least 10"):
        fit_world(data, WorldRecipe(), Path("unused"), 0, "cpu")
    with pytest.raises(ValueError, match="elites"):
        WorldModel(1, 1, members=2, elites=3)


def test_likelihood_prefers_the_truth() -> None:
    world = WorldModel(1, 1, 8, 1, 2, 1)
    state, action = torch.zeros(2, 5, 1), torch.zeros(2, 5, 1)
    mean, spread = world(state, action)
    assert bool((spread < 0.5).all())
    assert bool((spread > -10).all())
    right = world.loss(state, action, mean.detach())
    wrong = world.loss(state, action, mean.detach() + 1)
    assert bool((right < wrong).all())


def test_a_policy_without_a_chain_is_refused() -> None:
    from fewstep.core import paths
    from fewstep.policy.rl100.policy_chain import chain_of

    model = line_model()
    assert len(chain_of(model, 3, 0.01, 0.8)) == 3
    model.path = paths.EDM()
    with pytest.raises(ValueError, match="table of betas"):
        chain_of(model, 3, 0.01, 0.8)


def test_states_are_drawn_from_the_data() -> None:
    data = line_data(4)
    batch = data.batch(np.random.default_rng(0), 32)
    assert set(batch.state.flatten().tolist()) <= set(data.all.state.flatten().tolist())
