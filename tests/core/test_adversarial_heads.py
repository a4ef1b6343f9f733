"""The heads: their shapes, what they depend on, and the published one."""

from typing import Any

import pytest
import torch
from torch import nn

from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.objectives.adversarial.heads import (
    HeadPerLayer,
    MapHead,
    PatchHead,
    QueryHead,
    TimedHead,
    VectorHead,
    feature_shapes,
    head_for,
)

T = torch.tensor([0.1, 0.5, 0.9])


@pytest.mark.parametrize(
    ("head", "feature", "logits"),
    [
        (VectorHead(16), (3, 16), 1),
        (VectorHead(16, depth=3), (3, 5, 16), 5),
        (MapHead(16, (8, 8)), (3, 16, 8, 8), 1),
        (MapHead(16, (2, 2), 8), (3, 16, 2, 2), 1),
        (MapHead(16, (16, 8), 32), (3, 16, 16, 8), 1),
        (PatchHead(16), (3, 16, 4, 6), 24),
        (QueryHead(16), (3, 9, 16), 1),
    ],
)
def test_every_feature_counts_and_samples_do_not_mix(head, feature, logits):
    x = torch.randn(feature, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = head([torch.zeros(3, 1), x], T)
    assert out.shape == (3, logits)
    (gradient,) = torch.autograd.grad(out[1].sum(), x)
    assert gradient[1].abs().amin() > 0 if x.ndim < 4 else gradient[1].abs().amax() > 0
    assert gradient[[0, 2]].abs().max() == 0


def test_the_map_head_of_eight_is_the_published_one():
    """Convolutions 4/2, 4/4 (a kernel as large as the map), 1, with 32 groups and SiLU between."""
    layers = list(MapHead(768, (8, 8)).layers)
    shapes = [(layer.kernel_size[0], layer.out_channels) for layer in layers if isinstance(layer, nn.Conv2d)]
    assert shapes == [(4, 768), (4, 768), (1, 1)]
    assert layers[0].stride == (2, 2)
    assert [layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)] == [32, 32]
    assert [type(layer) for layer in layers[1:3]] == [nn.GroupNorm, nn.SiLU]


def test_time_modulates_once_it_has_learned_to():
    torch.manual_seed(0)
    plain = HeadPerLayer([VectorHead(8), VectorHead(6), MapHead(4, (4, 4))])
    timed: Any = TimedHead(plain, (8, 6, 4))
    features = [torch.randn(3, 8), torch.randn(3, 5, 6), torch.randn(3, 4, 4, 4)]
    torch.testing.assert_close(timed(features, T), plain(features, T))
    for layer in timed.modulations:
        nn.init.normal_(layer.bias)
    # With constant scale and shift the features are those of an affine map, channel by channel.
    changed = []
    for feature, layer in zip(features, timed.modulations, strict=True):
        scale, shift = layer.bias.chunk(2)
        view = (-1, 1, 1) if feature.ndim == 4 else (-1,)
        changed.append(feature * (1 + scale.reshape(view)) + shift.reshape(view))
    torch.testing.assert_close(timed(features, T), plain(changed, T))
    for layer in timed.modulations:
        nn.init.normal_(layer.weight)
    assert not torch.allclose(timed(features, T), timed(features, T.flip(0)))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (MLP(MLPConfig(shape=(2,), width=16)), (2,)),
        (UNet(UNetConfig(size=(8, 8), widths=(16, 32), groups=8)), (1, 8, 8)),
        (DiT(DiTConfig(width=32, depth=2)), (1, 8, 8)),
    ],
)
def test_head_for_fits_the_features_of_every_network(net, shape):
    shapes = feature_shapes(net.features, torch.zeros(1, *shape))
    heads = HeadPerLayer([head_for(each) for each in shapes])
    features = net.features(torch.randn(3, *shape), T)
    assert [tuple(feature.shape[1:]) for feature in features] == shapes
    assert heads(features, T).shape[0] == 3
    assert heads(features, T).isfinite().all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="shape must be"):
        head_for((1, 2, 3, 4))
    with pytest.raises(ValueError, match="there are 2 heads for 1 feature tensors"):
        HeadPerLayer([VectorHead(4), VectorHead(4)])([torch.zeros(1, 4)], T[:1])
