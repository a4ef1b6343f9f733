"""The online stage, the student and the whole run on a world whose best action is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.policy.line_world import STEPS, Line, line_model, line_policy, line_spec
from torch import Tensor

from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.episodes import Episodes
from fewstep.policy.files.npz import read_npz
from fewstep.policy.model import PolicyModel
from fewstep.policy.nets.mlp import StateValue
from fewstep.policy.rl100 import run as runs
from fewstep.policy.rl100.chain import FlowChain
from fewstep.policy.rl100.collect import collect
from fewstep.policy.rl100.online import decisions_from, improve_online, training_seeds
from fewstep.policy.rl100.policy_chain import ChainPolicy
from fewstep.policy.rl100.recipe import CriticRecipe, OfflineStage, OnlineStage, RL100Recipe, WorldRecipe
from fewstep.policy.rl100.student import distill_chain, student_of

STAGE = OnlineStage(
    iterations=3, episodes=4, passes=2, batch_size=8, rate=1e-3, rates=(1e-4, 1e-2), critic_first=1
)


def weights(policy: ChainPolicy) -> Tensor:
    return torch.cat([value.flatten() for value in policy.model.net.state_dict().values()])


def test_collected_decisions() -> None:
    policy, spec = line_policy(), line_spec()
    found = collect(policy, spec, [3, 4, 5], discount=0.5)
    assert found.told.shape == (STEPS + 1, 3, 1)
    assert found.states.shape == (STEPS, 3, 2, 1, 1)
    assert found.ended.sum(0).tolist() == [1, 1, 1]
    assert not found.terminal.any()
    assert bool((found.discount == 0.5).all())
    episode = found.episodes.episode(1)
    # What the policy was told is what the environment showed, and the reward follows from its action.
    np.testing.assert_allclose(found.told[:STEPS, 1, 0], episode["state"][:, 0], atol=1e-6)
    after = episode["state"][:, 0] + 0.5 * episode["action"][:, 0]
    np.testing.assert_allclose(episode["reward"], -np.abs(after), atol=1e-6)
    np.testing.assert_allclose(found.reward[:, 1], episode["reward"], atol=1e-6)
    density = policy.density(found.told[0], 0, found.states[0, :, 0], found.states[0, :, 1])
    torch.testing.assert_close(density, found.log_probs[0, :, 0], rtol=0, atol=1e-5)


def test_an_episode_does_not_depend_on_its_neighbours() -> None:
    together = collect(line_policy(), line_spec(), [3, 4])
    alone = collect(line_policy(), line_spec(), [4])
    torch.testing.assert_close(together.states[:, 1], alone.states[:, 0], rtol=0, atol=1e-6)


def test_a_world_that_breaks_ends_its_episode() -> None:
    class Breaking(Line):
        def step(self, action: np.ndarray):
            seen, gain, over, cut, info = super().step(action)
            if self.count == 2:
                return {"state": seen["state"] * np.nan}, gain, over, cut, {"problem": "it broke"}
            return seen, gain, over, cut, info

    spec = replace(line_spec(), create=lambda side: Breaking())
    found = collect(line_policy(), spec, [1])
    assert int(found.active.sum()) == 2
    assert bool(found.terminal[1, 0])
    assert bool(torch.isfinite(found.told).all())


def test_training_seeds_stay_out_of_tests() -> None:
    spec: EnvSpec = line_spec()
    first, second = training_seeds(spec, 5, 0, 0), training_seeds(spec, 5, 1, 0)
    assert len({*first, *second}) == 10
    assert max(*first, *second) < spec.first_test_seed
    assert min(*first, *second) >= 60_000


def test_a_resumed_stage_equals_an_unbroken_one(tmp_path: Path) -> None:
    def value() -> StateValue:
        torch.manual_seed(3)
        return StateValue(1, (8,))

    whole, broken, again = line_policy(), line_policy(), line_policy()
    improve_online(whole, value(), line_spec(), STAGE, tmp_path / "whole")
    stops = iter([False, True])
    improve_online(broken, value(), line_spec(), STAGE, tmp_path / "broken", stop=lambda: next(stops))
    told = improve_online(again, value(), line_spec(), STAGE, tmp_path / "broken")
    assert torch.equal(weights(again), weights(whole))
    assert not torch.equal(weights(whole), weights(line_policy()))
    assert set(told) == {"return", "length", "success", "divergence", "rate"}
    lines = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_after_far_enough_only_the_value_goes_on(tmp_path: Path) -> None:
    def learned(passes: int, divergence: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(3)
        policy, value = line_policy(), StateValue(1, (8,))
        stage = replace(STAGE, iterations=1, critic_first=0, passes=passes, divergence=divergence)
        improve_online(policy, value, line_spec(), stage, tmp_path / f"{passes}-{divergence}")
        return weights(policy), torch.cat([p.detach().flatten() for p in value.parameters()])

    (once, value_once), (far, value_far), (on, _) = learned(1, 1e-9), learned(4, 1e-9), learned(4, 1e9)
    assert torch.equal(far, once)
    assert not torch.equal(value_far, value_once)
    assert not torch.equal(on, once)


def test_the_policy_learns_to_go_home(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy, value = line_policy(std=0.3), StateValue(1, (32,))
    stage = OnlineStage(
        iterations=15,
        episodes=32,
        passes=4,
        rate=1e-2,
        rates=(1e-3, 2e-2),
        divergence=0.1,
        gradient=10.0,
        value_rate=1e-2,
    )

    def gained() -> float:
        found = collect(policy, line_spec(), range(64))
        return found.summary()["return"]

    before = gained()
    improve_online(policy, value, line_spec(), stage, tmp_path, discount=0.9)
    # Standing still costs 4·½ = 2 on average, perfect play about 0.3.
    assert gained() > before + 0.5


def test_rows_leave_out_what_did_not_happen() -> None:
    found = collect(line_policy(), line_spec(), [1, 2])
    shorter = replace(found, active=found.active & torch.tensor([[True, True]] * 2 + [[True, False]] * 2))
    rows = decisions_from(shorter, StateValue(1, (4,)), 0.95)
    assert len(rows) == 6
    assert rows.states.shape[1:] == (2, 1, 1)


def test_student_acts_like_its_chain(tmp_path: Path) -> None:
    teacher = ChainPolicy(line_model(), FlowChain(3, "cps"))
    with torch.no_grad():
        for parameter in teacher.model.net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    told = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    z = torch.randn(64, 1, 1)

    def apart(student: PolicyModel) -> float:
        with torch.no_grad():
            made = student.draw(torch.from_numpy(told), steps=1, noise=lambda like: z)
            wanted = teacher.held(teacher.settled(torch.from_numpy(told), z))
            return float((made - wanted).square().mean())

    before = apart(student_of(teacher.model))
    student = distill_chain(teacher, told, tmp_path, updates=150, batch_size=64, rate=1e-2, device="cpu")
    assert apart(student) < 0.5 * before
    with pytest.raises(ValueError, match="at most 1"):
        student.draw(torch.from_numpy(told), steps=2)


def test_all_stages_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "env_spec", lambda name, obs: line_spec())
    start = line_model()
    demos = collect(ChainPolicy(start, FlowChain(1, "cps", std_min=0.3)), line_spec(), range(16)).episodes
    recipe = RL100Recipe(
        environment="line",
        chain_steps=2,
        reward="none",
        new_episodes=2,
        critics=CriticRecipe(hidden=(8,), updates=2, batch_size=8),
        world=WorldRecipe(hidden=8, depth=1, members=2, elites=1, updates=2, batch_size=8),
        offline=OfflineStage(updates=2, batch_size=8, gate_every=1, imagined=2, starts=8),
        online=replace(STAGE, iterations=1),
        student_updates=2,
        student_episodes=3,
        evaluation=4,
    )
    told = runs.run_rl100(recipe, demos, tmp_path, start=start, device="cpu")
    assert len(read_npz(tmp_path / "student" / "episodes.npz")) == 3
    assert len(read_npz(tmp_path / "round-0" / "episodes.npz")) == 2
    assert list(told) == ["imitation", "round-0", "online", "student"]
    assert told["online"]["episodes"] == 4
    assert json.loads((tmp_path / "stages.json").read_text())["student"]["env"] == "line"
    made = (tmp_path / "online" / "model" / "model.safetensors").stat().st_mtime_ns
    assert runs.run_rl100(recipe, demos, tmp_path, start=start, device="cpu") == told
    assert (tmp_path / "online" / "model" / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="other settings"):
        runs.run_rl100(replace(recipe, seed=1), demos, tmp_path, start=start, device="cpu")


def test_coverage_serves_as_reward() -> None:
    state = np.zeros((4, 2), np.float32)
    coverage = np.array([0.1, 0.5, 0.2, 0.96], np.float32)
    episodes = Episodes({"state": state, "action": state, "coverage": coverage}, np.array([2, 4]))
    found = runs.standard(episodes, ("state",))
    np.testing.assert_allclose(found.arrays["reward"], [0.5 / 0.95, 0.5 / 0.95, 1.0, 1.0], rtol=1e-6)
    assert found.arrays["terminated"].tolist() == [False, False, False, True]
    twice = runs.joined(found, found)
    assert len(twice) == 4
    with pytest.raises(ValueError, match="image"):
        runs.standard(episodes, ("image",))


@pytest.mark.parametrize(
    ("name", "value"), [("reward", "normalize"), ("discount", 0.0), ("chain_steps", 0), ("rounds", -1)]
)
def test_bad_recipe(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        RL100Recipe(**{name: value})  # type: ignore[arg-type]


def test_bad_collection() -> None:
    with pytest.raises(ValueError, match="normalize"):
        collect(line_policy(), line_spec(), [1], reward="normalize")
    with pytest.raises(ValueError, match="seeds"):
        collect(line_policy(), line_spec(), [])
