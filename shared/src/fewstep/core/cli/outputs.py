"""Where results go, and what they must not overwrite."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.core.cli.inputs import Source, identity

STDOUT = "-"


class UsageError(ValueError):
    """The command line asks for something that cannot be (exit code 2)."""


class OutputError(OSError):
    """Nothing can be written where the results should go (exit code 1)."""


@dataclass(frozen=True)
class Naming:
    """How results are named.

    Args:
        suffix: added to the stem: photo.jpg with "_x4" becomes photo_x4.jpg.
        extension: of the result, such as "png"; "auto" keeps the input's where results can have it.
        writable: extensions that results can have, such as {".png", ".jpg"}.
        fallback: extension of a result whose input's own cannot be written.
    """

    suffix: str = ""
    extension: str = "auto"
    writable: Collection[str] = (".png",)
    fallback: str = ".png"

    def __post_init__(self) -> None:
        """Check what comes from the command line."""
        if "/" in self.suffix or "\\" in self.suffix or "\0" in self.suffix:
            raise UsageError(f"--suffix must be a part of a file name, got {self.suffix!r}")
        if self.extension != "auto" and self._dotted() not in self.writable:
            known = ", ".join(sorted(extension.lstrip(".") for extension in self.writable))
            raise UsageError(f"--ext must be auto or one of {known}, got {self.extension!r}")

    def __call__(self, inside: Path) -> Path:
        """Name of the result of an input."""
        if self.extension != "auto":
            extension = self._dotted()
        else:
            extension = inside.suffix if inside.suffix.lower() in self.writable else self.fallback
        return inside.with_name(f"{inside.stem}{self.suffix}{extension}")

    def _dotted(self) -> str:
        return "." + self.extension.lower().lstrip(".")


def plan_targets(sources: Sequence[Source], output: str | None, naming: Naming) -> list[Path]:
    """Choose the file of every result.

    Without an output the result lies beside its input, and that of standard input goes to standard output.
    The result of one file goes to an output that has a writable extension; all others go into a folder.

    Args:
        sources: the inputs.
        output: as the user wrote it.
        naming: of the results.

    Returns:
        A path for every source; Path("-") is standard output.

    Raises:
        UsageError: several results would go to one file or to standard output.
    """
    alone = len(sources) == 1 and sources[0].inside == Path(sources[0].inside.name)
    if output == STDOUT:
        if len(sources) != 1:
            raise UsageError(f"-o - takes one input, got {len(sources)}")
        return [Path(STDOUT)]
    if output is None:
        return [
            Path(STDOUT) if source.is_stdin else source.path.parent / naming(Path(source.path.name))
            for source in sources
        ]
    target = Path(output).expanduser()
    looks_like_file = target.suffix.lower() in naming.writable and not output.endswith(("/", "\\"))
    if (looks_like_file and not target.is_dir()) or target.is_file():
        if not alone:
            raise UsageError(f"-o {output} is a file, but there are {len(sources)} inputs; give a folder")
        if target.suffix.lower() not in naming.writable:
            known = ", ".join(sorted(naming.writable))
            raise UsageError(f"-o {output} has none of the extensions that can be written: {known}")
        return [target]
    return [target / naming(source.inside) for source in sources]


def refusals(sources: Sequence[Source], targets: Sequence[Path]) -> dict[int, str]:
    """Which results must not be written: they would overwrite an input or another result.

    Links of both kinds are seen through.

    Returns:
        A reason by the number of the source.
    """
    inputs = {identity(source.path): source for source in sources if not source.is_stdin}
    taken: dict[object, Source] = {}
    reasons: dict[int, str] = {}
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if str(target) == STDOUT:
            continue
        key = identity(target)
        if key in inputs:
            own = inputs[key].path == source.path
            what = "the input itself" if own else f"the input {inputs[key].path}"
            reasons[number] = f"the result {target} would overwrite {what}; give another -o or --suffix"
        elif key in taken:
            reasons[number] = f"the result {target} would overwrite that of {taken[key].path}"
        else:
            taken[key] = source
    return reasons


def prepare_folders(targets: Sequence[Path]) -> None:
    """Make the folders of the results and try that files can be written there.

    Raises:
        OutputError: names the folder and the reason.
    """
    for folder in dict.fromkeys(target.parent for target in targets if str(target) != STDOUT):
        trial = folder / f".{secrets.token_hex(6)}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            raise OutputError(f"{folder}: results cannot be written there: {error.strerror}") from error
