"""Low-rank adapters: nothing at first, the same merged as beside, and only they learn."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import copy

import pytest
import torch
from torch import nn

from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.nets.lora import (
    adapter_state,
    adapters,
    attach,
    detach,
    load_adapter_state,
    merge,
    second_half,
    shared_copy,
    trainable,
)

SHAPES = {"mlp": (2,), "dit": (1, 8, 8), "unet": (1, 16, 16)}


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def network(kind):
    torch.manual_seed(0)
    net = {
        "mlp": lambda: MLP(MLPConfig(width=16, classes=3)),
        "dit": lambda: DiT(DiTConfig(width=16, depth=2, heads=2, classes=3)),
        "unet": lambda: UNet(UNetConfig(widths=(8, 8), groups=4, embedding=16, attention=(8,), classes=3)),
    }[kind]()
    for parameter in net.parameters():  # the layers that start at zero would hide a wrong adapter
        nn.init.normal_(parameter, std=0.3)
    return net.double()


def inputs(kind):
    x = torch.randn(4, *SHAPES[kind], dtype=torch.float64, generator=drawn(1))
    return x, torch.tensor([0.1, 0.3, 0.7, 0.9], dtype=torch.float64)


def shaken(net, seed=2):
    """Adapters with any values."""
    for weight in trainable(net):
        weight.data = torch.randn(weight.shape, dtype=weight.dtype, generator=drawn(seed)) * 0.2
    return net


@pytest.mark.parametrize("kind", SHAPES)
class TestEveryNetwork:
    def test_it_begins_unchanged(self, kind):
        net, (x, t) = network(kind), inputs(kind)
        before = net(x, t)
        attach(net, 2, generator=drawn())
        assert torch.allclose(net(x, t), before, rtol=1e-12, atol=1e-13)

    def test_merged_weights_do_what_adapters_do(self, kind):
        net, (x, t) = network(kind), inputs(kind)
        plain = net(x, t)
        attach(net, 2, alpha=3.0)
        beside = shaken(net)(x, t)
        assert (beside - plain).abs().max() > 0.01
        merged = merge(net)
        assert not adapters(merged)
        assert torch.allclose(merged(x, t), beside, rtol=1e-11, atol=1e-12)

    def test_detached_it_is_the_old_network(self, kind):
        net, (x, t) = network(kind), inputs(kind)
        before, names = net(x, t), list(net.state_dict())
        detach(shaken(_with_adapters(net)))
        assert torch.allclose(net(x, t), before, rtol=1e-12, atol=1e-13)
        assert list(net.state_dict()) == names

    def test_only_adapters_learn(self, kind):
        net, (x, t) = network(kind), inputs(kind)
        learning = attach(net, 2)
        shaken(net)(x, t).square().sum().backward()
        assert [p for p in net.parameters() if p.requires_grad] == learning
        assert all(p.grad is None for name, p in net.named_parameters() if "low_rank" not in name)
        # The label's and second time's layers are not asked here; whatever is asked has a gradient.
        assert sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learning) > len(learning) // 2

    def test_one_call_asks_with_and_without(self, kind):
        net, (x, t) = network(kind), inputs(kind)
        plain = net(x, t)
        changed = shaken(_with_adapters(net))(x, t)
        with second_half(net):
            both = net(torch.cat([x, x]), torch.cat([t, t]))
        assert torch.allclose(both, torch.cat([plain, changed]), rtol=1e-11, atol=1e-12)
        assert torch.allclose(net(x, t), changed, rtol=1e-12)


def _with_adapters(net):
    attach(net, 2)
    return net


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), padding=1),
        nn.Conv3d(4, 6, 3, padding="same"),
        nn.Linear(4, 6, bias=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_and_its_change(layer):
    """W + (alpha/rank)·up·down, by the layer's own arithmetic with that weight."""
    layer = copy.deepcopy(layer).double()
    spatial = layer.weight.ndim - 2 if layer.weight.ndim > 2 else 0
    x = torch.randn(3, 4, *[7] * spatial, dtype=torch.float64, generator=drawn())
    net = nn.Sequential(copy.deepcopy(layer))
    attach(net, 3, alpha=6.0)
    shaken(net)
    adapter = adapters(net)["0"]
    change = torch.einsum("or,r...->o...", adapter.up, adapter.down)
    layer.weight.data += 2.0 * change
    assert torch.allclose(net(x), layer(x), rtol=1e-11, atol=1e-12)


def test_only_the_named_layers_get_one():
    net = network("dit")
    attach(net, 2, layers=("blocks.*.mixed", "out"))
    assert list(adapters(net)) == ["blocks.0.mixed", "blocks.1.mixed", "out"]


def test_layers_that_are_not_called_get_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)
            self.grouped, self.transposed = nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3)
            self.last = nn.Linear(4, 4)

    net = Net()
    attach(net, 2)
    assert list(adapters(net)) == ["last"]


def test_the_state_of_the_adapters_alone():
    first, second = (_with_adapters(network("mlp")) for _ in range(2))
    state = adapter_state(shaken(first))
    assert len(state) == 2 * len(adapters(first))
    assert all(name.split(".")[-2:] in (["low_rank", "up"], ["low_rank", "down"]) for name in state)
    load_adapter_state(second, state)
    x, t = inputs("mlp")
    assert torch.equal(first(x, t), second(x, t))
    with pytest.raises(ValueError, match="state must hold"):
        load_adapter_state(second, dict(list(state.items())[1:]))


def test_a_copy_is_independent():
    net, (x, t) = _with_adapters(network("mlp")), inputs("mlp")
    other = copy.deepcopy(net)
    before = other(x, t)
    shaken(net)
    assert torch.equal(other(x, t), before)
    assert not torch.equal(net(x, t), before)


def test_twins_share_the_weights_and_not_the_adapters():
    net, (x, t) = network("unet"), inputs("unet")
    twin = shared_copy(net)
    assert all(a is b for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    attach(twin, 2)
    before = net(x, t)
    shaken(twin)
    assert torch.equal(net(x, t), before)
    assert not torch.allclose(twin(x, t), before)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(1.0)
    assert all(bool((twin.get_parameter(name) == weight).all()) for name, weight in net.named_parameters())


def test_first_values_follow_the_generator():
    first, second = network("mlp"), network("mlp")
    for net in (first, second):
        attach(net, 2, generator=drawn(5))
    pairs = zip(adapter_state(first).items(), adapter_state(second).items(), strict=True)
    for (name, mine), (_, theirs) in pairs:
        assert torch.equal(mine, theirs)
        assert bool(mine.any()) == name.endswith("down")


def test_bad_input_is_named():
    net = network("mlp")
    with pytest.raises(ValueError, match=r"rank must be at least 1 .* rank=0"):
        attach(net, 0)
    with pytest.raises(ValueError, match="alpha=-1"):
        attach(net, 2, alpha=-1.0)
    with pytest.raises(ValueError, match=r"layers \('nothing',\) fit none .* first, inner\.0"):
        attach(net, 2, layers=("nothing",))
    attach(net, 2)
    with pytest.raises(ValueError, match="has adapters already"):
        attach(net, 2)
