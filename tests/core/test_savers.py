"""Compute savers for transformers: region-adaptive sampling, early exit, task routing."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tests.core.goldens import Golden

from fewstep.core import paths, sample
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guided
from fewstep.core.nets import DiT, DiTConfig
from fewstep.core.savers.early_exit import EarlyExit, exit_losses
from fewstep.core.savers.region_adaptive import RegionAdaptive
from fewstep.core.savers.task_routing import TaskRouted, route, routing_masks, uniform_tasks

FLOW, EDM = paths.RectifiedFlow(), paths.EDM()
GOLDEN = Golden("misc_official")


def network(channels=2, depth=3, seed=0):
    """A small DiT in double precision whose layers all do something."""
    torch.manual_seed(seed)
    config = DiTConfig(size=(8, 4), channels=channels, patch=2, width=16, depth=depth, heads=2, classes=3)
    net = DiT(config).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return net


def noise(batch=2, channels=2, seed=0):
    return torch.randn(
        batch, channels, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def flow(net, label=(1, 2)):
    return Denoiser(net, FLOW, "velocity").given(label=torch.tensor(label))


def partial_velocity(net, x, t, label, active, memory):
    """One sample by hand: the active tokens attend to the newest keys and values of all, in memory."""
    tokens, c = net.embed(x, t, label)
    h = {j: tokens[:, j : j + 1] for j in active}
    for i, block in enumerate(net.blocks):
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(c)[:, None].chunk(6, dim=-1)
        queries = {}
        for j in active:
            told = block.queries_keys_values(block.norm(h[j]) * (1 + scale1) + shift1)
            queries[j], key, value = told.view(3, block.heads, 1, -1)
            memory[i, j] = key, value
        k, v = (torch.cat([memory[i, j][part] for j in range(8)], dim=1) for part in (0, 1))
        for j in active:
            weights = (queries[j] @ k.transpose(1, 2) / k.shape[-1] ** 0.5).softmax(-1)
            h[j] = h[j] + gate1 * block.mixed((weights @ v).transpose(0, 1).reshape(1, 1, -1))
            h[j] = h[j] + gate2 * block.feed_forward(block.norm(h[j]) * (1 + scale2) + shift2)
    return net.unembed(torch.cat([h.get(j, tokens[:, j : j + 1]) for j in range(8)], dim=1), c)


@pytest.mark.parametrize(("high", "variant"), [(1.0, "official"), (0.0, "official"), (1.0, "exact")])
@torch.no_grad()
def test_region_adaptive_is_the_published_loop(high, variant):
    """Euler steps of rectified flow with the velocity of the left-out patches kept, sample by sample."""
    net, x, label = network(), noise(), torch.tensor([1, 2])
    times = [1.0, 0.9, 0.8, 0.6, 0.5, 0.3, 0.2, 0.0]
    saver = RegionAdaptive(flow(net), 0.5, warmup=2, resets=(4,), high=high, starvation=0.4, variant=variant)
    got = sample(saver, solver="ddim", grid=times, x=x)
    for n in range(2):
        z, memory, drops = x[n : n + 1], {}, torch.zeros(8)
        v = torch.zeros_like(z)
        for call, (t, s) in enumerate(itertools.pairwise(times)):
            active = list(range(8))
            if not (call < 2 or call == 4):
                rank = F.avg_pool2d(v.std(1, keepdim=True), 2).flatten()
                sign = -1 if (high and variant == "exact") else 1
                order = (rank * torch.exp(sign * 0.4 * drops)).argsort().tolist()
                left = order[4:] if high else order[:4]
                drops[left] += 1
                active = sorted(set(active) - set(left))
            told = torch.tensor([FLOW.network_time(t)], dtype=torch.float64)
            new = partial_velocity(net, z, told, label[n : n + 1], active, memory)
            marks = torch.tensor([j in active for j in range(8)]).view(1, 1, 4, 2)
            marks = marks.repeat_interleave(2, 2).repeat_interleave(2, 3)
            v = torch.where(marks, new, v)
            z = z + (s - t) * v
        torch.testing.assert_close(got[n : n + 1], z, rtol=1e-9, atol=1e-9)
    assert saver.computed == (3 * 8 + 4 * 4) / (7 * 8)
    assert saver.nfe == 1


@pytest.mark.parametrize("path", [FLOW, EDM, paths.VP.linear()], ids=lambda path: type(path).__name__)
@torch.no_grad()
def test_all_tokens_are_the_plain_network(path):
    plain = Denoiser(network(), path, "v").given(label=torch.tensor([1, 2]))
    saver = RegionAdaptive(plain, 1.0)
    x = path.coefficients(path.t_max)[2] * noise()
    for solver in ("ddim", "heun", "dpmpp-2m"):
        got, wanted = (sample(d, solver=solver, steps=6, x=x) for d in (saver, plain))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert saver.computed == 1.0


@torch.no_grad()
def test_at_an_unchanged_state_a_part_of_the_tokens_says_what_all_said():
    saver = RegionAdaptive(flow(network()), 0.25, warmup=1)
    first = saver(noise(), 0.5)
    torch.testing.assert_close(saver(noise(), 0.5), first, rtol=1e-12, atol=1e-12)
    assert saver.computed == 0.625


@torch.no_grad()
def test_drops_bring_patches_back_but_not_in_the_published_code():
    computed = {}
    for variant in ("exact", "official"):
        saver = RegionAdaptive(flow(network()), 0.5, warmup=1, resets=(), starvation=2.0, variant=variant)
        for i in range(9):
            saver(noise() if i == 0 else noise() * (1 - 1e-3 * i), 0.5)
        computed[variant] = saver._run.drops
    assert computed["exact"].max() <= 5
    assert computed["official"].max() == 8


@torch.no_grad()
def test_runs_begin_anew_and_samples_stand_alone():
    denoise = flow(network())
    saver = RegionAdaptive(denoise, 0.5, warmup=1)
    first = sample(saver, solver="ddim", steps=5, x=noise())
    assert torch.equal(sample(saver, solver="ddim", steps=5, x=noise()), first)
    alone = sample(saver.given(label=torch.tensor([2])), solver="ddim", steps=5, x=noise()[1:])
    torch.testing.assert_close(alone, first[1:], rtol=1e-9, atol=1e-9)
    guided = Guided(saver, 2.0, {"label": 3})
    conditional, free = (d(noise(), 0.5) for d in (denoise, denoise.given(label=torch.tensor([3]))))
    torch.testing.assert_close(guided(noise(), 0.5), 2 * conditional - free, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"ratio must lie in \(0, 1\], not 0.0"),
        ({"high": 1.5}, r"high must lie in \[0, 1\], not 1.5"),
        ({"warmup": 0}, "warmup must be at least 1, not 0"),
        ({"metric": "max"}, "metric must be one of .* not 'max'"),
    ],
)
def test_region_adaptive_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RegionAdaptive(flow(network()), **options)


def test_region_adaptive_refuses_other_networks_times_and_single_channels():
    with pytest.raises(TypeError, match="needs a Denoiser whose network is a DiT"):
        RegionAdaptive(Denoiser(lambda x, t: x, FLOW))
    with pytest.raises(ValueError, match="metric 'std' is over the channels, and there is one"):
        RegionAdaptive(flow(network(1)))
    with pytest.raises(ValueError, match="needs one time for all samples"):
        RegionAdaptive(flow(network()))(noise(), torch.tensor([0.5, 0.6]).double())


def exiting(threshold, seed=1):
    net = EarlyExit(network(depth=4), threshold).double()
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in (*net.adapters, *net.doubts):
            weight = layer.get_parameter("weight")
            weight.copy_(0.3 * torch.randn_like(weight))
    return net


@torch.no_grad()
def test_without_a_threshold_early_exit_is_the_plain_network():
    net, t, label = exiting(0.0), torch.tensor([0.3, 0.8]).double(), torch.tensor([0, 3])
    torch.testing.assert_close(net(noise(), t, label), net.model(noise(), t, label), rtol=1e-12, atol=1e-12)
    assert net.blocks_used == 4


@torch.no_grad()
def test_every_sample_leaves_at_the_first_block_that_is_sure():
    x, t = noise(8), torch.linspace(0.1, 1.0, 8).double()
    used = []
    for threshold in (0.0, 0.3, 0.45, 0.6, 1.0):
        net = exiting(threshold)
        got, choices, count = net(x, t), list(net.exits(x, t)), 0
        for n in range(8):
            doubts = [e.uncertainty for e in choices if e.uncertainty is not None]
            sure = [i for i, doubt in enumerate(doubts) if doubt[n].mean() < threshold]
            at = sure[0] if sure else 3
            count += at + 1
            torch.testing.assert_close(got[n], choices[at].out[n], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(
                net(x[n : n + 1], t[n : n + 1]), got[n : n + 1], rtol=1e-10, atol=1e-10
            )
        net.reset()
        net(x, t)
        assert net.blocks_used == count / 8
        used.append(net.blocks_used)
    assert used == sorted(used, reverse=True)
    assert (used[0], used[-1]) == (4, 1)
    assert len(set(used)) > 2


def test_exit_losses_by_hand():
    net, x, t, target = exiting(0.5), noise(), torch.tensor([0.3, 0.8]).double(), noise(seed=5)
    losses = exit_losses(net, x, t, target)
    *inner, last = net.exits(x, t)
    early = doubt = 0.0
    for out, believed in inner:
        assert believed is not None
        for n, row, column in itertools.product(range(2), range(4), range(2)):
            box = (n, slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            gap = (out - target)[box]
            u = torch.tanh(gap.abs().mean())
            early += (1 - u) * gap.square().mean() / 16
            doubt += (believed[n, 2 * row + column] - u) ** 2 / 16
    torch.testing.assert_close(losses.last, (last.out - target).square().mean())
    torch.testing.assert_close(losses.early, early)
    torch.testing.assert_close(losses.uncertainty, doubt)
    torch.testing.assert_close(losses.total, losses.last + losses.early + losses.uncertainty)
    losses.uncertainty.backward()
    assert net.doubts[0].weight.grad is not None
    assert net.model.out.weight.grad is None  # the target of the uncertainty is not differentiated


def test_training_the_exits_alone_makes_them_agree_with_the_full_network():
    net = EarlyExit(network(depth=3)).double()
    net.model.requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    values = []
    for step in range(60):
        x, t = noise(16, seed=step), torch.rand(16, generator=torch.Generator().manual_seed(step)).double()
        losses = exit_losses(net, x, t, net.model(x, t))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        values.append([float(part.detach()) for part in losses[1:]])
    assert float(losses.last) < 1e-20
    assert values[-1][0] < 0.8 * values[0][0]
    assert values[-1][1] < 0.5 * values[0][1]


def test_early_exit_refuses_a_bad_threshold():
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\], not 1.5"):
        EarlyExit(network(), 1.5)


@GOLDEN.each(lambda case: case["kind"] == "dtr_mask")
def test_masks_are_those_of_the_published_code(case):
    got = routing_masks(case["task_count"], case["unit_count"], case["beta"], case["alpha"])
    assert torch.equal(got.double(), GOLDEN.of(case, "out.mask"))


@torch.no_grad()
def test_routed_blocks_see_their_window_and_leave_the_rest():
    net, masks = network(), routing_masks(4, 16, 0.5)
    tokens, modulation = net.embed(noise(), torch.tensor([0.1, 0.9]).double())
    mask = masks[torch.tensor([0, 3])]
    got = route(net.blocks[0], tokens, modulation, mask)
    for n in range(2):
        window = mask[n].double()
        wanted = net.blocks[0](tokens[n : n + 1] * window, modulation[n : n + 1]) + tokens[n : n + 1] * (
            1 - window
        )
        torch.testing.assert_close(got[n : n + 1], wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_task_routing_with_the_whole_width_is_the_plain_network():
    net, t, label = network(), torch.tensor([0.1, 0.9]).double(), torch.tensor([0, 1])
    routed = TaskRouted(net, uniform_tasks(0.0, 1.0, 8), 8, share=1.0)
    torch.testing.assert_close(routed(noise(), t, label), net(noise(), t, label), rtol=1e-12, atol=1e-12)
    narrow = TaskRouted(net, uniform_tasks(0.0, 1.0, 8), 8)
    assert not torch.allclose(narrow(noise(), t, label), net(noise(), t, label))
    alone = narrow(noise()[1:], t[1:], label[1:])
    torch.testing.assert_close(alone, narrow(noise(), t, label)[1:], rtol=1e-12, atol=1e-12)
    assert set(narrow.state_dict()) == {f"model.{name}" for name in net.state_dict()}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routing_masks(0, 4), "tasks and channels must be at least 1, not 0 and 4"),
        (lambda: routing_masks(2, 4, share=0.1), r"share must lie in \(0, 1\] and leave a channel of 4"),
        (lambda: routing_masks(2, 4, alpha=0.0), "alpha must be positive, not 0.0"),
        (lambda: uniform_tasks(1.0, 1.0, 3), "low must be less than high, not 1.0 and 1.0"),
    ],
)
def test_task_routing_refuses_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()
