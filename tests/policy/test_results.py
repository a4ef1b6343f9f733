"""Results: intervals against published numbers, JSON forth and back."""

import json

import pytest

from fewstep.policy.results import Episode, Results, mean_and_interval, student_quantile, wilson

# Student's t at 97.5 %, from the usual tables.
TABLE = {
    1: 12.7062,
    2: 4.3027,
    3: 3.1824,
    4: 2.7764,
    5: 2.5706,
    6: 2.4469,
    10: 2.2281,
    30: 2.0423,
    49: 2.0096,
}


@pytest.mark.parametrize("freedom", sorted(TABLE))
def test_student_quantiles_are_those_of_the_tables(freedom):
    assert student_quantile(freedom) == pytest.approx(TABLE[freedom], abs=1.5e-3 if freedom < 6 else 5e-4)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Wilson score intervals as R's prop.test(correct=FALSE) and Newcombe 1998, table I, give them.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_newcombes(hits, count, low, high):
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(count - hits, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def some_results():
    episodes = [Episode(100 + i, 0.1 * i, 2.0 * i, 30 + i, i > 2) for i in range(5)]
    return Results("pusht", (*episodes, Episode(105, 0.2, 1.0, 7, False, "nan")), 1e-3, 2.5)


def test_results_come_back_from_json(tmp_path):
    some_results().save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == some_results()
    summary = json.loads((tmp_path / "r.json").read_text())["summary"]
    assert summary["success"]["rate"] == pytest.approx(2 / 6)
    assert summary["score"]["mean"] == pytest.approx(1.2 / 6)
    assert summary["problems"] == [{"seed": 105, "step": 7, "what": "nan"}]


def test_one_episode_has_no_interval():
    one = Results("hopper", (Episode(1, 5.0, 5.0, 9, None),))
    assert mean_and_interval([5.0]) == {"mean": 5.0, "error": None, "interval": None}
    assert str(one) == "hopper, 1 episodes: score 5.000, 9.0 steps"
    assert "success" not in one.summary()


def test_a_file_that_is_no_result_is_refused(tmp_path):
    for text in ("", "[]", '{"summary": {}}', '{"summary": {"env": "x"}, "episodes": [{"sed": 1}]}'):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ValueError, match="does not hold results of an evaluation"):
            Results.load(tmp_path / "r.json")


@pytest.mark.parametrize(("hits", "count"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits, count):
    with pytest.raises(ValueError, match="hits is"):
        wilson(hits, count)


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="no episodes"):
        Results("pusht", ())
    with pytest.raises(ValueError, match="values is empty"):
        mean_and_interval([])
