"""Episodes that a visitor keeps, as demonstrations to learn from."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.live import Taken
from fewstep.policy.recorder import Recorder

from .takeover import Session

MAX_EPISODES = 20
TASK = "push the T-shaped block onto its target"


@dataclass(frozen=True)
class _Kept:
    spec: EnvSpec
    taken: list[tuple[Taken, bool]]
    success: bool


class Demonstrations:
    """What one visitor has kept.

    Its zip holds a LeRobot v3 folder, `demonstrations`, and the same as `demonstrations.npz`. In both,
    "by_hand" says of every step whether the visitor acted, or the policy.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, session: Session) -> None:
        """Keep an episode as it is now; one that is kept again has grown and counts once.

        Raises:
            ValueError: it has no step, its seed is for tests, or there are too many.
        """
        if not session.taken:
            raise ValueError("Nothing has happened yet: act first.")
        if session.seed >= session.spec.first_test_seed:
            raise ValueError(
                f"Seeds from {session.spec.first_test_seed} on are for tests, where policies are measured; "
                "begin with a smaller one to record."
            )
        others = [kept for name, kept in self._kept.items() if name != session.own_folder]
        if others and others[0].spec.observation_shapes != session.spec.observation_shapes:
            raise ValueError("This policy sees other things than the one whose episodes were kept before.")
        if len(others) >= MAX_EPISODES:
            raise ValueError(f"{MAX_EPISODES} episodes are kept; download them and load the page anew.")
        self._kept[session.own_folder] = _Kept(session.spec, list(session.taken), session.success)

    def archive(self, target: Path) -> Path:
        """Write all of them.

        Args:
            target: file that ends in .zip.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fewstep-kept-") as name:
            folder = Path(name)
            fps = next(iter(self._kept.values())).spec.fps
            with Recorder(folder / "episodes", fps) as recorder:
                for kept in self._kept.values():
                    for step, by_hand in kept.taken:
                        recorder.add(
                            {**step.observation, "by_hand": by_hand},
                            step.action,
                            reward=step.reward,
                            done=step.done,
                        )
                    recorder.end_episode(TASK, kept.success)
                recorder.save_lerobot(folder / "zip" / "demonstrations")
                recorder.save_npz(folder / "zip" / "demonstrations.npz")
            made = shutil.make_archive(str(folder / "made"), "zip", folder / "zip")
            return Path(shutil.move(made, target))
