"""Make the pictures of docs/policy.md: `python -m tools.policy_pictures`.

A strip of an episode for every shipped policy, from its start to its end, in docs/assets/policy: the first
one of the test seeds that it solves; in the mazes the longest of twenty, as many are over after a few steps.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.core.checkpoints import shipped
from fewstep.policy.commands.options import spec_of
from fewstep.policy.evaluation import evaluate
from fewstep.policy.loading import PACKAGE
from fewstep.policy.policy import Policy
from fewstep.policy.rollouts import roll_out

ASSETS = Path(__file__).parents[1] / "docs" / "assets" / "policy"
EPISODES, SIDE, SHOWN, GAP = 20, 256, 6, 6


def strip(name: str) -> Image.Image:
    """Six pictures of an episode side by side."""
    policy = Policy.from_pretrained(name, "cpu")
    spec = spec_of(policy.model, None, None)
    results = evaluate(policy, spec, spec.test_seeds(EPISODES), EPISODES)
    solved = [episode for episode in results.episodes if episode.success]
    chosen = max(solved, key=lambda episode: episode.length) if spec.goals else solved[0]
    frames = roll_out(policy, spec, chosen.seed, SIDE).frames
    print(f"{name}: seed {chosen.seed}, {chosen.length} steps")
    shown = frames[np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)]
    made = np.full((SIDE, SHOWN * (SIDE + GAP) - GAP, 3), 255, np.uint8)
    for place, frame in enumerate(shown):
        made[:, place * (SIDE + GAP) : place * (SIDE + GAP) + SIDE] = frame
    return Image.fromarray(made)


def main() -> None:
    """Write every picture and say where."""
    ASSETS.mkdir(parents=True, exist_ok=True)
    for name in shipped(PACKAGE):
        file = ASSETS / f"{name}.webp"
        strip(name).save(file, quality=82, method=6)
        print(file.relative_to(ASSETS.parents[2]))


if __name__ == "__main__":
    main()
