"""A student: the teacher's network again, as a method wants it."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core import predictions
from fewstep.core.bridges.diffusers_folder import DiffusersModel
from fewstep.core.flow_map import FlowMap
from fewstep.core.models import NETWORKS, DiffusionModel
from fewstep.core.objectives import methods
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.paths import Path
from fewstep.core.sampling import Sampling

Model = DiffusionModel | DiffusersModel
# How far x0 of a typical state may move when only the prediction's name changes, in units of sigma_data.
_SAME = 0.02


def prediction_of(model: Model) -> str:
    """What the model's network predicts."""
    return model.prediction if isinstance(model, DiffusersModel) else model.config.prediction


def labels_of(model: Model) -> tuple[str, ...]:
    """Names of the model's classes."""
    return model.labels if isinstance(model, DiffusersModel) else model.config.labels


def null_label_of(model: Model) -> int | None:
    """The label that means "none"; None where there is no such label."""
    return model.null_label if isinstance(model, DiffusionModel) and model.config.labels else None


def build_student(teacher: Model, method: Method, sampling: Sampling, seed: int = 0) -> Model:
    """Return a new model with the teacher's weights.

    A second time, where the method needs one, begins without effect: its last layer is zero. The prediction
    becomes the method's where the weights mean the same under it (an "edm" network as "edm-boundary"), and
    stays the teacher's elsewhere, so that the student always begins as the teacher.

    Args:
        teacher: the trained model.
        method: see Method.
        sampling: how the student is meant to be sampled.
        seed: of new weights.

    Raises:
        ValueError: the method needs a second time that this network cannot take.
    """
    if isinstance(teacher, DiffusersModel):
        if method.two_times:
            raise ValueError(cannot_take_two_times("a network of diffusers"))
        network = copy.deepcopy(teacher.net.model)
        return DiffusersModel(network, teacher.scheduler, sampling, teacher.folder)
    config = replace(
        teacher.config,
        network_options=_network_options(teacher, method),
        prediction=_prediction(prediction_of(teacher), method.prediction, teacher.path),
        sampling=_as_json(asdict(sampling)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = DiffusionModel(config)
    wanted, given = student.state_dict(), teacher.state_dict()
    surplus = sorted(set(given) - set(wanted))
    if surplus:
        raise ValueError(f"the student has no place for the teacher's weights {', '.join(surplus)}")
    student.load_state_dict({**wanted, **given})
    return student


def sampled_by(student: Model, sampling: Sampling) -> None:
    """From now on the student is meant to be sampled in this way."""
    if isinstance(student, DiffusersModel):
        student.sampling = sampling
    else:
        student.config = replace(student.config, sampling=_as_json(asdict(sampling)))


def one_time_methods() -> tuple[str, ...]:
    """Names of the methods whose students take one time, as any network does."""
    return tuple(name for name in methods.names() if not methods.get(name).two_times)


def cannot_take_two_times(what: str) -> str:
    """The sentence for a network without a second time."""
    return (
        f"the method needs a network that takes a second time, which {what} does not; "
        f"methods for it: {', '.join(one_time_methods()) or 'none is installed'}"
    )


class GuidedNet(nn.Module):
    """A network under classifier-free guidance, both halves in one batch.

    out = out_null + scale·(out_label − out_null); without a label it is the network itself.

    Args:
        net: called as net(x, t, label=…).
        scale: of the guidance.
        null_label: the label that means "none".

    Reference: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6 (scale = 1 + w).
    """

    def __init__(self, net: nn.Module, scale: float, null_label: int) -> None:
        super().__init__()
        self.net, self.scale, self.null_label = net, scale, null_label

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The guided raw value."""
        if label is None:
            return self.net(x, t)
        label = label.expand(len(x))
        both = torch.cat([label, torch.full_like(label, self.null_label)])
        guided, plain = self.net(torch.cat([x, x]), torch.cat([t, t]), label=both).chunk(2)
        return plain + self.scale * (guided - plain)

    def features(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> list[Tensor]:
        """Those of the network with the label, for heads that judge by features."""
        return self.net.features(x, t, label=label)  # type: ignore[operator]


@dataclass(frozen=True)
class GuidedMaterial(Material):
    """Material whose teacher is guided, while copies of the teacher are made of the plain network.

    Args:
        plain: the teacher's network without guidance.
    """

    plain: nn.Module | None = None

    def copy_of_teacher(self) -> nn.Module:
        """A trainable copy of the plain network: a fake score learns what samples there are, unguided."""
        if self.plain is None:
            return super().copy_of_teacher()
        return copy.deepcopy(self.plain).requires_grad_(True)


def make_material(
    teacher: Model, student: Model, updates: int, options: Mapping[str, Any], guidance: float = 1.0
) -> Material:
    """What a method works with; the teacher's network is a frozen copy of its own.

    Raises:
        ValueError: guidance is wanted, but the model has no classes or no label that means "none".
    """
    plain = copy.deepcopy(teacher.net).eval().requires_grad_(False)
    null = null_label_of(teacher)
    net = plain
    if guidance != 1.0:
        if null is None:
            raise ValueError("guidance needs a teacher with classes and a label that means none")
        net = GuidedNet(plain, guidance, null).eval()
    flow = FlowMap(net, teacher.path, prediction_of(teacher))
    common = (student.path, prediction_of(student), student.net, flow, teacher.shape, updates, null, options)
    if net is plain:
        return Material(*common, sampling=student.sampling)
    return GuidedMaterial(*common, plain, sampling=student.sampling)


def _network_options(teacher: DiffusionModel, method: Method) -> dict[str, Any]:
    options = dict(teacher.config.network_options)
    if not method.two_times:
        return options
    kind = NETWORKS[teacher.config.network][1]
    if "two_times" not in {field.name for field in fields(kind)}:
        raise ValueError(cannot_take_two_times(f"the network {teacher.config.network!r}"))
    return {**options, "two_times": True}


def _prediction(own: str, wanted: str | None, path: Path) -> str:
    return wanted if wanted is not None and _means_the_same(own, wanted, path) else own


def _means_the_same(own: str, other: str, path: Path) -> bool:
    """Whether x0 of a typical state and output is nearly equal under both predictions, at every time."""
    if own == other:
        return True
    first, second = predictions.get(own), predictions.get(other)
    if first.heads != 1 or second.heads != 1:
        return False
    noisy, clean = max(path.half_log_snr(path.t_max), -8.0), min(path.half_log_snr(path.t_min), 8.0)
    for i in range(17):
        t = path.time_at(noisy + (clean - noisy) * i / 16)
        a, _, sigma = path.coefficients(t)
        try:
            mine, theirs = first.x0_weights(path, t), second.x0_weights(path, t)
        except (ValueError, ZeroDivisionError):
            return False
        state = (a * a * path.sigma_data**2 + sigma * sigma) ** 0.5
        if abs(mine.x - theirs.x) * state + abs(mine.out[0] - theirs.out[0]) > _SAME * path.sigma_data:
            return False
    return True


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
