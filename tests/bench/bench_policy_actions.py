"""Time of a decision of trained policies, one thread: what a robot waits for.

Every policy is asked through `Policy.select_action`, so that reading the observation, the network calls and
handing out a chunk all count. A decision is a call that asks the network; a chunk's later actions are handed
out and cost next to nothing. The policies take turns, so that a busy machine is the same for all.

    python -m tests.bench.bench_policy_actions MODEL … [--decisions 1000] [--json FILE]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from fewstep.policy.policy import Policy

WARM_UP = 50


def seen_by(policy: Policy, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random observation."""
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in policy.config.observations.items()
    }


def decision(policy: Policy, observation: dict[str, np.ndarray]) -> tuple[float, float]:
    """Seconds of a decision, and of a decision with all the actions of its chunk."""
    began = time.perf_counter()
    policy.select_action(observation)
    decided = time.perf_counter()
    plan = policy.plan()
    for _ in range(len(plan) - 1 if plan is not None else 0):
        policy.select_action(observation)
    return decided - began, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--decisions", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    policies = {name: Policy.from_pretrained(name, device="cpu") for name in args.models}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    for turn in range(WARM_UP + args.decisions):
        for name, policy in policies.items():
            measured = decision(policy, seen_by(policy, rng))
            if turn >= WARM_UP:
                times[name].append(measured)
    found = {}
    print("| policy | actions a decision | ms a decision | ms an action | worst decision, ms |")
    print("|---|---|---|---|---|")
    for name, policy in policies.items():
        decided, whole = zip(*times[name], strict=True)
        actions = len(range(policy.config.horizon)[policy.config.executed])
        found[name] = {
            "actions": actions,
            "decision_ms": 1e3 * statistics.median(decided),
            "action_ms": 1e3 * statistics.median(whole) / actions,
            "worst_ms": 1e3 * max(decided),
        }
        print(
            "| {} | {actions} | {decision_ms:.2f} | {action_ms:.2f} | {worst_ms:.1f} |".format(
                name, **found[name]
            )
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
