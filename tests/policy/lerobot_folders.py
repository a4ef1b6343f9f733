"""Small LeRobot folders to read, to write and to damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fewstep.policy.episodes import Episodes

OFFICIAL = Path(__file__).parents[1] / "golden" / "policy" / "lerobot_v3"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def moving_square(ends: tuple[int, ...] = (1, 4, 9)) -> Episodes:
    """Demonstrations with two cameras; the brightness of a frame tells its step."""
    steps = ends[-1]
    rng = np.random.default_rng(0)
    levels = (np.arange(steps) * 20 + 20).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (steps, 32, 48, 3)).copy()
    arrays = {
        "state": rng.random((steps, 1), dtype=np.float32),
        "action": rng.random((steps, 2), dtype=np.float32),
        "points": rng.random((steps, 4, 3), dtype=np.float32),
        "image": frames,
        "image.top": 255 - frames,
        "reward": rng.random(steps),
        "done": np.arange(steps) % 2 == 0,
        "task_index": np.minimum(np.arange(steps) // 3, 1),
    }
    return Episodes(arrays, np.array(ends), 5.0, ("push", "pull"))


def edit_info(folder: Path, **changes: Any) -> None:
    info = json.loads((folder / "meta/info.json").read_text())
    info.update(changes)
    (folder / "meta/info.json").write_text(json.dumps(info))


def edit_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    """Replace a column; values may be a function of the old ones."""

    def change(table: pa.Table) -> pa.Table:
        new = values(table[name].to_pylist()) if callable(values) else values
        return table.set_column(table.schema.get_field_index(name), name, pa.array(new))

    return change
