"""RL-100's consistency head and its critics, against the published code; advantages by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core import paths
from fewstep.policy.config import cosine_betas
from fewstep.policy.nets.mlp import StateValue, TwinCritic
from fewstep.policy.rl.critics import advantage, double_q_loss, expectile_loss, standardised
from fewstep.policy.rl100.consistency import (
    backup_loss,
    boundary,
    neighbours,
    same_noise_loss,
    student_x0,
    teacher_step,
    trailing_levels,
)
from fewstep.policy.rl100.gae import estimate_advantages

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"
TABLE = paths.VP.from_betas(cosine_betas(100))


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def closed_form(weights: Tensor, level_scale: float = 1.0, scale: float = 1.0):
    def says(x: Tensor, level: Tensor) -> Tensor:
        told = 0.01 * level.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * level_scale
        return torch.tanh(scale * (x @ weights.to(x.dtype)) + told) * 0.9

    return says


def test_backup_loss() -> None:
    file = golden("rl100_consistency")
    steps, index = 5, file["in.index"]
    points = neighbours(index, 100, steps)
    assert points.start.tolist() == file["out.start_timesteps"].tolist()
    assert points.end.tolist() == file["out.timesteps"].tolist()
    for level, names in ((points.start, ("c_skip_start", "c_out_start")), (points.end, ("c_skip", "c_out"))):
        for weight, name in zip(boundary(level), names, strict=True):
            close(weight.float(), file[f"out.{name}"].flatten())
    student, teacher, average = (closed_form(file["in.W"], scale=s) for s in (1.05, 1.0, 0.95))
    x = TABLE.corrupt(file["in.latents"], points.start.double(), file["in.noise"])
    close(x, file["out.noisy"])
    below = teacher_step(TABLE, x, points, teacher(x, points.start))
    found = student_x0(TABLE, x, points.start, student(x, points.start))
    # The states at the noisiest levels are 1/a_t = 4e3 times larger than 1.
    torch.testing.assert_close(below, file["out.x_prev"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, file["out.model_pred"], rtol=1e-5, atol=1e-5)
    loss = backup_loss(TABLE, student, teacher, average, file["in.latents"], file["in.noise"], index, steps)
    # The last beta, 0.999, leaves 1 − β with a relative rounding of 6e-5 in the file's float32 table.
    torch.testing.assert_close(loss, file["out.loss"], rtol=6e-5, atol=0)


def test_one_step_of_the_consistency_head() -> None:
    file = golden("rl100_lcm_onestep")
    assert list(trailing_levels(100, 1)) == file["out.timesteps_1"].tolist()
    assert trailing_levels(100, 2)[0] == file["out.timesteps_2"][0]
    level = file["out.timesteps_1"].expand(4)
    weights = boundary(level[0])
    close(weights.skip.float(), file["out.c_skip"])
    close(weights.out.float(), file["out.c_out"])
    said = closed_form(file["in.W"])(file["in.x"], level)
    found = student_x0(TABLE, file["in.x"], level, said, clip=1.0)
    close(found, file["out.denoised"])
    close(found, file["out.prev"])


def iql() -> tuple[TwinCritic, StateValue, dict[str, Tensor]]:
    file = golden("rl100_iql")
    critic, value = TwinCritic(12, 4, (32, 32), "relu"), StateValue(12, (32, 32))
    critic.load_state_dict(
        {
            f"q{head}_model.{name}": file[f"sd.Q._net{head}.{name}"]
            for head in (1, 2)
            for name in (f"{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias"))
        }
    )
    names = [name for name in file if name.startswith("sd.V._net.")]
    value.load_state_dict({name.replace("sd.V._net", "v_model"): file[name] for name in names})
    return critic, value, file


def test_implicit_q_learning() -> None:
    critic, value, file = iql()
    config = json.loads((GOLDEN / "rl100_iql.json").read_text())["config"]
    state, action = file["in.state"], file["in.action"]
    with torch.no_grad():
        first, second = critic(state, action)
        close(first, file["out.q1"])
        close(second, file["out.q2"])
        close(value(state), file["out.v"])
        difference = critic.least(state, action) - value(state)
        close(expectile_loss(difference, config["omega"]), file["out.value_loss"])
        target = file["in.reward"] + config["gamma"] * file["in.not_done"] * value(file["in.next_state"])
        close(double_q_loss(critic, state, action, target), file["out.q_loss"])
    found = advantage(critic, value, state, action)
    close(found, file["out.advantage"])
    close(standardised(found), file["out.advantage_normalised"])


def test_expectile_pulls_up() -> None:
    up, down = torch.tensor([2.0]), torch.tensor([-2.0])
    assert float(expectile_loss(up, 0.9)) == pytest.approx(3.6)
    assert float(expectile_loss(down, 0.9)) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="expectile"):
        expectile_loss(up, 1.0)


def test_same_noise_counts_executed_actions_only() -> None:
    student = torch.zeros(2, 4, 1, requires_grad=True)
    teacher = torch.ones(2, 4, 1)
    teacher[:, 0] = 50.0
    loss = same_noise_loss(student, teacher, slice(1, 3))
    assert float(loss.detach()) == 1.0


def test_advantages_do_not_leak_across_environments() -> None:
    torch.manual_seed(0)
    reward, value, following = torch.randn(3, 6, 4, dtype=torch.float64)
    discount = 0.9 ** torch.randint(1, 9, (6, 4)).double()
    ended = torch.rand(6, 4) < 0.3
    terminal = ended & (torch.rand(6, 4) < 0.5)
    together = estimate_advantages(reward, value, following, discount, terminal, ended)
    for env in range(4):
        here = slice(env, env + 1)
        numbers = [given[:, here] for given in (reward, value, following, discount)]
        alone = estimate_advantages(*numbers, terminal[:, here], ended[:, here], 0.95)  # type: ignore[misc]
        close(together.advantage[:, here], alone.advantage, 0)
    changed = reward.clone()
    changed[:, 2] += 100
    other = estimate_advantages(changed, value, following, discount, terminal, ended)
    kept = [0, 1, 3]
    close(other.advantage[:, kept], together.advantage[:, kept], 0)


def test_advantages_do_not_leak_across_episodes() -> None:
    zero, no = torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.bool)
    reward = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    ended = no.clone()
    ended[1] = True
    found = estimate_advantages(reward, zero, zero, zero + 0.5, no, ended, 1.0).advantage
    assert found.flatten().tolist() == [0.0, 0.0, 0.5, 1.0]


def test_a_time_limit_keeps_the_value_of_the_last_state() -> None:
    one, yes = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    cut = estimate_advantages(one, 0 * one, 4 * one, 0.5 * one, ~yes, yes)
    over = estimate_advantages(one, 0 * one, 4 * one, 0.5 * one, yes, yes)
    assert (float(cut.target), float(over.target)) == (3.0, 1.0)


def test_bad_advantages() -> None:
    one, no = torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="lam"):
        estimate_advantages(one, one, one, one, no, no, 2.0)
