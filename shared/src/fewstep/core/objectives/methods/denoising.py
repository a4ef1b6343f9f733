"""Training from data: denoising and flow matching, which also make the teachers."""

from fewstep.core.objectives.couplings import OptimalTransport
from fewstep.core.objectives.denoising import ConditionDropout, DenoisingObjective, Error
from fewstep.core.objectives.distances import distance
from fewstep.core.objectives.loss_history import LossHistory
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.times import LogNormal, TimeSampler, time_sampler
from fewstep.core.objectives.uncertainty import Uncertainty
from fewstep.core.sampling import Sampling

SETTINGS = {"learning_rate": 5e-4, "schedule": "cosine", "updates": 12_000}


def denoise(
    material: Material,
    error: str = "x0",
    weight: str = "karras",
    mean: float = -1.2,
    std: float = 1.2,
    dropout: float = 0.1,
    learned_weight: bool = False,
) -> DenoisingObjective:
    """EDM: the squared error of x0, weighted so that it is the network's own, at log-normal noise levels."""
    return DenoisingObjective(
        material.path,
        material.prediction,
        Error(error, weight),
        times=LogNormal(mean, std),
        dropout=dropped(material, dropout),
        uncertainty=Uncertainty() if learned_weight else None,
    )


def flow_matching(
    material: Material,
    times: str = "uniform-clock",
    loss: str = "squared",
    dropout: float = 0.1,
) -> DenoisingObjective:
    """Rectified flow from independent noise, in the path's own scale; times "history" follow the losses."""
    chosen: TimeSampler = LossHistory(material.path) if times == "history" else time_sampler(times)
    return DenoisingObjective(
        material.path,
        material.prediction,
        Error("velocity", "uniform", distance(loss)),
        times=chosen,
        dropout=dropped(material, dropout),
    )


def ot_cfm(material: Material, times: str = "uniform-clock", dropout: float = 0.1) -> DenoisingObjective:
    """Flow matching with minibatch optimal transport, inside each class where there are classes."""
    within = None if material.null_label is None else "label"
    return DenoisingObjective(
        material.path,
        material.prediction,
        Error("velocity"),
        times=time_sampler(times),
        coupling=OptimalTransport(within),
        dropout=dropped(material, dropout),
    )


def dropped(material: Material, probability: float) -> ConditionDropout | None:
    """Dropout of the labels of a model that has them."""
    if material.null_label is None or not probability:
        return None
    return ConditionDropout({"label": material.null_label}, probability)


METHODS = {
    "denoise": Method(
        "Karras, Aittala, Aila and Laine 2022",
        "denoising score matching with EDM's weights and noise levels",
        denoise,
        ("data",),
        Sampling("ode", 18),
        settings=SETTINGS,
    ),
    "flow-matching": Method(
        "Lipman et al. 2023; Liu, Gong and Liu 2023 (1-rectified flow)",
        "velocity of straight lines from noise to data",
        flow_matching,
        ("data",),
        Sampling("ode", 32, spacing="clock", solver="ddim"),
        settings=SETTINGS,
    ),
    "ot-cfm": Method(
        "Pooladian et al. 2023; Tong et al. 2024",
        "flow matching with noise assigned by minibatch optimal transport",
        ot_cfm,
        ("data",),
        Sampling("ode", 16, spacing="clock", solver="ddim"),
        settings=SETTINGS,
    ),
}
