"""Noise: one value for each position, one generator for each sample."""

import pytest
import torch

from fewstep.core.noise import GivenNoise, NoiseField, SampleNoise


@pytest.mark.parametrize("size", [(9000,), (150, 70), (40, 17, 33), (9, 20, 5, 11)])
def test_every_window_sees_the_same_field(size):
    field = NoiseField(seed=7, channels=2)
    origin = tuple(-(extent // 3) for extent in size)
    whole = field.crop(1, origin, size)
    assert whole.shape == (2, *size)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        low = [int(torch.randint(extent, (), generator=generator)) for extent in size]
        extent = [
            int(torch.randint(1, full - at + 1, (), generator=generator))
            for at, full in zip(low, size, strict=True)
        ]
        part = field.crop(1, [o + at for o, at in zip(origin, low, strict=True)], extent)
        inside = tuple(slice(at, at + e) for at, e in zip(low, extent, strict=True))
        assert torch.equal(part, whole[(slice(None), *inside)])


def test_field_is_standard_normal_and_independent_across_draws_seeds_and_channels():
    field = NoiseField(0, 2)
    values = field.crop(0, (-100, 50), (300, 400))
    count = values.numel()
    assert abs(values.mean()) < 5 / count**0.5
    assert abs(values.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / count) ** 0.5
    others = (
        field.crop(1, (-100, 50), (300, 400)),
        NoiseField(1, 2).crop(0, (-100, 50), (300, 400)),
        values.flip(0),
        values.roll(1, 1),
        values.roll(64, 2),  # one block on
    )
    for other in others:
        assert abs((values * other).mean()) < 5 / count**0.5


def test_window_counts_its_draws():
    field = NoiseField(3, 4)
    noise = field.window((10, -5))
    like = torch.empty(2, 4, 8, 6, dtype=torch.float64)
    for draw in range(3):
        got = noise(like)
        assert got.dtype == torch.float64
        assert torch.equal(got[1], field.crop(draw, (10, -5), (8, 6)).double())
        assert torch.equal(got[0], got[1])


def test_empty_crop_and_bad_input():
    assert NoiseField(0, 3).crop(0, (5, 5), (0, 4)).shape == (3, 0, 4)
    with pytest.raises(ValueError, match="channels must be at least 1, not 0"):
        NoiseField(0, 0)
    with pytest.raises(ValueError, match=r"origin \(1,\) and size \(2, 2\) must have the same length"):
        NoiseField(0, 1).crop(0, (1,), (2, 2))
    with pytest.raises(ValueError, match="size must not be negative"):
        NoiseField(0, 1).crop(0, (1, 1), (2, -2))


def test_a_sample_draws_from_its_own_seed():
    together, apart = torch.empty(3, 5, 7), [torch.empty(1, 5, 7) for _ in range(3)]
    noise = SampleNoise(11, 3)
    alone = [SampleNoise(11 + i, 1) for i in range(3)]
    listed = SampleNoise([13, 12, 11], 3)
    for _ in range(2):
        noise.fill(together)
        for source, buffer in zip(alone, apart, strict=True):
            source.fill(buffer)
        assert torch.equal(together, torch.cat(apart))
        backwards = torch.empty(3, 5, 7)
        listed.fill(backwards)
        assert torch.equal(backwards.flip(0), together)
    assert not torch.equal(together[0], together[1])


def test_wrong_number_of_seeds_and_wrong_shape():
    with pytest.raises(ValueError, match="seed holds 2 seeds for a batch of 3"):
        SampleNoise([1, 2], 3)
    with pytest.raises(ValueError, match=r"noise\(like\) must return shape \(2, 3\), it returned \(3,\)"):
        GivenNoise(lambda like: like[0]).fill(torch.empty(2, 3))
