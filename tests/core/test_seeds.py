"""Mining golden seeds: order, files that are continued, scores that are not finite, bad input."""

import json

import pytest
import torch

from fewstep.core import paths, sample
from fewstep.core.starts import SeedMiner, SeedRanking

PATH = paths.EDM()


def generate(seeds):
    return sample(lambda x, t: x / (1 + t * t), PATH, steps=3, shape=(len(seeds), 1, 2, 2), seed=seeds)


def norm(x):
    return x.flatten(1).norm(dim=1)


def alone(seed):
    return norm(generate([seed])).item()


def test_the_ranking_is_the_order_of_the_scores():
    """Whatever the batch: a sample depends on its own seed only."""
    wanted = sorted(range(40), key=alone)
    low = SeedMiner(norm, best="min", batch=7).rank(range(40), generate)
    high = SeedMiner(norm, batch=16).rank(range(40), generate)
    assert low.seeds == wanted
    assert high.seeds == wanted[::-1]
    assert low.top(3) == wanted[:3]
    assert all(low.scores[seed] == pytest.approx(alone(seed), rel=1e-6) for seed in wanted)


def test_the_best_seeds_are_better_than_the_rest():
    ranking = SeedMiner(norm, best="min").rank(range(64), generate)
    top, rest = generate(ranking.top(8)), generate(ranking.seeds[8:])
    assert norm(top).max() < norm(rest).min()


def test_several_judges_are_averaged():
    two = lambda x: torch.stack([norm(x), 3 * norm(x)], 1)  # noqa: E731
    assert SeedMiner(two).rank([3], generate).scores[3] == pytest.approx(2 * alone(3), rel=1e-6)


def test_repeated_seeds_are_tried_once():
    asked = []

    def counted(seeds):
        asked.extend(seeds)
        return generate(seeds)

    SeedMiner(norm, batch=2).rank([4, 4, 5, 4, 6], counted)
    assert asked == [4, 5, 6]


def test_an_interrupted_search_is_continued(tmp_path):
    file, asked = tmp_path / "seeds.json", []

    def failing(seeds):
        if len(asked) == 8:
            raise RuntimeError("power cut")
        asked.extend(seeds)
        return generate(seeds)

    miner = SeedMiner(norm, name="norm", batch=4)
    with pytest.raises(RuntimeError):
        miner.rank(range(12), failing, file)
    assert len(SeedRanking.load(file).scores) == 8
    more = []
    ranking = miner.rank(range(12), lambda seeds: more.extend(seeds) or generate(seeds), file)
    assert more == [8, 9, 10, 11]
    assert ranking == miner.rank(range(12), generate)
    assert SeedRanking.load(file) == ranking


def test_other_seeds_of_the_file_are_kept_but_not_ranked(tmp_path):
    file = tmp_path / "seeds.json"
    miner = SeedMiner(norm)
    miner.rank(range(6), generate, file)
    assert sorted(miner.rank([4, 9], generate, file).scores) == [4, 9]
    assert sorted(SeedRanking.load(file).scores) == [0, 1, 2, 3, 4, 5, 9]


def test_scores_that_are_not_finite_come_last(tmp_path):
    def half(x):
        scores = norm(x)
        scores[0] = torch.nan
        return scores

    for best in ("max", "min"):
        ranking = SeedMiner(half, best=best, batch=3).rank(range(3), generate, tmp_path / f"{best}.json")
        assert ranking.seeds[-1] == 0
        assert ranking.scores[0] is None
        assert json.loads((tmp_path / f"{best}.json").read_text())["scores"][-1] == [0, None]
        with pytest.raises(ValueError, match="count must be between 1 and the 2 seeds with a score, got 3"):
            ranking.top(3)


def test_progress_is_reported():
    seen = []
    SeedMiner(norm, batch=4).rank(
        range(10), generate, on_batch=lambda done, total: seen.append((done, total))
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_files_that_do_not_belong_are_refused(tmp_path):
    file = tmp_path / "seeds.json"
    SeedMiner(norm, name="norm").rank([1], generate, file)
    with pytest.raises(ValueError, match=r"ranks by 'norm' \(max\), not by 'clip' \(max\)"):
        SeedMiner(norm, name="clip").rank([1], generate, file)
    for text in ("{}", "not json", '{"metric": "", "best": "most", "scores": []}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="is not a seed ranking"):
            SeedRanking.load(file)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeedMiner(norm, best="most"), "best must be 'max' or 'min', not 'most'"),
        (lambda: SeedMiner(norm, batch=0), "batch must be at least 1, not 0"),
        (lambda: SeedMiner(norm).rank([], generate), "seeds must hold at least one seed"),
        (lambda: SeedMiner(torch.sum).rank([1, 2], generate), r"metric must return shape \(2,\)"),
        (lambda: SeedMiner(norm).rank([1], generate).top(0), "count must be between 1 and the 1 seeds"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
