"""RL-100's chains, their densities and the surrogate, against the published code."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core import paths
from fewstep.policy.config import cosine_betas
from fewstep.policy.rl100.chain import DDIMChain, FlowChain, Moments, entropy, log_density, walk
from fewstep.policy.rl100.ppo import (
    action_log_ratio,
    adapted_rate,
    approximate_kl,
    chunk_log_ratio,
    clipped_value_loss,
    surrogate_loss,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "policy"
TABLE = paths.VP.from_betas(cosine_betas(100))


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def settings(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())["config"]


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_ddim_chain_and_its_densities() -> None:
    file, config = golden("rl100_ddim_ppo"), settings("rl100_ddim_ppo")
    chain = DDIMChain(TABLE, config["num_inference_steps"], config["steps_offset"], config["clip_std_min"])
    assert [int(t) for t in chain.times] == file["out.timesteps"].tolist()

    def says(scale: float):
        return lambda x, k: torch.tanh(scale * (x @ file["in.W"]) + 0.01 * chain.times[k]) * 0.9

    walked = walk(chain, says(1.0), file["in.x_init"], file["in.noise"])
    close(walked.states, file["out.chain"])
    # A density magnifies the rounding of its states, 2e-7, by |z|/σ, here up to 3/0.02.
    close(walked.log_probs, file["out.logprob_old"], 1e-4)
    new, means = [], []
    for k in range(len(chain)):
        at = walked.states[k]
        moments = chain.moments(k, at, says(1.1)(at, k))
        new.append(log_density(walked.states[k + 1], moments))
        means.append(chain.moments(k, at, says(1.0)(at, k)).mean)
        # The file holds sums over the chunk's four actions; its σ come from a float32 difference, 1 − ᾱ/ᾱ'.
        found = torch.full((4, 1, 3), 4 * entropy(moments.std))
        torch.testing.assert_close(found, file["out.entropy"][k], rtol=1e-5, atol=0)
    close(torch.stack(means), file["out.step_mean"])
    ratios = torch.stack(
        [chunk_log_ratio(n, o, slice(0, 3)).exp() for n, o in zip(new, file["out.logprob_old"], strict=True)]
    )
    torch.testing.assert_close(ratios, file["out.chunk_ratio"], rtol=1e-3, atol=0)
    for k, ratio in enumerate(file["out.chunk_ratio"]):
        close(surrogate_loss(ratio.log(), file["in.advantage"], 0.25), file["out.ppo_loss_per_step"][k])


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_flow_chain(kind: str) -> None:
    file, config = golden(f"rl100_flow_{kind}"), settings(f"rl100_flow_{kind}")
    chain = FlowChain(config["K"], kind, config["noise_level"], config["clip_std_min"])
    close(torch.tensor([*chain.times, 0.0]), file["out.sigmas"], 1e-6)

    def says(x: Tensor, k: int) -> Tensor:
        return torch.tanh(x @ file["in.W"] + 0.5 * chain.times[k])

    walked = walk(chain, says, file["in.x_init"], file["in.noise"])
    close(walked.states, file["out.chain"])
    for k in range(len(chain)):
        mean, std = chain.moments(k, walked.states[k], says(walked.states[k], k))
        close(mean, file["out.mean"][k])
        close(torch.tensor(std), file["out.std"][k], 1e-6)


def test_a_single_cps_step_is_the_jump() -> None:
    chain = FlowChain(1, "cps", std_min=0.1)
    x, velocity = torch.randn(2, 3, 4)
    mean, std = chain.moments(0, x, velocity)
    close(mean, x - (1 - 1e-4) * velocity, 1e-6)
    assert std == 0.1


def test_the_largest_deviation_holds() -> None:
    chain = DDIMChain(TABLE, 10, std_min=0.05, std_max=0.1)
    deviations = [chain.moments(k, torch.zeros(1, 2), torch.zeros(1, 2)).std for k in range(10)]
    assert max(deviations) == 0.1
    assert min(deviations) == 0.05


def test_density_of_one_number() -> None:
    found = log_density(torch.tensor([1.5]), Moments(torch.tensor([0.5]), 2.0))
    wanted = torch.distributions.Normal(0.5, 2.0).log_prob(torch.tensor([1.5]))
    close(found, wanted, 1e-6)


def test_ratios_of_actions_and_chunks() -> None:
    new, old = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    each = action_log_ratio(new, old, slice(1, 3))
    assert each.shape == (3, 2)
    close(each.sum(1), chunk_log_ratio(new, old, slice(1, 3)), 1e-12)


def test_surrogate_stops_at_its_clip() -> None:
    gain = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    far = torch.tensor([0.6, -0.6], dtype=torch.float64, requires_grad=True)
    loss = surrogate_loss(far, gain, 0.2)
    close(loss.detach(), torch.tensor(-(1.2 - 0.8) / 2, dtype=torch.float64), 1e-12)
    loss.backward()
    assert far.grad is not None
    assert far.grad.tolist() == [0.0, 0.0]
    each = torch.zeros(2, 3, dtype=torch.float64)
    close(surrogate_loss(each, gain, 0.2), torch.tensor(0.0, dtype=torch.float64), 1e-12)


def test_divergence_value_loss_and_rate() -> None:
    assert approximate_kl(torch.zeros(5)) == 0
    assert approximate_kl(torch.tensor([0.3, -0.3])) > 0
    value, before, target = torch.tensor([[[1.0]], [[0.0]], [[2.0]]])
    # Held within 0.2 of what was said before, the value is 0.2, which is further from 2 than 1 is.
    close(clipped_value_loss(value, before, target, 0.2), torch.tensor(0.5 * 1.8**2), 1e-6)
    assert adapted_rate(3e-6, 0.001, 0.02, 5e-7, 1e-5) == pytest.approx(4.5e-6)
    assert adapted_rate(3e-6, 0.02, 0.02, 5e-7, 1e-5) == 3e-6
    assert adapted_rate(5e-7, 9.0, 0.02, 5e-7, 1e-5) == 5e-7


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: DDIMChain(TABLE, 0), "steps"),
        (lambda: DDIMChain(TABLE, 5, offset=20), "offset"),
        (lambda: DDIMChain(TABLE, 5, std_min=0.0), "std_min"),
        (lambda: FlowChain(5, "ode"), "kind"),
        (lambda: FlowChain(5, noise_level=2.0), "noise_level"),
        (lambda: FlowChain(5, std_min=0.2, std_max=0.1), "std_min"),
        (lambda: surrogate_loss(torch.zeros(1), torch.zeros(1, 1), 1.5), "clip"),
        (lambda: walk(FlowChain(5), lambda x, k: x, torch.zeros(1, 2), torch.zeros(4, 1, 2)), "noise"),
    ],
)
def test_bad_input(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_entropy_is_that_of_a_normal() -> None:
    assert entropy(0.5) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25))
