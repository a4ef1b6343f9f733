"""Evolution: it finds minima, is reproducible, resumes exactly, and its spaces make valid genomes only."""

import itertools
import math
import random

import pytest

from fewstep.core import paths, solvers
from fewstep.core.search import Evolution, Scored, TimeSpace, evolve
from fewstep.core.search.clock import Clock, apart

SMALL = Evolution(generations=8, population=12, parents=4, crossovers=6, mutations=5)
PATHS = {
    "edm": paths.EDM(),
    "vp": paths.VP.linear(),
    "flow": paths.RectifiedFlow(),
    "cosine": paths.VP.cosine(t_max=1.0),
    "table": paths.ResShift(steps=9),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
WANTED = (80.0, 9.0, 1.5, 0.2, 0.0)


def space(steps=4):
    return TimeSpace(paths.EDM(), solvers.get("ddim"), steps)


def distance(times):
    """From the wanted times, in log sigma."""
    pairs = zip(times[1:-1], WANTED[1:-1], strict=True)
    return sum((math.log(t) - math.log(wanted)) ** 2 for t, wanted in pairs)


def test_the_minimum_is_found_with_the_published_settings():
    found = evolve(space(), distance, Evolution(), seed=1)
    assert found.best[0].score < 0.05
    assert found.generation == 20
    assert len(found.history) == 21
    assert list(found.history) == sorted(found.history, reverse=True)
    assert found.tried <= 21 * 50


def test_same_seed_same_search():
    first, second = (evolve(space(), distance, SMALL, seed=3) for _ in range(2))
    assert first == second
    assert evolve(space(), distance, SMALL, seed=4).best != first.best


def test_an_interrupted_search_ends_like_an_uninterrupted_one():
    whole = evolve(space(), distance, SMALL, seed=5)
    stopped = evolve(space(), distance, SMALL, seed=5, on_generation=lambda now: now.generation < 3)
    assert stopped.generation == 3
    assert evolve(space(), distance, SMALL, seed=5, resume=stopped) == whole


def test_the_first_generation_holds_the_given_genomes():
    found = evolve(space(), distance, Evolution(generations=0), start=[WANTED])
    assert found.best[0] == Scored(0.0, WANTED)


def test_a_genome_is_measured_once_while_it_is_a_parent():
    seen = []
    evolve(space(2), lambda times: seen.append(times) or 1.0, SMALL)
    best = seen[:4]  # all scores are equal: the first ones stay
    assert all(seen.count(times) == 1 for times in best)


def test_the_screen_decides_what_is_measured():
    measured, screened, first = [], [], 20
    settings = Evolution(
        generations=5, population=first, parents=5, crossovers=10, mutations=10, screened=0.25
    )

    def after(now):
        """The best quarter by the screen was measured, and nothing else."""
        new, seen = measured[first:], screened[:]
        expected = sorted(seen, key=distance)[: math.ceil(0.25 * len(seen))]
        assert new == expected
        del measured[first:], screened[:]

    evolve(
        space(),
        lambda times: measured.append(times) or distance(times),
        settings,
        screen=lambda times: screened.append(times) or distance(times),
        on_generation=after,
    )
    assert len(measured) == first


def test_not_a_number_never_wins():
    found = evolve(space(), lambda times: math.nan if times[1] > 1.0 else times[1], SMALL)
    assert math.isfinite(found.best[0].score)


@each_path
def test_genomes_are_grids(path):
    rng = random.Random(0)
    searched = TimeSpace(path, solvers.get("ddim"), 6)
    genomes = [searched.draw(rng) for _ in range(20)]
    for _ in range(60):
        first, second = rng.choice(genomes), rng.choice(genomes)
        genomes.append(searched.mutate(searched.cross(first, second, rng), rng, 0.5, 0.5))
    for genome in genomes:
        assert (genome[0], genome[-1], len(genome)) == (path.t_max, path.t_clean, 7)
        assert all(t > s for t, s in itertools.pairwise(genome))
        assert searched.plan(genome).nfe == 6
        if path.is_discrete:
            assert all(t == round(t) for t in genome)


def test_a_mutation_changes_something_and_a_crossover_mixes():
    rng, searched = random.Random(1), space()
    first, second = searched.draw(rng), searched.draw(rng)
    assert all(searched.mutate(first, rng, 0.0, 0.01) != first for _ in range(20))
    child = searched.cross(first, second, rng)
    for t, options in zip(child, zip(first, second, strict=True), strict=True):
        assert any(math.isclose(t, option, rel_tol=1e-9) for option in options)


@each_path
def test_the_clock_gives_back_its_positions(path):
    if path.is_discrete:
        return
    positions = [0.05, 0.31, 0.62, 0.97]
    clock = Clock(path)
    got = clock.positions(clock.times(positions))
    assert max(abs(u - v) for u, v in zip(got, positions, strict=True)) < 1e-9


def test_positions_are_kept_apart_inside_the_scale():
    got = apart([1.4, -0.3, 0.5, 0.5, 1.0], 0.01)
    assert got == pytest.approx([0.01, 0.5, 0.51, 0.99, 1.0])
    assert apart([2.0] * 3, 0.9) == pytest.approx([1 - 2 / 6, 1 - 1 / 6, 1.0])


def test_a_table_with_too_few_times_is_refused():
    with pytest.raises(ValueError, match="too few times for 20"):
        Clock(paths.ResShift()).times([0.5] * 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Evolution(population=0), "population must be at least 1, not 0"),
        (lambda: Evolution(parents=0), "parents must be at least 1, not 0"),
        (lambda: Evolution(generations=-1), "generations must not be negative, it is -1"),
        (lambda: Evolution(crossovers=40), r"must not exceed population = 50, they are 40 \+ 25"),
        (lambda: Evolution(rate=1.5), r"rate must lie in \[0, 1\], not 1.5"),
        (lambda: Evolution(screened=0.0), r"screened must lie in \(0, 1\], not 0.0"),
        (lambda: Evolution(final_width=0.5), "final_width must lie in"),
        (lambda: space(1), "steps must be at least 2"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
