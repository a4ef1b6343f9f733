"""The gate of RL-100 on a finished run: its policies, and poisoned ones, imagined in the run's own world.

    python -m tests.bench.bench_policy_gate RUN DATA [--noise 0.02 0.05 0.1 0.2] [--episodes 0]

RUN is the folder that `fewstep policy finetune --method rl100` left, DATA its episodes. A policy is poisoned
by adding normal noise to its weights, of a share of every layer's own deviation. J is what the model of the
world and the critics of the first round say of a policy; the gate lets it take the place of the first one if
J grew by 5 %, and puts it back if J fell by 5 %. With --episodes every policy also acts in the environment,
where its true score and length are seen.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch

from fewstep.core.configs import config_from_dict
from fewstep.policy.demonstrations import observed, read_demonstrations
from fewstep.policy.envs.registry import env_spec
from fewstep.policy.evaluation import evaluate
from fewstep.policy.model import PolicyModel
from fewstep.policy.policy import Policy
from fewstep.policy.rl100.features import decisions_of
from fewstep.policy.rl100.fitting import fit_critics, fit_world
from fewstep.policy.rl100.offline import decides
from fewstep.policy.rl100.ope import Gate, imagined_value
from fewstep.policy.rl100.policy_chain import ChainPolicy, chain_of
from fewstep.policy.rl100.recipe import RL100Recipe
from fewstep.policy.rl100.run import standard
from fewstep.policy.train import VALIDATION_SEED


def poisoned(model: PolicyModel, share: float, seed: int = 0) -> PolicyModel:
    """A copy whose network has noise on its weights, `share` of the deviation of each of them."""
    made, draws = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in made.net.parameters():
            if weights.numel() > 1:
                weights += share * weights.std() * torch.randn(weights.shape, generator=draws)
    return made


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--noise", type=float, nargs="*", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--episodes", type=int, default=0, help="in the environment, of every policy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fields = json.loads((given.run / "recipe.json").read_text(encoding="utf-8"))
    recipe = config_from_dict(RL100Recipe, fields, "recipe.json")
    obs = recipe.obs if recipe.environment == "pusht" else None
    spec = env_spec(recipe.environment, obs)
    episodes = observed(read_demonstrations(given.data), recipe.environment, obs)
    first = PolicyModel.from_pretrained(str(given.run / "imitation" / "model"))
    found = decisions_of(
        first, standard(episodes, tuple(spec.observation_shapes)), recipe.reward, recipe.discount
    )
    place = given.run / "round-0"
    critic = fit_critics(found, recipe.critics, place / "critics", recipe.seed, "cpu")[0]
    world = fit_world(found, recipe.world, place / "world", recipe.seed, "cpu")
    starts = found.batch(np.random.default_rng([recipe.seed, 3]), recipe.offline.starts).state

    def acting(model: PolicyModel) -> ChainPolicy:
        chain = chain_of(model, recipe.chain_steps, recipe.std_min, recipe.std_max)
        return ChainPolicy(model, chain).eval()

    def imagined(model: PolicyModel) -> float:
        draws = torch.Generator().manual_seed(0)
        return imagined_value(decides(acting(model)), world, critic, starts, draws, recipe.offline.imagined)

    policies = {"imitation": first}
    for stage in ("round-0", "online"):
        policies[stage] = PolicyModel.from_pretrained(str(given.run / stage / "model"))
    policies |= {f"imitation, noise {share:g}": poisoned(first, share) for share in given.noise}
    gate, best = Gate(recipe.offline.gate_share, recipe.offline.gate_patience), imagined(first)
    print("| policy | J | the gate | score | success | steps |\n| --- | --- | --- | --- | --- | --- |")
    for name, model in policies.items():
        value = imagined(model)
        word = "puts it back" if gate.fell(value, best) else "refuses"
        word = "accepts" if gate.accepts(value, best) else word
        seen = " | | "
        if given.episodes:
            seeds = range(VALIDATION_SEED, VALIDATION_SEED + given.episodes)
            slots = min(given.episodes, 25)
            results = evaluate(Policy(acting(model), "cpu", rows_per_call=slots), spec, seeds, slots)  # type: ignore[arg-type]
            rate = np.mean(results.successes or [float("nan")])
            seen = f"{np.mean(results.scores):.3f} | {100 * rate:.0f} % | {np.mean(results.lengths):.1f}"
        print(f"| {name} | {value:.4f} | {'–' if name == 'imitation' else word} | {seen} |", flush=True)


if __name__ == "__main__":
    main()
