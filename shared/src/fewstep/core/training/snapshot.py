"""Everything a run must remember to go on as if it had never stopped."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.core.training import state as states
from fewstep.core.training.ema import Ema
from fewstep.core.training.phases import STUDENT
from fewstep.core.training.processes import Processes


class Snapshot:
    """The networks, the averages, the optimisers and the position of a run, saved and restored together.

    Args:
        networks: by name, the student among them.
        ema: its averages.
        optimizers: one of every phase, by name.
        folder: of the run.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        ema: Ema,
        optimizers: dict[str, torch.optim.Optimizer],
        folder: Path,
    ) -> None:
        self.model, self.networks = networks[STUDENT], networks
        self.ema, self.optimizers, self.folder = ema, optimizers, folder
        self.position = states.Position()

    def save(self, processes: Processes, keep: int) -> None:
        """Write a checkpoint; called on every process.

        Weights with a NaN or an infinity are not saved: the checkpoint before them stays the newest.
        """
        rng = processes.gather_object(states.rng_state())
        if not processes.is_main or not self._is_finite():
            return
        others = {name: network.state_dict() for name, network in self._others().items()}
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        payload = {**self._weights(), "others": others, "optimizers": optimizers, "rng": rng}
        states.save_payload(payload, states.step_path(self.folder, self.position.step))
        states.prune(self.folder, keep)

    def save_best(self) -> None:
        """Write the weights alone to `best.pt`."""
        if self._is_finite():
            states.save_payload(self._weights(), states.best_path(self.folder))

    def restore(self, processes: Processes) -> list[str]:
        """Take up the newest checkpoint, if there is one.

        Returns:
            Sentences about what was found and what is not as it was.

        Raises:
            ValueError: there are checkpoints but none can be read, or they are of another network.
        """
        payload, notes = states.load_newest(self.folder)
        if payload is None:
            return notes
        self.position = states.Position(**payload["position"])
        notes.append(f"going on from step {self.position.step}")
        try:
            self.model.load_state_dict(payload["model"])
            for name, network in self._others().items():
                network.load_state_dict(payload["others"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(payload["optimizers"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"folder {self.folder} holds a run of another network or optimiser: {error}"
            ) from error
        for decay in self.ema.load_state_dict(payload["ema"], self.model):
            notes.append(f"no average with decay {decay} was saved; it starts at the present weights")
        writers = len(payload["rng"])
        if writers == processes.count:
            states.set_rng_state(payload["rng"][processes.rank])
        else:
            notes.append(f"{writers} processes wrote the checkpoint, {processes.count} go on from it")
        return notes

    def _others(self) -> dict[str, nn.Module]:
        return {name: network for name, network in self.networks.items() if name != STUDENT}

    def _weights(self) -> dict[str, Any]:
        position = vars(self.position).copy()
        return {"position": position, "model": self.model.state_dict(), "ema": self.ema.state_dict()}

    def _is_finite(self) -> bool:
        # Buffers are not asked: masks of attention hold infinities on purpose.
        return all(
            bool(torch.isfinite(parameter).all())
            for network in self.networks.values()
            for parameter in network.parameters()
        )
