"""Degradations against the formulas they state: statistics, bounds, repeatability and refusals."""

import json
import math
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest

from fewstep.restoration.degradations import (
    DEGRADATIONS,
    Bayer,
    Degradation,
    Degraded,
    GaussianNoise,
    Jpeg,
    LowLight,
    Masked,
    Nothing,
    OneOf,
    Rain,
    degradation,
)
from fewstep.restoration.degradations.base import check_integers
from fewstep.restoration.degradations.compression import encode_jpeg
from fewstep.restoration.degradations.noise import poisson_noise
from fewstep.restoration.degradations.rain import motion_line, smeared_dots


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def flat(value: int, height: int = 128, width: int = 96) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def picture(height: int = 64, width: int = 48) -> np.ndarray:
    """A smooth coloured scene with an edge and some texture."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 9)], axis=-1)
    image = 120 + 70 * waves + 30 * (x > width / 2)[..., None] + rng(9).normal(0, 6, waves.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("size", [(64, 48), (20, 132), (4, 4)])
def test_contract(name, size):
    """8-bit colour in and out, the input unwritten and unshared, the same draws the same result."""
    made = degradation(name)
    assert isinstance(made, Degradation)
    clean = picture(*size)
    before = clean.copy()
    clean.setflags(write=False)
    first, second = made(clean, rng(5)), made(clean, rng(5))
    expected = (size[0] // 4, size[1] // 4, 3) if name == "real_esrgan" else clean.shape
    assert isinstance(first, Degraded)
    assert first.lq.dtype == np.uint8
    assert first.lq.shape == expected
    assert first.lq.flags.c_contiguous
    assert first.lq.flags.writeable
    assert not np.shares_memory(first.lq, clean)
    np.testing.assert_array_equal(clean, before)
    np.testing.assert_array_equal(first.lq, second.lq)
    assert first.level == second.level
    assert (first.level is not None) == (name in ("noise", "nothing"))
    assert (first.mask is not None) == (name == "mask")


@pytest.mark.parametrize("name", [name for name in DEGRADATIONS if name != "nothing"])
def test_other_draws_give_another_result(name):
    clean = picture()
    results = [degradation(name)(clean, rng(seed)).lq for seed in range(4)]
    assert any(not np.array_equal(results[0], other) for other in results[1:])


def test_noise_has_the_level_it_tells():
    for level in (5.0, 15.0, 25.0):
        made = GaussianNoise(level, level)(flat(128, 200, 200), rng())
        error = made.lq.astype(float) - 128
        assert made.level == level
        # 120 000 draws: the standard error of a standard deviation is 0.2 %; rounding adds 1/12.
        assert error.std() == pytest.approx(math.sqrt(level**2 + 1 / 12), rel=0.01)
        assert abs(error.mean()) < 4 * level / math.sqrt(error.size)
        neighbours = [np.mean(error[1:] * error[:-1]), np.mean(error[..., 0] * error[..., 1])]
        assert np.abs(neighbours).max() < 0.03 * level**2


def test_noise_levels_are_drawn_uniformly():
    levels = np.array([GaussianNoise(10, 50)(flat(0, 1, 1), rng(seed)).level for seed in range(400)])
    assert levels.min() >= 10
    assert levels.max() <= 50
    assert levels.mean() == pytest.approx(30, abs=4 * 40 / math.sqrt(12 * 400))


def test_shot_noise_variance_is_proportional_to_brightness():
    """With 256 different values, a pixel x is a count of mean x · 256/255."""
    ramp = np.repeat(np.arange(256, dtype=np.float32), 1500)[None, :, None].repeat(3, axis=2)
    noise = poisson_noise(ramp, rng(), scale=2.0, channels=3).reshape(256, -1)
    values = np.arange(256)
    expected = 4.0 * values * 255 / 256
    assert noise[0].std() == 0
    np.testing.assert_allclose(noise[20:].var(axis=1), expected[20:], rtol=0.12)
    assert noise.var(axis=1).sum() == pytest.approx(expected.sum(), rel=0.01)
    assert poisson_noise(ramp, rng(), 1.0, channels=1).shape == (1, 256 * 1500, 1)


def test_rain_only_brightens_and_within_its_opacity():
    clean = picture()
    limit = np.rint(clean + 0.8 * 0.85 * (255.0 - clean))
    rainy = Rain()(clean, rng()).lq
    assert (rainy >= clean).all()
    assert (rainy <= limit).all()
    # A dot of weight 0.6 along 23 pixels at gain 40 is above the clip, so that a pixel is either dry or full.
    poured = Rain(gain=(40, 40))(clean, rng()).lq
    assert ((poured == clean) | (poured == limit)).all()
    assert 0.05 < (poured != clean).mean() < 0.3


def test_rain_brightens_on_average_by_gain_density_and_weight():
    """Without clipping, E[s] = gain · density · E[weight], since the line adds up to one."""
    made = Rain(gain=(2, 2), clip=1.0, density=0.02, weight=(0.5, 1.5), opacity=1.0)
    rainy = np.stack([made(flat(0, 256, 256), rng(seed)).lq for seed in range(6)])
    assert rainy.mean() == pytest.approx(255 * 2 * 0.02, rel=0.05)
    assert (rainy[..., 0] == rainy[..., 2]).all()
    assert rainy[:, 0].mean() == pytest.approx(rainy.mean(), rel=0.3), "streaks come in over the border"


@pytest.mark.parametrize("angle", [0.0, 10.0, 25.0, 45.0])
def test_motion_line_has_length_and_angle(angle):
    rows, columns, weights = motion_line(41, angle)
    assert weights.sum() == pytest.approx(1.0)
    assert math.hypot(np.ptp(rows) + 1, np.ptp(columns)) == pytest.approx(41, abs=1.1)
    assert np.polyfit(rows, columns, 1)[0] == pytest.approx(math.tan(math.radians(angle)), abs=0.03)
    np.testing.assert_array_equal(motion_line(41, -angle)[1], columns.max() - columns)


def test_smeared_dots_are_a_convolution():
    line = motion_line(9, 20.0)
    out = smeared_dots((30, 40), line, 0.05, (1.0, 1.0), rng(2))
    rows, columns, weights = line
    height, width = 30 + rows.max(), 40 + columns.max()
    dots = rng(2).random((height, width), dtype=np.float32) < 0.05
    expected = np.zeros((30, 40))
    for row, column, weight in zip(rows, columns, weights, strict=True):
        expected += weight * dots[height - 30 - row :, width - 40 - column :][:30, :40]
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_low_light_curve_without_noise():
    """The darkening is monotone and lies between its extreme curves."""
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    x = np.arange(256) / 255
    for seed in range(20):
        dark = LowLight(shot=0, read=0)(ramp, rng(seed)).lq[0, :, 1].astype(int)
        assert (np.diff(dark) >= 0).all()
        assert (dark >= np.floor(255 * 0.4 * x**3)).all()
        assert (dark <= np.ceil(255 * 0.7 * x**2)).all()
        assert 102 <= dark[-1] <= 179
    exact = LowLight(power=(2, 2), gain=(0.5, 0.5), shot=0, read=0)(ramp, rng()).lq[0, :, 0]
    np.testing.assert_array_equal(exact, np.rint(255 * 0.5 * x**2).astype(np.uint8))


def test_low_light_noise_grows_with_the_dark_brightness():
    for value in (160, 255):
        dark = LowLight(power=(2, 2), gain=(0.6, 0.6))(flat(value, 200, 200), rng()).lq / 255
        level = 0.6 * (value / 255) ** 2
        assert dark.mean() == pytest.approx(level, abs=1e-3)
        assert dark.std() == pytest.approx(math.sqrt(4e-4 * level + 3e-5 + (1 / 255) ** 2 / 12), rel=0.02)


def test_jpeg_quality_orders_size_and_error():
    clean = picture(96, 96)
    sizes, errors = [], []
    for quality in (10, 20, 40, 60, 90):
        sizes.append(len(encode_jpeg(clean, quality)))
        errors.append(np.mean((Jpeg(quality, quality)(clean, rng()).lq.astype(float) - clean) ** 2))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    # Chroma at half the resolution: stripes of one pixel keep their luma only.
    stripes = flat(128, 32, 32)
    stripes[:, ::2] = (200, 80, 128)
    hue = np.ptp(Jpeg(95, 95)(stripes, rng()).lq[8:24, 8:24, 0].astype(int) - 200, axis=1)
    assert hue.max() < 60


def test_one_of_draws_by_weight():
    made = OneOf((Nothing(), 3), (Masked(kinds=("boxes",)), 1))
    hidden = [made(flat(9, 8, 8), rng(seed)).mask is not None for seed in range(600)]
    assert np.mean(hidden) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 600))


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_round_trip_of_fields_and_frozen(name):
    made = degradation(name)
    assert degradation(name, **json.loads(json.dumps(asdict(made)))) == made  # pyright: ignore
    with pytest.raises(FrozenInstanceError):
        made.low = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("snow", {}, r"name must be one of 'nothing', 'noise', .*got 'snow'"),
        ("rain", {"colour": 3}, r"'colour' is no field of 'rain', which has gain, density"),
        ("noise", {"low": 30, "high": 20}, r"\(low, high\).*at least 0, got \(30, 20\)"),
        ("noise", {"low": -1}, r"\(low, high\)"),
        ("noise", {"high": math.nan}, r"\(low, high\)"),
        ("rain", {"gain": [8, 3]}, r"gain must be .*got \(8, 3\)"),
        ("rain", {"density": 1.5}, r"density must lie within 0 … 1, got 1.5"),
        ("rain", {"length": (0, 20)}, r"length must be .*at least 1"),
        ("rain", {"angle": 60}, r"angle must lie within 0 … 45"),
        ("low_light", {"power": (0.5, 2)}, r"power must be .*at least 1"),
        ("low_light", {"gain": (0.5, 2)}, r"gain must be .*within 0 … 1"),
        ("low_light", {"shot": -1}, r"shot"),
        ("jpeg", {"low": 0}, r"\(low, high\).*within 1 … 95"),
        ("jpeg", {"high": 101}, r"\(low, high\).*within 1 … 95"),
        ("mask", {"kinds": ["circles"]}, r"kinds must be among 'lines', .*got \('circles',\)"),
        ("mask", {"kinds": []}, r"kinds must be among"),
        ("mask", {"lines": (0, 3)}, r"lines must be .*at least 1"),
        ("mask", {"box_side": (0.1, 1.4)}, r"box_side must be .*within 0 … 1"),
        ("mosaic", {"block": (0, 3)}, r"block must be .*at least 1"),
        ("bayer", {"patterns": ("RGBG",)}, r"patterns must be among RGGB"),
    ],
)
def test_bad_fields_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        degradation(name, **fields)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_bad_images_are_refused(name):
    made = degradation(name)
    with pytest.raises(TypeError, match="clean must be an array of uint8, got float32"):
        made(np.zeros((8, 8, 3), np.float32), rng())
    for shape in ((8, 8), (8, 8, 4), (0, 8, 3)):
        with pytest.raises(ValueError, match="clean must be"):
            made(np.zeros(shape, np.uint8), rng())


def test_bad_choices_are_refused():
    for choices in ((), ((Nothing(), 0.0),), ((Nothing(), -1.0),), ((Nothing(), math.inf),)):
        with pytest.raises(ValueError, match="choices must"):
            OneOf(*choices)
    with pytest.raises(ValueError, match="clean must be at least 2 × 2"):
        Bayer()(flat(1, 1, 8), rng())
    with pytest.raises(ValueError, match=r"length must be \(lowest, highest\), integers, got \(11.5, 20\)"):
        check_integers("length", (11.5, 20))
