"""Policies by hand: what learned ones are compared with, and what tests of the evaluation run."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewstep.policy.seeding import noise_seed


class StandStill:
    """Push-T: the disc's target is where it is."""

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        pass

    def act(self, obs: dict[str, np.ndarray], indices: Sequence[int]) -> np.ndarray:
        return obs["state"][:, :2]


class Random:
    """Uniform actions, drawn from the episode's seed and the step, by way of a chunk of several."""

    def __init__(self, low: Sequence[float], high: Sequence[float], chunk: int = 4) -> None:
        self.low, self.high, self.chunk = np.array(low), np.array(high), chunk
        self.seeds: dict[int, int] = {}
        self.steps: dict[int, int] = {}
        self.plans: dict[int, np.ndarray] = {}

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        for index, seed in zip(indices, seeds, strict=True):
            self.seeds[index], self.steps[index] = seed, 0

    def act(self, obs: dict[str, np.ndarray], indices: Sequence[int]) -> np.ndarray:
        return np.stack([self._next(index) for index in indices])

    def plan(self, index: int) -> np.ndarray:
        return self.plans[index][(self.steps[index] - 1) % self.chunk :]

    def _next(self, index: int) -> np.ndarray:
        step = self.steps[index]
        if step % self.chunk == 0:
            draws = np.random.default_rng(noise_seed(self.seeds[index], step))
            self.plans[index] = draws.uniform(self.low, self.high, (self.chunk, len(self.low)))
        self.steps[index] = step + 1
        return self.plans[index][step % self.chunk]


class Waypoints:
    """PointMaze: a = clip(10 (w − p) − v, −1, 1) towards the next cell w of the shortest path."""

    def __init__(self, maze: Any) -> None:
        self.maze = maze
        self.paths: dict[int, deque[np.ndarray] | None] = {}

    def reset(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        self.paths.update(dict.fromkeys(indices))

    def act(self, obs: dict[str, np.ndarray], indices: Sequence[int]) -> np.ndarray:
        return np.stack([self._one(i, state) for i, state in zip(indices, obs["state"], strict=True)])

    def _one(self, index: int, state: np.ndarray) -> np.ndarray:
        place, speed, goal = state[:2], state[2:4], state[4:]
        path = self.paths[index]
        if path is None:
            path = self.paths[index] = self._path(place, goal)
        while len(path) > 1 and np.linalg.norm(path[0] - place) < 0.45:
            path.popleft()
        return np.clip(10 * (path[0] - place) - speed, -1, 1)

    def _path(self, place: np.ndarray, goal: np.ndarray) -> deque[np.ndarray]:
        start, end = self._cell(place), self._cell(goal)
        came_from: dict[tuple[int, int], tuple[int, int]] = {start: start}
        queue = deque([start])
        while queue and end not in came_from:
            row, column = queue.popleft()
            for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if cell not in came_from and self.maze.maze_map[cell[0]][cell[1]] != 1:
                    came_from[cell] = (row, column)
                    queue.append(cell)
        cells = [end]
        while cells[-1] != start:
            cells.append(came_from[cells[-1]])
        corners = [self.maze.cell_rowcol_to_xy(np.array(cell)) for cell in reversed(cells[:-1])]
        return deque([*corners[:-1], goal])

    def _cell(self, place: np.ndarray) -> tuple[int, int]:
        row, column = self.maze.cell_xy_to_rowcol(place)
        return int(row), int(column)
