"""The one runner: executes any folded plan with reused buffers and in-place sums."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from fewstep.core.noise import NoiseSource
from fewstep.core.plan import Plan
from fewstep.core.schedule import Instruction, Schedule, schedule
from fewstep.core.step_info import OnStep, StepInfo

Predict = Callable[[Tensor, float | Tensor], Tensor]
_NOTHING = torch.empty(0)  # in place of a vector that is no longer needed


def run(
    plan: Plan,
    predict: Predict,
    x: Tensor,
    y: Tensor | None = None,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
    grad: bool = False,
) -> Tensor:
    """Execute a folded plan with one given state and one result.

    Each row is a chain of in-place multiply-adds over the vectors it names. A liveness analysis, done once a
    plan, puts the states into few buffers; network outputs are kept by reference as long as a later row needs
    them. A step allocates nothing and reads nothing back from the device.

    Args:
        plan: a folded plan (`Plan.folded`).
        predict: the raw network value, `predict(state, t)` with t a float, or a tensor (batch,) in a stacked
            plan. It may return a lower precision than the state, on another device, or its own input; it must
            not write into a tensor that it returned before.
        x: the given state, shape (batch, ...); never written to.
        y: the degraded input, if the plan uses it.
        noise: where draws come from, if the plan draws.
        on_step: called after every step; returning False stops and returns the state reached.
        grad: build new tensors instead of reusing buffers, so that gradients can flow.

    Returns:
        The last state, in the dtype and on the device of `x`.

    Raises:
        ValueError: if the plan is not folded or has several starts or results, a needed input is missing or a
            shape is wrong.
    """
    if len(plan.results) != 1:
        raise ValueError(f"plan has {len(plan.results)} results; use run_states for them")
    return run_states(plan, predict, (x,), y, noise, on_step, grad)[0]


def run_states(
    plan: Plan,
    predict: Predict,
    starts: tuple[Tensor, ...],
    y: Tensor | None = None,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
    grad: bool = False,
) -> tuple[Tensor, ...]:
    """Execute a folded plan with any number of given states and results, such as a two-state map.

    Args:
        starts: the given states, `plan.starts` of them. The other arguments are those of `run`.

    Returns:
        The states that `plan.results` names; if `on_step` stopped the run, only the state reached.

    Raises:
        ValueError: as `run`.
    """
    _check_inputs(plan, starts, y, noise)
    work = _prepared(plan, on_step is not None, starts[0].dtype)
    if plan.batch is not None:
        work = _per_sample(work, starts[0])
    machine = _Machine(plan, work, starts, y, noise, grad)
    with torch.set_grad_enabled(grad):
        stopped = machine.execute(predict, on_step)
    return tuple(machine.vectors[slot] for slot in work.results) if stopped is None else (stopped,)


def _check_inputs(plan: Plan, given: tuple[Tensor, ...], y: Tensor | None, noise: NoiseSource | None) -> None:
    if plan.prediction is None:
        raise ValueError("plan must be folded before it runs: plan.folded(prediction)")
    if len(given) != plan.starts:
        raise ValueError(f"this plan needs {plan.starts} given states, not {len(given)}")
    if not given[0].is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, its dtype is {given[0].dtype}")
    if plan.uses("y") and y is None:
        raise ValueError("y is missing: this path or prediction uses the degraded input")
    if plan.uses("n") and noise is None:
        raise ValueError(f"noise is missing: {plan.solver} draws noise")
    if plan.batch is not None and plan.batch != given[0].shape[0]:
        raise ValueError(f"x has {given[0].shape[0]} samples, the plan was stacked for {plan.batch}")


@lru_cache(maxsize=256)
def _prepared(plan: Plan, observed: bool, dtype: torch.dtype) -> Schedule:
    """The schedule with its scale factors as scalar tensors of the state's dtype.

    `mul_` wraps a Python float into a tensor on every call, which takes longer than a small product itself.
    """

    def convert(ins: Instruction) -> Instruction:
        return (
            ins._replace(scale=torch.tensor(ins.scale, dtype=dtype)) if isinstance(ins.scale, float) else ins
        )

    return schedule(plan, observed).mapped(convert)


def _per_sample(work: Schedule, like: Tensor) -> Schedule:
    """The schedule with every tuple of numbers as a tensor on the state's device."""
    shape = (-1,) + (1,) * (like.ndim - 1)

    def column(value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        return torch.tensor(value, dtype=like.dtype, device=like.device).view(shape)

    def convert(ins: Instruction) -> Instruction:
        times = torch.tensor(ins.t, dtype=torch.float64, device=like.device) if ins.t is not None else None
        adds = tuple((slot, column(c)) for slot, c in ins.adds)
        return ins._replace(t=times, scale=column(ins.scale), adds=adds)

    return work.mapped(convert)


class _Machine:
    """The vectors of one run and the loop over its instructions."""

    def __init__(
        self,
        plan: Plan,
        work: Schedule,
        given: tuple[Tensor, ...],
        y: Tensor | None,
        noise: NoiseSource | None,
        grad: bool,
    ) -> None:
        first = given[0]
        self.plan, self.work, self.y, self.grad = plan, work, y, grad
        self.history = work.history and not grad
        self.noise: Any = noise  # there if the plan draws
        self.shape, self.dtype, self.device = first.shape, first.dtype, first.device
        self.heads = plan.prediction.heads if plan.prediction is not None else 1
        self.combine = _combine_new if grad else _combine_per_sample if plan.batch is not None else _combine
        self.vectors: list[Tensor] = [_NOTHING] * work.slots
        self.vectors[: len(given)] = given
        if work.y is not None and y is not None:
            self.vectors[work.y] = y.to(first).expand_as(first)
        own = [torch.empty_like(first) for _ in work.pool] if not grad else []
        self.vectors[work.pool.start : work.pool.start + len(own)] = own
        # a network value that lies in memory which later rows write to must be copied
        self.owned = {buffer.untyped_storage().data_ptr() for buffer in own}
        starts = [buffer.data_ptr() for buffer in own] or [0]
        self.span = min(starts), max(starts) + first.numel() * first.element_size()
        self.copies: dict[int | None, Tensor] = {}  # buffers for copied values, made when one is needed
        self.newest = (0, 0)  # address and version of the newest value that was kept by reference

    def execute(self, predict: Predict, on_step: OnStep | None) -> Tensor | None:
        """Run all instructions; return the state if `on_step` stopped the run."""
        vectors, combine, dtype, device = self.vectors, self.combine, self.dtype, self.vectors[0].get_device()
        low, high = self.span
        usual = False  # after the first call: a value needs no more than the checks of the inner loop
        nfe = count = 0
        estimate = partial(vectors.__getitem__, 0)  # nothing better before the first call
        for ins in self.work.instructions:
            draws, target, _, _, _, t, step, release, ask, value = ins
            for slot in draws:
                self._draw(slot)
            combine(vectors, ins)
            if on_step is not None and step:
                count += 1
                if on_step(StepInfo(count, self.plan.steps, t, nfe, vectors[target], estimate)) is False:
                    return vectors[target]
            for slot in release:
                vectors[slot] = _NOTHING
            if ask:
                out = predict(vectors[target], t)
                if nfe == 0:
                    self._check_shape(out)
                    usual = self.heads == 1 and not self.grad and not out.is_inference()
                nfe += 1
                address = out.data_ptr()
                if usual and out.dtype is dtype and out.get_device() == device and not low <= address < high:
                    if self.history:
                        self._check_version(address, out._version)
                else:
                    out = self._converted(out, value)
                if value is not None:
                    self._store(out, value)
                if on_step is not None:
                    estimate = self._estimator(vectors[target], t, out)
        return None

    def _draw(self, slot: int) -> None:
        if self.grad:
            self.vectors[slot] = torch.empty_like(self.vectors[0])
        self.noise.fill(self.vectors[slot])

    def _store(self, out: Tensor, value: int) -> None:
        if self.heads == 1:
            self.vectors[value] = out
            return
        for head, part in enumerate(out.chunk(self.heads, dim=1)):
            self.vectors[value - head] = part

    def _converted(self, out: Tensor, value: int | None) -> Tensor:
        """The network value in the state's dtype, on its device and in memory that no later row writes to."""
        elsewhere = out.dtype != self.dtype or out.device != self.device
        if self.grad:
            return out.to(dtype=self.dtype, device=self.device) if elsewhere else out
        if elsewhere or out.untyped_storage().data_ptr() in self.owned:
            return self._copy(out, value)
        if self.history and not out.is_inference():
            self._check_version(out.data_ptr(), out._version)
        return out

    def _copy(self, out: Tensor, value: int | None) -> Tensor:
        if value not in self.copies:
            self.copies[value] = torch.empty(out.shape, dtype=self.dtype, device=self.device)
        return self.copies[value].copy_(out)

    def _check_shape(self, out: Tensor) -> None:
        wanted = list(self.shape)
        if self.heads > 1:
            wanted[1] *= self.heads
        if list(out.shape) != wanted:
            name = self.plan.prediction.name if self.plan.prediction is not None else ""
            raise ValueError(
                f"the network returned shape {tuple(out.shape)}; prediction {name!r} on a state of shape "
                f"{tuple(self.shape)} needs {tuple(wanted)}"
            )

    def _check_version(self, address: int, version: int) -> None:
        """A network that fills one output tensor again and again destroys a multistep solver's history."""
        if address == self.newest[0] and version != self.newest[1]:
            raise ValueError(
                "the network overwrote the tensor it had returned before; return a new tensor or its clone"
            )
        self.newest = address, version

    def _estimator(self, x: Tensor, t: float | Tensor, out: Tensor) -> Callable[[], Tensor]:
        prediction = self.plan.prediction
        assert prediction is not None
        return lambda: prediction.to_x0(self.plan.path, t, x, out, self.y)


def _combine(vectors: list[Tensor], ins: Instruction) -> None:
    _, target_slot, source, scale, adds, *_ = ins
    target = vectors[target_slot]
    if source == target_slot:
        if scale is not None:
            target.mul_(scale)
    elif scale is not None:
        torch.mul(vectors[source], scale, out=target)
    else:
        (slot, coefficient), *adds = adds
        torch.add(vectors[source], vectors[slot], alpha=coefficient, out=target)
    for slot, coefficient in adds:
        target.add_(vectors[slot], alpha=coefficient)


def _combine_per_sample(vectors: list[Tensor], ins: Instruction) -> None:
    target = vectors[ins.target]
    if ins.source != ins.target:
        torch.mul(vectors[ins.source], 1.0 if ins.scale is None else ins.scale, out=target)
    elif ins.scale is not None:
        target.mul_(ins.scale)
    for slot, coefficient in ins.adds:
        target.addcmul_(vectors[slot], coefficient)


def _combine_new(vectors: list[Tensor], ins: Instruction) -> None:
    total = vectors[ins.source] if ins.scale is None else vectors[ins.source] * ins.scale
    for slot, coefficient in ins.adds:
        total = total + vectors[slot] * coefficient
    vectors[ins.target] = total
