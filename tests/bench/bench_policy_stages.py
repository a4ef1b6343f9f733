"""The stages of a run of RL-100 on test seeds: every stage's chain, then the one-call student.

    python -m tests.bench.bench_policy_stages RUN [--episodes 100]

RUN is the folder that `fewstep policy finetune --method rl100` left. A stage acts by the means of its chain,
as in the run's own evaluations; steps saved are over the imitation, seed by seed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from fewstep.core.configs import config_from_dict
from fewstep.policy.envs.registry import env_spec
from fewstep.policy.evaluation import evaluate
from fewstep.policy.model import PolicyModel
from fewstep.policy.policy import Policy
from fewstep.policy.rl100.policy_chain import ChainPolicy, chain_of
from fewstep.policy.rl100.recipe import RL100Recipe
from tests.bench.paired_results import table_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    fields = json.loads((given.run / "recipe.json").read_text(encoding="utf-8"))
    recipe = config_from_dict(RL100Recipe, fields, "recipe.json")
    spec = env_spec(recipe.environment, recipe.obs if recipe.environment == "pusht" else None)
    found = {}
    for stage in ("imitation", "online", "student"):
        acting: Any = PolicyModel.from_pretrained(str(given.run / stage / "model"))
        if stage != "student":
            chain = chain_of(acting, recipe.chain_steps, recipe.std_min, recipe.std_max)
            acting = ChainPolicy(acting, chain).eval()
        found[stage] = evaluate(Policy(acting, "cpu"), spec, spec.test_seeds(given.episodes), 25)
    print(table_of(found))


if __name__ == "__main__":
    main()
