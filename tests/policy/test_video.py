"""Rollouts as films: files that play, plans where they belong, captions."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from fewstep.policy import video
from fewstep.policy.rollouts import caption, draw_chunk, roll_out, side_by_side
from fewstep.policy.video import strip, write_film


def film(count=12, height=64, width=80):
    """A bright square that moves to the right on grey."""
    frames = np.full((count, height, width, 3), 90, np.uint8)
    for i in range(count):
        frames[i, 20:40, 4 * i : 4 * i + 16] = (250, 200, 40)
    return frames


@pytest.mark.parametrize(("height", "width"), [(64, 80), (65, 81)])
def test_an_mp4_comes_back(tmp_path, height, width):
    av = pytest.importorskip("av", reason="pip install 'fewstep-policy[envs]'")
    frames = film(height=height, width=width)
    path = write_film(tmp_path / "a.mp4", frames, 10)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 10
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == (12, height + height % 2, width + width % 2, 3)
    assert np.abs(decoded[:, :height, :width].astype(int) - frames).mean() < 4


def test_the_encoder_falls_back(tmp_path, monkeypatch):
    av = pytest.importorskip("av", reason="pip install 'fewstep-policy[envs]'")
    assert video.encoder() == next(name for name in video._ENCODERS if name in av.codecs_available)
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    assert video.encoder() == "mpeg4"
    assert write_film(tmp_path / "a.mp4", film(), 10).stat().st_size > 1000
    monkeypatch.setattr(av, "codecs_available", {"flac"})
    with pytest.raises(RuntimeError, match="none of the encoders libx264"):
        write_film(tmp_path / "b.mp4", film(), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def frames_of(image):
    return len(list(ImageSequence.Iterator(image)))


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animations_have_their_frames_and_pace(tmp_path, suffix):
    with Image.open(write_film(tmp_path / f"a{suffix}", film(), 10)) as image:
        assert frames_of(image) == 12
        image.seek(11)
        image.load()
        assert image.info["duration"] == 100
        got = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(got - film()[11]).mean() < 6
    with Image.open(write_film(tmp_path / f"fast{suffix}", film(), 100)) as image:
        assert frames_of(image) == 6


def test_a_strip_has_first_and_last(tmp_path):
    frames = film()
    made = strip(frames, count=3, gap=2)
    assert made.shape == (64, 3 * 80 + 2 * 2, 3)
    np.testing.assert_array_equal(made[:, :80], frames[0])
    np.testing.assert_array_equal(made[:, -80:], frames[-1])
    with Image.open(write_film(tmp_path / "a.png", frames, 10)) as image:
        assert image.size == (6 * 80 + 5 * 4, 64)
    assert strip(frames[:1]).shape == (64, 80, 3)


def test_a_plan_is_drawn_where_its_positions_are():
    frame = np.full((256, 256, 3), 255, np.uint8)
    drawn = draw_chunk(frame, np.array([[128.0, 64.0], [384.0, 64.0]]), span=512)
    assert (frame == 255).all()
    rows, columns = np.nonzero((drawn != 255).any(axis=-1))
    # x to the right, y downwards, half the size of the span.
    assert (rows.min(), rows.max()) == pytest.approx((32, 32), abs=4)
    assert (columns.min(), columns.max()) == pytest.approx((64, 192), abs=4)
    assert drawn[32, 64].tolist() == [200, 30, 40]
    assert drawn[32, 192].tolist() == [255, 190, 60]


def test_plans_far_outside_and_single_points_can_be_drawn():
    frame = np.zeros((64, 64, 3), np.uint8)
    draw_chunk(frame, np.array([[1e12, -1e12], [5.0, 5.0]]), 512)
    assert draw_chunk(frame, np.array([[256.0, 256.0]]), 512)[32, 32].tolist() == [200, 30, 40]


def test_films_stand_side_by_side_and_the_short_one_waits():
    short, long = film(3), film(5)
    both = side_by_side([short, long], ["one call", "ten calls"])
    band = both.shape[1] - 64
    assert both.shape == (5, 64 + band, 160, 3)
    np.testing.assert_array_equal(both[4, band:, :80], short[2])
    np.testing.assert_array_equal(both[4, band:, 80:], long[4])
    assert (both[0, :band] < 100).any()  # the text
    assert (both[0, :band, :80] != both[0, :band, 80:]).any()
    three = side_by_side([short] * 3, ["a", "b", "c"], columns=2)
    assert three.shape == (3, 2 * (64 + band), 160, 3)
    assert (three[:, 64 + band :, 80:] == 255).all()
    np.testing.assert_array_equal(caption(short, "one call"), both[:3, :, :80])


def test_a_rollout_of_push_t_shows_its_plan(tmp_path):
    pytest.importorskip("gym_pusht", reason="pip install 'fewstep-policy[envs]'")
    from tests.policy.scripted import Random, StandStill

    from fewstep.policy.envs.registry import env_spec

    spec = env_spec("pusht")
    planned = roll_out(Random(spec.action_low, spec.action_high), spec, 100_000, 128, max_steps=3)
    assert planned.frames.shape == (4, 128, 128, 3)
    plain = roll_out(StandStill(), spec, 100_000, 128, max_steps=1)
    different = (planned.frames[0] != plain.frames[0]).any(axis=-1).mean()
    assert 0 < different < 0.2
    assert planned.episode.length == 3
    assert write_film(tmp_path / "a.webp", planned.frames, planned.fps).exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: write_film(folder / "a.avi", film(), 10), "a.avi ends in '.avi'; films are .mp4"),
        (lambda folder: write_film(folder / "a.mp4", film()[0], 10), r"frames is uint8 \(64, 80, 3\)"),
        (lambda folder: write_film(folder / "a.mp4", film() / 255, 10), "frames is float64"),
        (lambda folder: write_film(folder / "a.gif", film()[:0], 10), "not empty"),
        (lambda folder: write_film(folder / "a.mp4", film(), 0), "fps is 0"),
        (lambda folder: strip(film(), 0), "count is 0"),
        (lambda folder: draw_chunk(film()[0], np.zeros((3, 4)), 512), r"its shape is \(3, 4\)"),
        (lambda folder: draw_chunk(film()[0], np.full((1, 2), np.nan), 512), "finite"),
        (lambda folder: side_by_side([film()], ["a", "b"]), "1 films and 2 captions"),
        (lambda folder: side_by_side([film(), film(width=64)], ["a", "b"]), "the films' sizes differ"),
        (lambda folder: side_by_side([film()], ["a"], 0), "columns is 0"),
    ],
)
def test_bad_input_is_named(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
