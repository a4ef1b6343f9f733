"""AdversarialHead: a judge that tells data from samples, and what student and judge learn from it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.objectives.adversarial.features import Given, View, feature_source
from fewstep.core.objectives.adversarial.losses import LogitLoss, logit_loss
from fewstep.core.objectives.adversarial.regularisers import Regulariser
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.times import TimeSampler
from fewstep.core.paths import Path
from fewstep.core.training import Moment
from fewstep.core.training.phases import Networks

SHARED = ("nothing", "time", "time and noise")
_CLIP = 10.0


class AdversarialHead:
    """A judge l(x_t, t) of noised states: data should get large logits, samples small ones.

    judge:   mean[ real(l(x_t)) + made(l(x̂_t)) ] + regulariser,   x_t = a·x0 + b·y + sigma·eps,
    student: student(l(x̂_t)),

    where x̂_t is the student's sample, noised like the data. For "softplus" the best judge is
    l = log q_t(x_t) − log p_t(x_t) with data q and samples p. Gradients reach the student through x̂_t in
    its phase and never in the judge's; a judge's phase that trains the network of the features trains it by
    this loss as well (DMD2).

    Args:
        path: of the states.
        head: module (features, t) → logits (batch, ...), of a list of feature tensors and the time that the
            network is told; see `heads.py` and `pool.py`.
        features: the name of a network of the run, a frozen module (a teacher), a function (x, t), or a
            FeatureSource.
        times: where the inputs are noised to; None: they stay clean.
        loss: "softplus", "hinge", "lsgan" or a LogitLoss.
        regulariser: of the judge, on data; see `regularisers.py`.
        told: the times that the network is told in place of the input's own (APT).
        shared: what data and samples of a judge's batch have in common: "nothing", "time", or
            "time and noise".
        name: of the judge among the networks of the run.

    Raises:
        TypeError: features is of no known kind.
        ValueError: loss or shared is unknown.

    Reference: Wang et al. 2023, "Diffusion-GAN"; Yin et al. 2024 (DMD2), section 4.3.
    """

    def __init__(
        self,
        path: Path,
        head: nn.Module,
        features: Given = "fake",
        times: TimeSampler | None = None,
        loss: str | LogitLoss = "softplus",
        regulariser: Regulariser | None = None,
        *,
        told: TimeSampler | None = None,
        shared: str = "nothing",
        name: str = "head",
    ) -> None:
        if shared not in SHARED:
            raise ValueError(f"shared must be one of {', '.join(SHARED)}, got {shared!r}")
        self.path, self.times, self.told, self.shared, self.name = path, times, told, shared, name
        self.features, self.loss, self.regulariser = feature_source(features), logit_loss(loss), regulariser
        trunk = self.features.trained()
        self.module = head if trunk is None else _Judge(trunk, head)

    def modules(self) -> dict[str, nn.Module]:
        """The judge: its head, and the network of its features if that is its own."""
        return {self.name: self.module}

    def frozen(self) -> tuple[nn.Module, ...]:
        """The network of the features, if it never changes."""
        return self.features.frozen()

    def student_loss(
        self,
        networks: Networks,
        x: Float[Tensor, "batch *shape"],
        batch: SampleBatch,
        generator: torch.Generator,
        moment: Moment,
    ) -> Float[Tensor, "batch"]:
        """What the student pays for its samples, one number per sample.

        Args:
            networks: of the run.
            x: samples, with their graph.
            batch: conditions, and y on a path that has one.
            generator: of times and noise.
            moment: where the run stands.
        """
        t, noise = self._level(x, generator), normal_like(x, generator)
        told, head = self._told(x, t, generator), _chosen(self._head(networks), generator)
        judge = self._judging(networks, t, told, batch.conditions, head)
        return _per_sample(self.loss.student(judge(self._noised(x, t, noise, batch))))

    def judge_loss(
        self,
        networks: Networks,
        real: Float[Tensor, "batch *shape"],
        made: Float[Tensor, "batch *shape"],
        batch: SampleBatch,
        generator: torch.Generator,
        moment: Moment,
    ) -> dict[str, Tensor]:
        """What the judge pays.

        Args:
            networks: of the run.
            real: data.
            made: samples under the same conditions; no gradient reaches them.
            batch: conditions, and y on a path that has one.
            generator: of times and noise.
            moment: where the run stands.

        Returns:
            "loss", the share "regulariser" of it in updates that have one, and the mean logits "real" and
            "made" for the log.
        """
        real, made = real.detach(), made.detach()
        t, noise = self._level(real, generator), normal_like(real, generator)
        told, head = self._told(real, t, generator), _chosen(self._head(networks), generator)
        judge = self._judging(networks, t, told, batch.conditions, head)
        noised = self._noised(real, t, noise, batch)
        on_real = judge(noised)
        penalty = None if self.regulariser is None else self.regulariser(judge, noised, generator, moment)
        if self.shared == "nothing":
            t = self._level(made, generator)
            told = self._told(made, t, generator)
            judge = self._judging(networks, t, told, batch.conditions, head)
        if self.shared != "time and noise":
            noise = normal_like(made, generator)
        on_made = judge(self._noised(made, t, noise, batch))
        loss = (_per_sample(self.loss.real(on_real)) + _per_sample(self.loss.made(on_made))).mean()
        logged = {"real": on_real.detach().mean(), "made": on_made.detach().mean()}
        if penalty is None:
            return {"loss": loss, **logged}
        return {"loss": loss + penalty.mean(), "regulariser": penalty.detach().mean(), **logged}

    def log_ratio(
        self,
        networks: Networks,
        x: Float[Tensor, "batch *shape"],
        t: Shaped[Tensor, "batch"],
        conditions: Mapping[str, Any],
    ) -> Float[Tensor, "batch"]:
        """log q_t(x_t) − log p_t(x_t), the mean of the head's logits, clipped to ±10.

        Args:
            networks: of the run.
            x: states at t, noised already.
            t: their times.
            conditions: of the network.

        Raises:
            ValueError: the loss is not one whose best judge is the ratio.
        """
        if not self.loss.calibrated:
            raise ValueError("log_ratio needs a judge with loss='softplus', whose logit is log q/p")
        judge = self._judging(networks, t, t, conditions, self._head(networks))
        return judge(x).flatten(1).mean(1).clamp(-_CLIP, _CLIP)

    def after_update(self, moment: Moment) -> None:
        """Called by the objective after every update of the judge: a pool of heads refreshes itself."""
        refresh = getattr(self._head({self.name: self.module}), "refresh", None)
        if refresh is not None:
            refresh(moment)

    def _level(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.times is None:
            return torch.full((len(x),), self.path.t_clean, dtype=torch.float64, device=x.device)
        return self.times(self.path, len(x), generator, x.device)

    def _told(self, x: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        if self.told is not None:
            return self.told(self.path, len(x), generator, x.device)
        return t.clamp_min(self.path.t_min)

    def _noised(self, x: Tensor, t: Tensor, noise: Tensor, batch: SampleBatch) -> Tensor:
        return x if self.times is None else self.path.corrupt(x, t, noise, batch.y)

    def _head(self, networks: Networks) -> nn.Module:
        judge = networks[self.name]
        return judge.head if isinstance(judge, _Judge) else judge

    def _judging(
        self,
        networks: Networks,
        t: Tensor,
        told: Tensor,
        conditions: Mapping[str, Any],
        head: Callable[..., Tensor],
    ) -> Callable[[Tensor], Tensor]:
        """States at these times → logits."""

        def judge(x: Tensor) -> Tensor:
            maps = self.features(networks, View(self.path, x, t, told, conditions))
            clock = self.path.network_time_at(told.double()).to(x.device)
            return head(maps, clock).to(x.dtype)

        return judge


class _Judge(nn.Module):
    """A head together with the network of its features, which learns with it."""

    head: nn.Module

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head


def _chosen(head: nn.Module, generator: torch.Generator) -> Callable[..., Tensor]:
    """The head, or of a pool those heads that judge this time."""
    choose = getattr(head, "choose", None)
    return head if choose is None else choose(generator)


def _per_sample(values: Tensor) -> Tensor:
    """The mean over a sample's logits."""
    return values if values.ndim == 1 else values.flatten(1).mean(1)
