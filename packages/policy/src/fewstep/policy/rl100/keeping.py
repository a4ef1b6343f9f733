"""What a loop of RL-100 must remember to go on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.core.training.state import load_newest, prune, save_payload, step_path

Part = nn.Module | torch.optim.Optimizer


class Keeper:
    """Saves networks, optimisers and numbers of a loop, and a line for every report.

    Everything random in the loops is drawn from generators seeded by the number of the update, so nothing
    else has to be remembered.

    Args:
        folder: of the loop; its log is log.jsonl.
        parts: by name.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Part]) -> None:
        self.folder, self.parts = folder, dict(parts)
        folder.mkdir(parents=True, exist_ok=True)
        self.log_file = folder / "log.jsonl"

    def restore(self) -> dict[str, Any]:
        """Take up the newest checkpoint; {} when there is none. Lines of later updates are dropped.

        Raises:
            ValueError: it is of other networks, or none can be read.
        """
        payload, _ = load_newest(self.folder)
        at = {} if payload is None else dict(payload["at"])
        if payload is not None:
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(payload["parts"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(f"folder {self.folder} holds a run of other networks: {error}") from error
        if self.log_file.is_file():
            lines = self.log_file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= at.get("step", 0)]
            self.log_file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        return at

    def save(self, **at: Any) -> None:
        """Write a checkpoint; `at` holds "step" and whatever numbers the loop needs."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        save_payload({"at": at, "parts": parts}, step_path(self.folder, at["step"]))
        prune(self.folder, keep=1)

    def report(self, step: int, kind: str, **values: float | bool) -> None:
        """Append a line to the log."""
        with self.log_file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
