"""Reading the golden files: trajectories of the published codes on a closed-form denoiser."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as File
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.core.solver_problems import Mixture
from torch import Tensor

from fewstep.core import paths

FOLDER = File(__file__).parents[1] / "golden" / "core"
Case = dict[str, Any]


@dataclass(frozen=True)
class Golden:
    """One golden file.

    Attributes:
        file: its name without the ending.
        used: names of the cases that some test was parametrised with, so that none is forgotten.
    """

    file: str
    used: set[str] = field(default_factory=set, compare=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(FOLDER / f"{self.file}.safetensors")

    @cached_property
    def cases(self) -> list[Case]:
        return json.loads((FOLDER / f"{self.file}.json").read_text())["cases"]

    @property
    def z(self) -> Tensor:
        """The start noise."""
        return self.tensors["in.z"]

    def mixture(self, prefix: str = "mix") -> Mixture:
        """The data: "mix", or "mixB" where the file has a second one."""
        return Mixture(*(self.tensors[f"{prefix}.{part}"] for part in ("mean", "std", "weight")))

    def of(self, case: Case, part: str) -> Tensor:
        """A tensor of a case, such as "out.x"."""
        return self.tensors[f"{case['name']}.{part}"]

    def each(self, wanted: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
        """Parametrise a test with the cases that are wanted."""
        found = [case for case in self.cases if wanted(case)]
        assert found, self.file
        self.used.update(case["name"] for case in found)
        return pytest.mark.parametrize("case", found, ids=[case["name"] for case in found])

    def recorded(self, case: Case, part: str = "in.noise") -> Callable[[Tensor], Tensor]:
        """A noise function that returns the recorded draws in order."""
        draws: Iterator[Tensor] = iter(self.tensors.get(f"{case['name']}.{part}", ()))
        return lambda like: next(draws).to(like).reshape(like.shape)

    def unused(self) -> list[str]:
        """The cases that no test has."""
        return [case["name"] for case in self.cases if case["name"] not in self.used]


def assert_relative(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Largest difference against the largest value (at least 1)."""
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1.0)


def official_path(schedule: str) -> paths.Path:
    """The schedules that the official DPM-Solver and UniPC cases name; a table has times 0 … 999."""
    if schedule == "vp_linear":
        return paths.VP.linear()
    if schedule == "edm":
        return paths.EDM()
    if schedule == "discrete_ddpm":
        return paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    if schedule == "discrete_sd":
        return paths.VP.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
    raise ValueError(schedule)


def official_times(schedule: str, times: Tensor) -> list[float]:
    """Our times: theirs on a table are (index + 1)/1000; rounding may leave the table."""
    if schedule.startswith("discrete"):
        return [min(max(1000 * t - 1, 0.0), 999.0) for t in times.tolist()]
    return times.tolist()


def stable_diffusion_path() -> paths.Path:
    """The table of the diffusers cases, made in float32 as they do."""
    return paths.VP.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2)
