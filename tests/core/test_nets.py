"""The small general networks, with one time and with two."""

# pyright: reportAssignmentType=false

import pytest
import torch

from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.nets.embedding import TimeEmbedding

KINDS = {
    "mlp": (MLP, MLPConfig, {"shape": (1, 8, 8), "width": 16}),
    "unet": (UNet, UNetConfig, {"size": (8, 8), "widths": (8, 16), "attention": (4,), "groups": 4}),
    "dit": (DiT, DiTConfig, {"size": (8, 8), "width": 16, "depth": 2, "heads": 2}),
}


def build(kind, seed=0, **options):
    make, config, usual = KINDS[kind]
    torch.manual_seed(seed)
    net = make(config(**{**usual, **options}))
    # Output layers start at zero; a network that gives nothing shows nothing.
    for name, parameter in net.named_parameters():
        if name.split(".")[-3:-1] != ["second", "2"] and bool((parameter == 0).all()):
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def arguments(count=3, seed=1):
    torch.manual_seed(seed)
    return torch.randn(count, 1, 8, 8), torch.rand(count), torch.rand(count) - 1


@pytest.mark.parametrize("kind", KINDS)
class TestEveryNetwork:
    def test_it_begins_as_nothing(self, kind):
        make, config, usual = KINDS[kind]
        x, t, _ = arguments()
        assert torch.equal(make(config(**usual))(x, t), torch.zeros_like(x))

    def test_a_second_time_begins_without_effect(self, kind):
        x, t, s = arguments()
        one, two = build(kind), build(kind, two_times=True)
        missing = two.load_state_dict(one.state_dict(), strict=False)
        assert missing.missing_keys
        assert all("second" in key for key in missing.missing_keys)
        assert not missing.unexpected_keys
        torch.testing.assert_close(two(x, t, s=s), one(x, t), rtol=0, atol=0)

    def test_without_s_it_is_that_of_s_equal_t(self, kind):
        x, t, s = arguments()
        net = build(kind, two_times=True)
        for layer in net.modules():
            second = getattr(layer, "second", None)
            if second is not None:
                torch.nn.init.normal_(second[2].weight, std=0.5)
        torch.testing.assert_close(net(x, t), net(x, t, s=t), rtol=0, atol=0)
        assert not torch.allclose(net(x, t), net(x, t, s=s), atol=1e-4)

    def test_a_network_with_one_time_refuses_a_second(self, kind):
        x, t, s = arguments()
        with pytest.raises(ValueError, match="two_times=True"):
            build(kind)(x, t, s=s)

    def test_labels_count_and_the_last_means_none(self, kind):
        x, t, _ = arguments()
        net = build(kind, classes=4)
        none = torch.full((3,), 4)
        torch.testing.assert_close(net(x, t), net(x, t, label=none), rtol=0, atol=0)
        assert not torch.allclose(net(x, t, label=torch.tensor([0, 1, 2])), net(x, t), atol=1e-4)

    def test_samples_do_not_depend_on_each_other(self, kind):
        x, t, s = arguments()
        net = build(kind, two_times=True, classes=4)
        label = torch.tensor([0, 1, 2])
        whole = net(x, t, s=s, label=label)
        alone = net(x[1:2], t[1:2], s=s[1:2], label=label[1:2])
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-6)

    def test_features_are_of_every_sample_and_depend_on_all(self, kind):
        x, t, _ = arguments()
        net = build(kind, classes=4)
        features = net.features(x, t, label=torch.tensor([0, 1, 2]))
        others = net.features(x, t, label=torch.tensor([3, 3, 3]))
        assert len(features) >= 2
        assert all(len(map_) == 3 for map_ in features)
        assert not torch.allclose(features[-1], others[-1])

    def test_forward_derivative_by_time_is_that_of_differences(self, kind):
        x, t, s = (value.double() for value in arguments())
        net = build(kind, two_times=True).double()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            _, rate = torch.func.jvp(lambda t: net(x, t, s=s), (t,), (torch.ones_like(t),))
            h = 1e-5
            slope = (net(x, t + h, s=s) - net(x, t - h, s=s)) / (2 * h)
        if kind == "dit":  # its waves are made in float32, as those of the shipped checkpoint
            assert torch.nn.functional.cosine_similarity(rate.flatten(), slope.flatten(), dim=0) > 0.99
        else:
            torch.testing.assert_close(rate, slope, rtol=1e-6, atol=1e-9)


def test_fast_waves_make_steep_networks():
    """What the slope by t at the start is proportional to: the reason for slow waves in MLP and UNet."""
    t = torch.rand(64, dtype=torch.float64)
    slopes = []
    for fastest in (5.0, 500.0):
        torch.manual_seed(0)
        embedding = TimeEmbedding(32, fastest, 0.5).double()
        _, rate = torch.func.jvp(embedding, (t,), (torch.ones_like(t),))
        slopes.append(float(rate.square().mean().sqrt()))
    assert slopes[0] < 5.0
    assert slopes[1] > 20 * slopes[0]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (MLPConfig, {"shape": ()}, "must be positive"),
        (MLPConfig, {"width": 0}, "must be positive"),
        (UNetConfig, {"size": (10, 10)}, "divisible by 4"),
        (UNetConfig, {"widths": (12, 24)}, "groups must divide"),
        (UNetConfig, {"widths": ()}, "must not be empty"),
    ],
)
def test_sizes_that_do_not_fit_are_named(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)
