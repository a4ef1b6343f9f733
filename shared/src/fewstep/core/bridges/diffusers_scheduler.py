"""FewstepScheduler: every solver of fewstep inside a diffusers pipeline."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import (
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)
from torch import Tensor

from fewstep.core import grids, predictions, solvers
from fewstep.core.bridges.diffusers_config import (
    family_of,
    path_from_config,
    prediction_from_config,
    times_from_config,
)
from fewstep.core.bridges.diffusers_noise import PipelineNoise
from fewstep.core.paths import Path, RectifiedFlow
from fewstep.core.plan import Plan
from fewstep.core.predictions import Prediction
from fewstep.core.solvers import Solver
from fewstep.core.stepping import PlanStepper
from fewstep.core.thresholding import Dynamic, Static

_REFUSED = ("use_beta_sigmas", "use_lu_lambdas", "invert_sigmas", "shift_terminal", "stochastic_sampling")


class FewstepScheduler(SchedulerMixin, ConfigMixin):
    """A solver of fewstep as the scheduler of a diffusers pipeline.

        pipeline.scheduler = FewstepScheduler.from_config(pipeline.scheduler.config, solver="unipc-3")

    It understands the configurations of the VP, EDM and flow-matching schedulers (see `path_from_config`).
    `timesteps` has one entry per network call. A pipeline may change the state between the steps (masks,
    callbacks) and may start in the middle (image to image).

    Args:
        num_train_timesteps: size N of the table.
        beta_start, beta_end: first and last beta.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: the table itself.
        rescale_betas_zero_snr: shift the table to zero terminal SNR.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        timestep_spacing: "trailing" (default), "linspace" or "leading".
        steps_offset: added to "leading" times.
        use_karras_sigmas: equal steps of sigma^(1/7).
        use_exponential_sigmas: equal steps of log sigma.
        clip_sample: clamp every estimate of x0 to ±`clip_sample_range`.
        clip_sample_range: see `clip_sample`.
        thresholding: dynamic thresholding of every estimate of x0.
        dynamic_thresholding_ratio: its quantile.
        sample_max_value: its largest threshold.
        shift: time shift of a flow path.
        use_dynamic_shifting: replace it by e^mu, which the pipeline computes from the picture's size.
        sigma_min, sigma_max: noise levels of an EDM path.
        sigma_data: standard deviation of its data.
        family: "vp", "edm" or "flow"; found from the configuration by `from_config`.
        solver: a name of `solvers.names()` whose method has a plan.
        solver_options: fields of the solver.
        grid: a name of `grids.names()` instead of the times that the configuration stands for.

    Raises:
        ValueError: an option is unknown or not supported; the message names it.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012 - diffusers' own field
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        family: str = "vp",
        solver: str = "dpmpp-2m",
        solver_options: Mapping[str, Any] | None = None,
        grid: str | None = None,
    ) -> None:
        config = self._settings
        self.path: Path = path_from_config(config)
        self.prediction: Prediction = predictions.get(prediction_from_config(config))
        self.method: Solver = solvers.get(solver, **dict(solver_options or {}))
        self._limit: Static | Dynamic | None = None
        if thresholding:
            self._limit = Dynamic(dynamic_thresholding_ratio, cap=sample_max_value)
        elif clip_sample:
            self._limit = Static(-clip_sample_range, clip_sample_range)
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._times: tuple[float, ...] = ()
        self._asked: tuple[float, ...] = ()
        self._stepper: PlanStepper | None = None
        self._noise = PipelineNoise()
        self._begin: int | None = None
        self._count = 0

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the configuration of another one; `kwargs` (solver, grid …) go before it.

        Raises:
            ValueError: the configuration asks for something that this scheduler does not do.
        """
        values = {**dict(config), **kwargs}
        for name in _REFUSED:
            if values.get(name):
                raise ValueError(f"{name} is not supported; give FewstepScheduler a grid by name instead")
        if (
            values.get("use_dynamic_shifting")
            and values.get("time_shift_type", "exponential") != "exponential"
        ):
            raise ValueError(f"time_shift_type must be 'exponential', got {values['time_shift_type']!r}")
        values["family"] = family_of(values)
        if values["family"] == "flow":
            values["shift"] = values.get("flow_shift") or values.get("shift") or 1.0
        known = inspect.signature(cls.__init__).parameters
        return super().from_config(
            {name: value for name, value in values.items() if name in known and value is not None},
            return_unused_kwargs,
        )

    @property
    def _settings(self) -> Any:
        """The registered configuration: a dictionary whose entries are attributes too."""
        return self.config

    @property
    def init_noise_sigma(self) -> float:
        """Factor on unit noise that makes the start."""
        return self.path.start_weights()[1]

    @property
    def step_index(self) -> int | None:
        """Number of network values taken; None before the first."""
        return self._count if self._stepper is not None else None

    @property
    def begin_index(self) -> int | None:
        """Where `set_begin_index` said to begin."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this entry of `timesteps` (image to image)."""
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Iterable[float] | None = None,
        sigmas: Iterable[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Compile the plan; `timesteps` then has one entry per network call.

        Args:
            num_inference_steps: steps of the solver.
            device: where `timesteps` lies.
            timesteps: path times to ask at, decreasing, instead of a grid (table indices on VP).
            sigmas: noise levels to ask at instead: sigma/a on VP, sigma on EDM, unshifted times on flow.
            mu: log of the time shift that a flow pipeline computes from the picture's size.

        Raises:
            ValueError: nothing or too much is given, or the solver has no plan.
        """
        if self._settings.use_dynamic_shifting and mu is not None and isinstance(self.path, RectifiedFlow):
            self.path = replace(self.path, shift=math.exp(mu))
        self._times = self._grid_times(num_inference_steps, timesteps, sigmas)
        plan = _compiled(self.method, self.path, self._times, self.prediction)
        self._asked = tuple(float(row.t) for row in plan.rows if row.ask)  # pyright: ignore[reportArgumentType]
        told = [self.path.network_time(t) for t in self._asked]
        whole = all(value == round(value) for value in told)
        self.timesteps = torch.tensor(told, device=device, dtype=torch.int64 if whole else torch.float32)
        self.num_inference_steps = len(self._times) - 1
        self._stepper, self._begin, self._count = None, None, 0

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is given: the path's factor times the state (1 except for EDM)."""
        t = self._stepper.t if self._stepper else self._asked[self._position(timestep)]
        scale = self.path.input_scale(t)
        return sample if scale == 1.0 else sample * scale

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take the network's value at `sample` and return the next state that it is to be asked at.

        Args:
            model_output: raw value of the network.
            timestep: an entry of `timesteps`.
            sample: the state that was asked at.
            generator: where draws of a stochastic solver come from.
            return_dict: False gives a tuple.

        Raises:
            ValueError: `set_timesteps` was not called, or the timestep is none of its entries.
        """
        if self._stepper is None:
            self._stepper = self._started(timestep, sample)
        self._noise.generator = generator
        state = _precise(sample)
        out = model_output.to(state.dtype)[:, : state.shape[1]]  # a learned variance follows the estimate
        if self._limit is not None:
            x0 = self.prediction.to_x0(self.path, self._stepper.t, state, out)
            out = self.prediction.from_x0(self.path, self._stepper.t, state, self._limit(x0))
        self._stepper.advance(out, state)
        self._count += 1
        result = self._stepper.state.to(sample.dtype)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = a·x0 + sigma·noise at entries of `timesteps` (or table indices)."""
        known = {float(told): t for told, t in zip(self.timesteps.tolist(), self._asked, strict=True)}
        times = [known.get(float(value), float(value)) for value in timesteps.reshape(-1).tolist()]
        t = torch.tensor(times, dtype=torch.float64, device=original_samples.device)
        return self.path.corrupt(original_samples, t.expand(len(original_samples)), noise)

    def __len__(self) -> int:
        return self._settings.num_train_timesteps

    def _grid_times(
        self, steps: int | None, timesteps: Iterable[float] | None, sigmas: Iterable[float] | None
    ) -> tuple[float, ...]:
        if timesteps is not None:
            return (*(float(t) for t in timesteps), self.path.t_clean)
        if sigmas is not None:
            levels = [float(sigma) for sigma in sigmas if float(sigma) > 0]
            if self._settings.family == "flow":
                return (*levels, 0.0)
            ratios = torch.tensor(levels, dtype=torch.float64)
            return (*self.path.time_at(-ratios.log()).tolist(), self.path.t_clean)
        if steps is None:
            raise ValueError("num_inference_steps is missing: give it, timesteps or sigmas")
        if self._settings.grid:
            return grids.get(self._settings.grid)(self.path, steps)
        return times_from_config(self._settings, self.path, steps)

    def _position(self, timestep: Any) -> int:
        """Where an entry stands in `timesteps`."""
        if timestep is None or self._begin is not None:
            return self._begin or 0
        found = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
        if not len(found):
            raise ValueError(f"timestep must be one of scheduler.timesteps, got {timestep}")
        return int(found[0])

    def _started(self, timestep: Any, sample: Tensor) -> PlanStepper:
        """The plan from the step that begins at `timestep` on."""
        if not self._times:
            raise ValueError("call set_timesteps before step")
        start = self._asked[self._position(timestep)]
        if start not in self._times:
            raise ValueError(f"timestep {timestep} is a stage inside a step of {self.method.name}")
        times = self._times[self._times.index(start) :]
        plan = _compiled(self.method, self.path, times, self.prediction)
        return PlanStepper(plan, _precise(sample), noise=self._noise)


def _precise(sample: Tensor) -> Tensor:
    return sample.to(torch.promote_types(sample.dtype, torch.float32))


@lru_cache(maxsize=64)
def _compiled(method: Solver, path: Path, times: tuple[float, ...], prediction: Prediction) -> Plan:
    return method.compile(path, times).folded(prediction)
