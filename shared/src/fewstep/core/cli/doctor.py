"""What this machine and this installation have, and what they miss."""

import json
import platform
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from fewstep.command import describe, load_verb, packages, verbs

Report = dict[str, Any]


def examine() -> Report:
    """Look at versions, devices, packages, verbs and extras.

    Returns:
        The report, of JSON types; "healthy" is whether every verb starts and nothing required is missing.
    """
    reports = [_package(dist) for dist in packages()]
    found = {name: _verb(name) for name in verbs()}
    healthy = all(verb["works"] for verb in found.values()) and not any(one["missing"] for one in reports)
    return {
        "healthy": healthy,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_torch(),
        "packages": reports,
        "verbs": found,
    }


def _torch() -> Report:
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        gpus.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "capability": f"{properties.major}.{properties.minor}",
                "bf16": properties.major >= 8,
            }
        )
    return {
        "torch": torch.__version__,
        "cpu": {
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "bf16": _cpu_bf16(),
        },
        "cuda": {"version": torch.version.cuda, "devices": gpus},
        "mps": torch.backends.mps.is_available(),
    }


def _cpu_bf16() -> str:
    """Whether bfloat16 runs on this CPU at all, and whether the CPU has instructions for it."""
    import torch

    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "emulated"
    return "native" if re.search(r"amx_bf16|avx512_bf16", _cpu_flags()) else "emulated"


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return next((line for line in handle if line.startswith("flags")), "")
    except OSError:
        return ""


def _package(dist: Distribution) -> Report:
    name = dist.metadata["Name"]
    extras = {}
    for extra in dist.metadata.get_all("Provides-Extra") or []:
        missing = sorted(set(missing_requirements(dist, extra)))
        extras[extra] = {"missing": missing, "install": f'pip install "{name}[{extra}]"' if missing else None}
    missing = sorted(set(missing_requirements(dist, "")))
    return {
        "name": name,
        "version": dist.version,
        "summary": dist.metadata["Summary"],
        "missing": missing,
        "install": f'pip install "{name}"' if missing else None,
        "extras": extras,
    }


def missing_requirements(
    dist: Distribution, extra: str, _seen: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Requirements of a distribution (of one of its extras, when that is not "") that are not met.

    Extras of requirements, such as fewstep-core[train], are followed.
    """
    environment = {**default_environment(), "extra": extra}
    without = {**environment, "extra": ""}
    for text in dist.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if extra and (marker is None or marker.evaluate(without)):
            continue
        if marker is not None and not marker.evaluate(environment):
            continue
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            yield str(requirement).split(";")[0].strip()
            continue
        if not requirement.specifier.contains(installed.version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier} (installed: {installed.version})"
        for inner in requirement.extras:
            key = f"{requirement.name}[{inner}]"
            if key not in _seen:
                yield from missing_requirements(installed, inner, _seen | {key})


def _verb(name: str) -> Report:
    point = verbs()[name]
    package = point.dist.metadata["Name"] if point.dist is not None else None
    try:
        load_verb(point)
    except Exception as error:
        return {"package": package, "works": False, "error": describe(error)}
    return {"package": package, "works": True, "error": None}


def show(report: Report, as_json: bool) -> None:
    """Print the report on standard output, for a machine or for a person."""
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(report):
        table.add_row(name, value)
    Console(markup=False, highlight=False, soft_wrap=True).print(table)


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    cpu = report["cpu"]
    yield "python", f"{report['python']} on {report['platform']}"
    yield "torch", report["torch"]
    yield "cpu", f"{cpu['threads']} threads, {cpu['capability']}, bfloat16 {cpu['bf16']}"
    for gpu in report["cuda"]["devices"]:
        bf16 = "with" if gpu["bf16"] else "without"
        yield "cuda", f"{gpu['name']}, {gpu['memory_gib']} GiB, {bf16} bfloat16"
    if not report["cuda"]["devices"]:
        yield "cuda", "no device"
    for package in report["packages"]:
        yield package["name"], package["version"] + _missing(package)
        for extra, state in package["extras"].items():
            yield f"  [{extra}]", "complete" if not state["missing"] else _missing(state).lstrip(" ;")
    for name, verb in report["verbs"].items():
        yield f"fewstep {name}", "works" if verb["works"] else f"cannot start: {verb['error']}"


def _missing(state: Report) -> str:
    return f"; missing {', '.join(state['missing'])}: {state['install']}" if state["missing"] else ""
