"""Constraints on the state of a sampler: functions for `on_step` that edit it in place."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.conditions import expanded
from fewstep.core.guidance.operators import LinearOperator
from fewstep.core.noise import SampleNoise
from fewstep.core.paths import Path
from fewstep.core.step_info import OnStep, StepInfo


class Replacement:
    """Puts the observation, noised to the level of the state, into every state of a sampler.

    x_s <- x_s - P·x_s + a_s·A⁺·y + b_s·P·c + sigma_s·P·w,  P = A⁺·A,  w fresh noise, c the path's own y.

    With `Mask` this is the published inpainting, with `Grayscale` of equal weights the published
    colourisation (P is the grey direction of an orthonormal basis of the channels). The last state gets no
    noise. Unlike `RangeNull` it leaves the denoiser alone: the network sees states whose known part is right,
    which is exact only in the limit of many corrector steps at every level.

    The published code replaces after the predictor and after the corrector, and with the noise of the time
    before the predictor's step; here it happens once a step, at the state's own time.

    Args:
        operator: what was observed of the data.
        observed: y = A·x_data, one entry for each sample or one for all.
        path: the path that is sampled.
        y: the degraded input of the path, if it uses one.
        seed: of the noise; sample i draws from seed + i, and every run draws the same.

    Raises:
        ValueError: when the path uses y and there is none.

    Reference: Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 5 and appendix I.

    >>> from fewstep.core import paths, sample
    >>> from fewstep.core.guidance.operators import Mask
    >>> known = Replacement(Mask(torch.tensor([[1, 0]])), torch.tensor([[[0.7, 0.0]]]), paths.EDM())
    >>> ball = lambda x, t: x / (1 + t * t)
    >>> round(sample(ball, paths.EDM(), steps=5, shape=(1, 1, 2), on_step=known)[0, 0, 0].item(), 4)
    0.7
    """

    def __init__(
        self,
        operator: LinearOperator,
        observed: Float[Tensor, "entries *observed"],
        path: Path,
        *,
        y: Float[Tensor, "batch *rest"] | None = None,
        seed: int = 0,
    ) -> None:
        if path.uses_y and y is None:
            raise ValueError(f"y is missing: {type(path).__name__} uses the degraded input")
        self.operator = operator
        self.observed = observed
        self.path = path
        self.y = y
        self.seed = seed
        self._noise: SampleNoise | None = None

    def __call__(self, info: StepInfo) -> None:
        """Edit the state that a sampler reports."""
        if self._noise is None or info.step == 1:
            self._noise = SampleNoise(self.seed, info.x.shape[0], info.x.device)
        noise = torch.zeros_like(info.x)
        if info.step < info.total:
            self._noise.fill(noise)
        info.x.copy_(self.applied(info.x, info.t, noise))

    def applied(
        self, x: Float[Tensor, "batch channels *space"], t: float | Tensor, noise: Tensor
    ) -> Float[Tensor, "batch channels *space"]:
        """The constrained state, for example of the start.

        Args:
            x: state.
            t: its time, one for all or one for each sample.
            noise: standard normal, shaped like x.
        """
        a, b, sigma = (
            (c.to(x).view(-1, *[1] * (x.ndim - 1)) for c in self.path.evaluate(t))
            if isinstance(t, Tensor) and t.ndim
            else self.path.coefficients(float(t))
        )
        wanted = sigma * noise - x
        if self.y is not None and self.path.uses_y:
            wanted = wanted + b * self.y.to(x)
        data = self.operator.pseudo_inverse(expanded("observed", self.observed, x.shape[0]).to(x))
        return x + self.operator.project(wanted) + a * data


def in_turn(*hooks: Callable[[StepInfo], bool | None]) -> OnStep:
    """One function for `on_step` that calls several; it stops the sampler when one of them wants to."""

    def on_step(info: StepInfo) -> bool:
        answers = [hook(info) for hook in hooks]
        return not any(answer is False for answer in answers)

    return on_step
