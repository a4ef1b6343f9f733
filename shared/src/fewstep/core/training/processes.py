"""The processes of a run, through Hugging Face Accelerate."""

import atexit
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.core.training.extra import train_extra


class Processes:
    """What the training loop asks of Accelerate: the device, the other processes, gradients across them.

    Args:
        at_least: processes that the run must have.
        device: "auto" or "cpu".
        partial: a loss may leave some of the weights without a gradient.

    Raises:
        ImportError: the extra [train] is not installed.
        RuntimeError: there are fewer processes than `at_least`.
    """

    def __init__(self, at_least: int, device: Literal["auto", "cpu"], partial: bool = False) -> None:
        with train_extra():
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs
        # Precision is ours (see `precision`): Accelerate allows one precision per Python process, for ever.
        parallel = DistributedDataParallelKwargs(find_unused_parameters=partial)
        self._accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[parallel])
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.is_main: bool = self._accelerator.is_main_process
        self.device: torch.device = self._accelerator.device
        if self.count > 1:
            # A process that exits while the group's threads run is aborted by the C++ runtime.
            atexit.register(self._accelerator.end_training)
        if self.count < at_least:
            raise RuntimeError(
                f"this run asks for {at_least} processes but has {self.count}. Start it with "
                f"`torchrun --nproc_per_node={at_least} …`; on CPUs `accelerate launch` starts only one."
            )

    def share(self, networks: Iterable[nn.Module]) -> None:
        """Give every process the weights of the main one."""
        if self.count > 1:
            from accelerate.utils import broadcast

            for network in networks:
                for value in network.state_dict().values():
                    value.copy_(broadcast(value.clone()))

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over the processes (itself if there is one)."""
        return self._accelerator.prepare_model(model)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A block whose backward passes keep their gradients to this process."""
        return self._accelerator.no_sync(model)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self._accelerator.backward(loss)

    def wait(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()

    def gather_object(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks."""
        from accelerate.utils import gather_object

        return gather_object([value])

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        return self._accelerator.reduce(values, "mean") if self.count > 1 else values  # type: ignore[return-value]

    def agree(self, bad: Tensor, stop: bool, minutes: float) -> tuple[bool, bool, float]:
        """Let all processes see the same: anyone's bad step, anyone's wish to stop, the main process's clock.

        One small reduction and the one wait for the device of a training step.
        """
        clock = minutes if self.is_main else 0.0
        votes = torch.stack([bad.float(), *torch.tensor([float(stop), clock], device=self.device)])
        if self.count > 1:
            votes = self._accelerator.reduce(votes, "sum")
        anyone_bad, anyone_stops, clock = votes.tolist()  # type: ignore[union-attr]
        return anyone_bad > 0, anyone_stops > 0, clock if self.count > 1 else minutes

    def autocast(self, precision: Literal["no", "bf16"]) -> AbstractContextManager[Any]:
        """A block in which networks compute in bfloat16, if that is asked for."""
        if precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @contextmanager
    def precision(self, networks: Iterable[nn.Module], precision: Literal["no", "bf16"]) -> Iterator[None]:
        """While the block runs, what uses the output of a network gets float32 even from bfloat16."""
        if precision == "no":
            yield
            return
        from accelerate.utils import convert_outputs_to_fp32

        patched = list(networks)
        for network in patched:
            network.forward = convert_outputs_to_fp32(network.forward)
        try:
            yield
        finally:
            for network in patched:
                del network.forward
