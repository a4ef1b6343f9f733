"""Flash-DMD: distribution matching for the noisy calls, a judge for the others, and a reward for all."""

from dataclasses import replace
from typing import Any

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.base import ScoreDistillation, Term
from fewstep.core.objectives.score.building import assembled, fake_score, guidance, judge, settings
from fewstep.core.objectives.score.intervals import Adversarial, Within, bands
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.objectives.score.reward import Reward
from fewstep.core.sampling import Sampling

FOUR_CALLS = Sampling("consistency", steps=4, spacing="clock", kappa=10.0)


def flash_dmd(
    material: Material,
    split: float = 1.0,
    gan_weight: float = 3e-3,
    judge_weight: float = 1e-2,
    reward: Any = None,
    reward_weight: float = 1.0,
    reward_begins: float = 0.5,
    guidance_scale: float = 1.0,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Calls from sigma/a = `split` up match distributions, those below a judge; `reward` is a function."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.9)
    low, high = bands([split])
    judged = judge(material, fake, 0.0, judge_weight)
    matching = ScoreMatching(teacher, fake.prediction, guidance=guidance(material, guidance_scale))
    terms: list[Term] = [
        Within(high, material.path, matching),
        Within(low, material.path, Adversarial(judged.head, gan_weight)),
    ]
    if reward is not None:
        terms.append(Reward(reward, reward_weight, reward_begins))
    material = replace(material, sampling=material.sampling or FOUR_CALLS)
    return assembled(material, terms, fake, judged)


METHODS = {
    "flash-dmd": Method(
        "Flash-DMD 2025",
        "distribution matching for calls at high noise, a judge for those at low noise, optionally a reward",
        flash_dmd,
        needs=("teacher", "data"),
        sampling=FOUR_CALLS,
        settings=settings(),
    ),
}
