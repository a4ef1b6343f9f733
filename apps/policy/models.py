"""The policies that the page offers, each with its environment."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.core.checkpoints import shipped
from fewstep.policy.commands.evaluate import calls_of
from fewstep.policy.commands.options import DEFAULT_MODEL, spec_of
from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.loading import PACKAGE, load_model
from fewstep.policy.policy import Policy

CALLS = (1, 10, 100)


@dataclass(frozen=True)
class Offered:
    """A policy of the page.

    Args:
        name: by which it is chosen.
        model: what predicts.
        spec: of its environment.
        calls: numbers of network calls that may be asked of it, its own among them.
        own_calls: that it was made for.
    """

    name: str
    model: Any
    spec: EnvSpec
    calls: tuple[int, ...]
    own_calls: int


class Models:
    """Policies by name.

    Args:
        wanted: names, folders or Hub ids; none: what ships, first the one that commands take by default.
        env: environment of policies that do not say theirs.
        device: "auto", "cpu", "cuda" …

    Raises:
        ValueError: nothing ships and nothing is named, or a policy, its environment or the device is not
            there.
    """

    def __init__(self, wanted: Sequence[str] = (), env: str | None = None, device: str = "auto") -> None:
        self.device = device
        found = list(wanted) or sorted(shipped(PACKAGE), key=lambda name: name != DEFAULT_MODEL)
        if not found:
            raise ValueError(
                "no policy ships with this version of fewstep.policy; name one with --model FOLDER "
                "(fewstep policy train makes one)"
            )
        self.offered: dict[str, Offered] = {}
        for text in found:
            model = load_model(text)
            name = self._named(text)
            own = calls_of(model.config)
            free = hasattr(model.config, "kind") and model.config.kind != "regression"
            most = getattr(model.config, "most_steps", 0) or max(CALLS)
            calls = tuple(sorted({own, *(n for n in CALLS if n <= most)})) if free else (own,)
            spec = spec_of(model, getattr(model.config, "environment", "") or env, None)
            self.offered[name] = Offered(name, model, spec, calls, own)
        # The device is tried now, and not when somebody presses a button.
        self.policy(next(iter(self.offered)))

    @property
    def environments(self) -> list[str]:
        """Those that there are policies for."""
        return list(dict.fromkeys(one.spec.name for one in self.offered.values()))

    def names(self, environment: str) -> list[str]:
        """The policies of an environment."""
        return [one.name for one in self.offered.values() if one.spec.name == environment]

    def __getitem__(self, name: str) -> Offered:
        if name not in self.offered:
            raise ValueError("Choose a policy.")
        return self.offered[name]

    def policy(self, name: str, calls: int | None = None) -> Policy:
        """A policy with a memory of its own.

        Args:
            name: of the policy.
            calls: network calls of a chunk (None: its own).

        Raises:
            ValueError: an unknown policy, or calls that it is not offered with.
        """
        one = self[name]
        if calls is not None and calls not in one.calls:
            raise ValueError(f"{name} is offered with {', '.join(map(str, one.calls))} calls.")
        return Policy(one.model, self.device, None if calls == one.own_calls else calls)

    def _named(self, text: str) -> str:
        """The name of a folder; runs keep their policy in a folder called "model"."""
        path = Path(text)
        name = path.resolve().parent.name if path.name == "model" and path.is_dir() else path.name or text
        number = sum(known == name or known.startswith(f"{name} (") for known in self.offered)
        return f"{name} ({number + 1})" if number else name
