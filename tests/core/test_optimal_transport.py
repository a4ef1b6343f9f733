"""Semi-discrete transport against exact optima: quantiles on a line, assignment in the plane."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.core.solver_problems import smooth_mixture

from fewstep.core import paths, sample
from fewstep.core.starts import TransportMap, fit_transport
from fewstep.core.weights import CheckpointError


def points(count, size, seed=0):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("source", ["uniform", "normal"])
def test_on_a_line_the_cells_are_quantiles(source):
    """The optimal map is monotone: the i-th of n equal shares of the noise goes to the i-th target."""
    targets = points(8, 1).flatten().sort().values
    shuffled = targets[torch.randperm(8, generator=torch.Generator().manual_seed(3))][:, None]
    found = fit_transport(shuffled, source=source, iterations=600, samples=8000, tolerance=4e-3, lr=0.02)
    share = (torch.arange(8, dtype=torch.float64)[:, None] + torch.tensor([0.15, 0.5, 0.85])) / 8
    x = share if source == "uniform" else torch.distributions.Normal(0.0, 1.0).icdf(share)
    got = found(x.reshape(-1, 1)).reshape(8, 3)
    assert torch.equal(got, targets[:, None].expand(8, 3))
    assert found.error < 0.012


def test_in_the_plane_no_assignment_is_cheaper():
    """linear_sum_assignment of the same noise to the same shares finds nothing better, and the same pairs."""
    targets = points(12, 2, seed=1)
    found = fit_transport(targets, iterations=400, samples=6000, tolerance=4e-3, lr=0.03)
    x = points(600, 2, seed=2)
    cells = found.nearest(x)[:, 0]
    seats = torch.arange(12).repeat_interleave(torch.bincount(cells, minlength=12))
    cost = torch.cdist(x, targets).square()[:, seats]
    rows, columns = linear_sum_assignment(cost.numpy())
    assert torch.equal(seats[torch.from_numpy(columns)], cells)
    mapped = (x - found(x)).square().sum(1).mean()
    assert mapped == pytest.approx(cost[rows, columns].mean().item(), rel=1e-12)
    assert torch.bincount(cells).min() > 25  # of 50 each; the shares themselves are tested below


def test_every_target_is_hit_equally_often():
    targets = points(16, 3, seed=4)
    found = fit_transport(targets, iterations=500, samples=6000, lr=0.05, tolerance=5e-3)
    hits = torch.bincount(found.nearest(points(40_000, 3, seed=5))[:, 0], minlength=16) / 40_000
    plain = TransportMap(targets, torch.zeros(16))
    before = torch.bincount(plain.nearest(points(40_000, 3, seed=5))[:, 0], minlength=16) / 40_000
    assert (hits - 1 / 16).abs().max() < 0.01
    assert (before - 1 / 16).abs().max() > 0.05


def test_blocks_do_not_matter():
    targets, x = points(50, 4, seed=6), points(30, 4, seed=7)
    found = TransportMap(targets, points(50, 1, seed=8)[:, 0])
    scores = x @ targets.T + found.heights
    for block in (7, 50, 4096):
        assert torch.equal(found.nearest(x, 5, block), scores.topk(5, dim=1).indices)
        assert torch.equal(found(x, block), targets[scores.argmax(1)])


def test_the_rule_to_stop_and_to_draw_more():
    seen = []
    fit_transport(
        points(4, 1), iterations=400, tolerance=0.05, samples=4000, on_step=lambda *info: seen.append(info)
    )
    step, error, empty = seen[-1]
    assert (error < 0.05, empty) == (True, 0)
    assert step < 399
    assert all(e >= 0.05 or n > 0 for _, e, n in seen[:-1])
    # with few samples progress stalls; more are drawn and the error falls below the noise of the first ones
    errors = []
    fit_transport(
        points(4, 1),
        iterations=300,
        tolerance=1e-9,
        samples=100,
        patience=5,
        lr=0.02,
        on_step=lambda s, e, n: errors.append(e),
    )
    assert len(errors) == 300
    assert sum(errors[-50:]) / 50 < 0.6 * (3 / 4 / 100) ** 0.5  # the norm of 100 samples' own scatter


def test_blending_stays_on_one_side_of_a_gap():
    """Two far clusters: neighbours within a cluster are blended, those across the gap are not."""
    side = torch.tensor([[-1.0, -5.0], [1.0, -5.0], [-1.0, 5.0], [1.0, 5.0]], dtype=torch.float64)
    heights = -0.5 * side.square().sum(1)  # nearest-point cells
    found = TransportMap(side, heights, angles=(0.0, 3.0))
    x = torch.tensor([[-0.2, -4.0], [0.3, 6.0], [0.9, 0.1]], dtype=torch.float64)
    got = found.blend(x, 2, weight=0.25, threshold=0.7)
    assert torch.allclose(got[0], torch.tensor([-0.5, -5.0], dtype=torch.float64))
    assert torch.allclose(got[1], torch.tensor([0.5, 5.0], dtype=torch.float64))
    assert torch.equal(got[2], side[3])  # its second best lies across the gap
    assert torch.equal(found.blend(x, 1), found(x))


def test_sampling_goes_on_from_the_mapped_latents(tmp_path):
    """Noise → latents at kappa = 1 → three calls: the samples have the data's mean and spread."""
    path, mixture = paths.EDM(), smooth_mixture(4)
    clean = mixture.draw(256, (4,), torch.Generator().manual_seed(0))
    latents = clean + points(256, 4, seed=1)
    found = fit_transport(latents, iterations=60, samples=4000, lr=0.2, tolerance=1e-3)
    found.save(tmp_path / "map.safetensors")
    loaded = TransportMap.load(tmp_path / "map.safetensors")
    noise = points(2000, 4, seed=2)
    start = loaded(noise)
    assert torch.equal(start, found(noise))
    assert (loaded.source, loaded.angles) == (found.source, found.angles)
    got = sample(mixture.denoiser(path), path, "dpmpp-2m", grid=(1.0, 0.3, 0.1, 0.0), x=start)
    wanted = mixture.draw(2000, (4,), torch.Generator().manual_seed(3))
    # 256 latents carry the scatter of their own mean, 1/16 of the spread
    assert (got.mean(0) - wanted.mean(0)).abs().max() < 4 * wanted.std() / 16
    assert (got.std(0) / wanted.std(0) - 1).abs().max() < 0.25


MAP = TransportMap(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fit_transport(torch.zeros(3)), "targets must be floating-point latents"),
        (lambda: fit_transport(torch.zeros(3, 1), source="cauchy"), "source must be 'normal' or 'uniform'"),
        (lambda: fit_transport(torch.zeros(3, 1), samples=0), "samples must be at least 1, not 0"),
        (lambda: fit_transport(torch.zeros(3, 1), iterations=0), "iterations must be at least 1, not 0"),
        (lambda: fit_transport(torch.zeros(3, 1), lr=0.0), "lr and tolerance must be above 0"),
        (lambda: MAP(torch.zeros(2, 3)), r"x must have shape \(batch, \*\(2,\)\)"),
        (lambda: MAP.nearest(torch.zeros(2, 2), 4), "count must be between 1 and 3, got 4"),
        (lambda: MAP.blend(torch.zeros(2, 2), weight=2.0), "weight must lie between 0 and 1, not 2.0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError):
        TransportMap.load(tmp_path / "x.safetensors")
