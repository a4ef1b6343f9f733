"""Trajectory distribution matching: a few deterministic calls, each with the teacher's marginals."""

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.building import fake_score, guidance, settings
from fewstep.core.objectives.score.families import PseudoTarget
from fewstep.core.objectives.score.huber_target import HuberTarget
from fewstep.core.objectives.score.trajectory_matching import (
    Above,
    Between,
    Chain,
    Target,
    TrajectoryDistributionMatching,
    TrajectoryMatching,
)
from fewstep.core.sampling import Sampling

FOUR_STEPS = Sampling("ode", steps=4, spacing="clock", solver="ddim", kappa=10.0)


def tdm(
    material: Material,
    above: Above = "start",
    target: Target = "estimate",
    huber: float | None = None,
    guidance_scale: float = 1.0,
    fake_updates: int = 1,
    fake_learning_rate: float | None = 1e-3,
) -> TrajectoryDistributionMatching:
    """Marginals of the student's own steps; `huber` is the c of the public code's loss; None: the paper's."""
    fake = fake_score(material, fake_updates, fake_learning_rate, 0.9)
    family = PseudoTarget("tdm-huber") if huber is None else HuberTarget(huber)
    guided = guidance(material, guidance_scale)
    matching = TrajectoryMatching(material.taught(), fake.prediction, family, Between(above), guided)
    chain = Chain(tuple((material.sampling or FOUR_STEPS).grid(material.path)[:-1]))
    return TrajectoryDistributionMatching(
        material.path, material.prediction, matching, chain, fake, target=target
    )


METHODS = {
    "tdm": Method(
        "Luo et al. 2025",
        "matches the marginals of every state on the student's deterministic way",
        tdm,
        needs=("teacher",),
        sampling=FOUR_STEPS,
        settings=settings(),
    ),
}
