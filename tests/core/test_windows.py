"""Windows cover everything, their results blend exactly, and short memory only makes them smaller."""

import warnings
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewstep.core.layout import Window, Windowing
from fewstep.core.windows import Blender, blend, is_out_of_memory, windows


def crops(x, scale=1):
    """A function of windows that returns x itself, every sample `scale` times."""

    def function(group):
        cut = torch.cat([window.crop(x) for window in group])
        for axis in range(2, x.ndim):
            cut = cut.repeat_interleave(scale, axis)
        return cut

    return function


def weight_sum(layout, scale=1):
    canvas = torch.zeros([int(n * scale) for n in layout.size], dtype=torch.float64)
    for window in layout:
        window.crop(canvas, scale).add_(layout.weight(window, scale))
    return canvas


@st.composite
def axes(draw):
    window = draw(st.integers(1, 24))
    overlap = draw(st.integers(0, window - 1))
    return draw(st.integers(1, 70)), window, overlap, draw(st.integers(0, overlap // 2))


@given(st.lists(axes(), min_size=1, max_size=2))
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_one_everywhere(each):
    size, window, overlap, halo = zip(*each, strict=True)
    layout = windows(size, window, overlap, halo=halo)
    assert torch.all((weight_sum(layout) - 1).abs() < 1e-14)
    assert all(torch.all(layout.weight(w) >= 0) for w in layout)


def test_weights_sum_to_one_in_three_dimensions_and_at_a_scale():
    layout = windows((9, 20, 13), (4, 8, 13), (2, 3, 0))
    assert torch.all((weight_sum(layout) - 1).abs() < 1e-14)
    assert torch.all((weight_sum(windows((30, 17), 12, 6, halo=2), 4) - 1).abs() < 1e-14)


@pytest.mark.parametrize("length", range(1, 60))
def test_every_length_is_covered_by_equal_windows(length):
    layout = windows((length,), 17, 5)
    starts = [window.start[0] for window in layout]
    assert len({window.shape for window in layout}) == 1
    assert starts[0] == 0
    assert starts[-1] + layout.shape[0] == length
    assert all(a + 17 - b >= 5 for a, b in pairwise(starts))
    assert len(layout) == max(1, -(-(length - 5) // 12))


def test_weight_fades_smoothly_to_zero_at_the_inner_edges_and_skips_the_halo():
    layout = windows((100,), 40, 20, halo=4)
    first, middle = layout.weight(Window((0,), (40,))), layout.weight(Window((20,), (40,)))
    assert torch.all(first[:20] == 1)
    assert torch.all(middle[:4] == 0)
    assert torch.all(middle[-4:] == 0)
    ramp = middle[4:16]
    assert torch.all(ramp.diff() > 0)
    assert ramp[0] < 0.01
    # sin² at the centres of the twelve samples of the ramp
    assert torch.allclose(ramp, torch.sin(torch.pi / 2 * (torch.arange(12.0).double() + 0.5) / 12) ** 2)


def test_overlap_of_two_halos_is_a_hard_cut():
    layout = windows((37,), 16, 8, halo=4)
    assert all(set(layout.weight(window).tolist()) <= {0.0, 0.5, 1.0} for window in layout)
    assert set(layout.weight(next(iter(layout))).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("size", [(1,), (50,), (41, 1), (33, 27), (11, 9, 14)])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_blending_the_identity_gives_the_input(size, batch):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(blend(crops(x), size, 8, 3, batch=batch), x, atol=1e-14)


def test_batched_windows_equal_single_ones():
    x = torch.randn(2, 3, 40, 30)
    assert torch.equal(blend(crops(x), (40, 30), 12, 5, batch=4), blend(crops(x), (40, 30), 12, 5))


def test_blend_enlarges_by_a_scale():
    x = torch.randn(1, 2, 21, 30)
    large = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.allclose(blend(crops(x, 4), (21, 30), 9, 4, scale=4), large, atol=1e-6)


def test_blend_shrinks_by_a_scale_when_borders_are_aligned():
    x = torch.randn(1, 2, 44)

    def pick(group):
        return torch.cat([window.crop(x)[..., ::4] for window in group])

    small = blend(pick, (44,), 16, 8, multiple=4, scale=Fraction(1, 4))
    assert torch.allclose(small, x[..., ::4], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("scale", [1, 3])
def test_bands_are_the_blended_result_in_order_and_hold_only_unfinished_rows(batch, scale):
    x = torch.randn(1, 2, 101, 20)
    blender = Blender(Windowing((10, 8), (4, 3)), batch)
    bands = list(blender.bands(crops(x, scale), (101, 20), scale=scale))
    assert [band.start for band in bands] == [
        sum(b.values.shape[2] for b in bands[:i]) for i in range(len(bands))
    ]
    assert torch.equal(
        torch.cat([band.values for band in bands], dim=2),
        blender.blend(crops(x, scale), (101, 20), scale=scale),
    )
    # One row of four windows is six rows of input further than the one before it.
    assert max(band.values.shape[2] for band in bands) <= 12 * scale


def test_bands_are_handed_out_before_the_rest_is_computed():
    done = []

    def count(group):
        done.append(len(group))
        return torch.zeros(len(group), 1, *group[0].shape)

    bands = Blender(Windowing(10, 2)).bands(count, (90, 10))
    next(bands)
    assert len(done) == 1


def test_progress_counts_windows():
    seen = []
    x = torch.randn(1, 1, 30)
    blend(crops(x), (30,), 10, 2, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 4), (4, 4)]


def test_low_precision_results_are_summed_in_float32_and_double_stays():
    x = torch.randn(1, 1, 60)
    out = blend(crops(x.bfloat16()), (60,), 20, 8)
    assert out.dtype == torch.float32
    assert torch.allclose(out, x.bfloat16().float(), atol=1e-6)
    assert blend(crops(x.double()), (60,), 20, 8).dtype == torch.float64


def test_convolutional_network_is_exact_when_the_halo_covers_its_reach():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 5, padding=2), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Conv2d(8, 2, 7, padding=3)).requires_grad_(False)  # reach 1 + 2 + 3 = 6
    x = torch.randn(1, 2, 75, 50)

    def run(group):
        return net(torch.cat([window.crop(x) for window in group]))

    whole = net(x)
    for overlap in (12, 17):
        tiled = blend(run, (75, 50), 24, overlap, halo=6, batch=3)
        assert (tiled - whole).abs().max() < 1e-5 * whole.abs().max()
    # The check can fail: with one sample less, the padding at a window's edge is seen.
    assert (blend(run, (75, 50), 24, 10, halo=5) - whole).abs().max() > 1e-4 * whole.abs().max()


def limited(x, rows, calls, error=torch.OutOfMemoryError):
    """The identity on a machine that can hold `rows` rows of windows at once."""

    def run(group):
        calls.append((len(group), group[0].shape[0]))
        if len(group) * group[0].shape[0] > rows:
            raise error("out of memory. Tried to allocate 20.00 GiB")
        return torch.cat([window.crop(x) for window in group])

    return run


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_short_memory_takes_fewer_and_then_smaller_windows(error):
    x = torch.randn(1, 1, 200)
    calls = []
    blender = Blender(Windowing(80, 20), batch=2)
    with pytest.warns(RuntimeWarning, match="memory ran out") as seen:
        out = blender.blend(limited(x, 45, calls, error), (200,))
    assert torch.allclose(out, x, atol=1e-6)
    assert calls[:3] == [(2, 80), (1, 80), (1, 40)]
    assert len(seen) == 1
    assert (blender.batch, blender.windowing.window) == (1, (40,))
    # What was learnt serves the next call, silently.
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blender.blend(limited(x, 45, calls, error), (200,))
    assert all(length == 40 for _, length in calls)


def test_short_memory_in_the_middle_keeps_the_finished_rows():
    x = torch.randn(1, 3, 300, 40)
    calls = []

    def run(group):
        calls.append(group[0])
        if group[0].start[0] > 150 and group[0].shape[0] > 40:
            raise torch.OutOfMemoryError
        return torch.cat([window.crop(x) for window in group])

    blender = Blender(Windowing((64, 40), (16, 8), multiple=8))
    with pytest.warns(RuntimeWarning):
        bands = list(blender.bands(run, (300 // 8 * 8, 40)))
    assert torch.allclose(torch.cat([b.values for b in bands], dim=2), x[:, :, :296], atol=1e-6)
    finished = 192  # where the first window that failed begins
    assert all(window.start[0] + window.shape[0] > finished for window in calls if window.shape[0] == 32)


def test_back_off_keeps_the_halo_and_the_alignment():
    windowing = Windowing(96, 32, halo=12, multiple=8)
    assert windowing.halved((960,)) == Windowing((48,), (24,), halo=(12,), multiple=8)
    assert Windowing(48, 24, halo=12, multiple=8).halved((960,)) is None
    # An axis that is whole stays whole as long as its length allows no aligned half.
    assert Windowing(96, 32, multiple=8).halved((960, 50)) == Windowing((48, 96), (24, 32), (0, 0), 8)


def test_memory_that_never_suffices_raises_the_original_error():
    x = torch.randn(1, 1, 200)
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError) as caught:
        blend(limited(x, 3, []), (200,), 80, 20)
    assert "not even windows of (20,) fit" in caught.value.__notes__[0]


def test_other_errors_pass_through():
    def run(group):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        blend(run, (20,), 8, 2)


def test_out_of_memory_is_recognised_by_its_words():
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("expected scalar type Half"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0, "overlap": 0}, "window must be at least 1, not 0"),
        ({"window": 8, "overlap": 8}, "overlap must be .* less than the window"),
        ({"window": 8, "overlap": -1}, "overlap must be"),
        ({"window": 8, "overlap": 3, "halo": 2}, "overlap must be at least twice the halo"),
        ({"window": 10, "overlap": 4, "multiple": 4}, "multiples of 4, not 10 and 4"),
        ({"window": 8, "overlap": 4, "multiple": 4}, "size must be a multiple of 4 .* not 30"),
        ({"window": (8, 8), "overlap": 4}, "window must be one number or one for each of the 1 axes"),
        ({"window": 8, "overlap": 4, "multiple": 0}, "multiple must be at least 1"),
    ],
)
def test_impossible_windows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        windows((30,), **arguments)


def test_impossible_calls_are_refused():
    x = torch.randn(1, 1, 30)
    with pytest.raises(ValueError, match="size must be"):
        windows((), 8, 4)
    with pytest.raises(ValueError, match="size must be"):
        windows((30, 0), 8, 4)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        blend(crops(x), (30,), 8, 4, batch=0)
    with pytest.raises(ValueError, match="function must return"):
        blend(lambda group: crops(x)(group)[..., 1:], (30,), 8, 4)
    with pytest.raises(ValueError, match="set multiple="):
        blend(crops(x), (30,), 7, 4, scale=Fraction(1, 4))
