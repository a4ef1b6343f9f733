"""Negative attention is Z₊ − scale·Z₋ before the output projection, and leaves nothing behind."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import copy
import warnings

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from fewstep.core.bridges.diffusers_model import DiffusersNet
from fewstep.core.guidance.negative_attention import away_from_label, away_from_states
from fewstep.core.nets import DiT, DiTConfig, UNet, UNetConfig

warnings.filterwarnings("ignore", module="diffusers")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=2,
    )
    return DiffusersNet(net).double().eval()


@pytest.fixture(scope="module")
def dit():
    torch.manual_seed(0)
    net = DiT(DiTConfig(width=16, depth=3, heads=2, classes=4, two_times=True)).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


X, T = drawn(2, 1, 8, 8), torch.tensor([500.0, 900.0], dtype=torch.float64)
PROMPT, NEGATIVE = drawn(2, 5, 6, seed=1), drawn(1, 3, 6, seed=2)


class TestCrossAttention:
    def asked(self, unet, **how):
        return unet(X, T, encoder_hidden_states=PROMPT, **how)

    def test_one_layer_is_the_formula(self, unet):
        (layer,) = [
            p
            for n, p in unet.named_modules()
            if n.endswith("down_blocks.0.attentions.0.transformer_blocks.0.attn2")
        ]
        hidden = drawn(2, 7, 8, seed=3)

        def attended(states):
            q, k, v = layer.to_q(hidden), layer.to_k(states), layer.to_v(states)
            q, k, v = (z.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for z in (q, k, v))
            weights = (q @ k.transpose(-1, -2) * layer.scale).softmax(-1)
            return (weights @ v).transpose(1, 2).flatten(2)

        expected = layer.to_out[0](attended(PROMPT) - 0.4 * attended(NEGATIVE.expand(2, -1, -1)))
        with away_from_states(unet, NEGATIVE, 0.4):
            assert torch.allclose(layer(hidden, encoder_hidden_states=PROMPT), expected, rtol=1e-10)

    def test_scale_zero_changes_nothing(self, unet):
        with away_from_states(unet, NEGATIVE, 0.0):
            assert torch.equal(self.asked(unet), self.asked(unet))
            steered = self.asked(unet)
        assert torch.equal(steered, self.asked(unet))

    def test_away_from_the_prompt_itself_only_scales_what_it_says(self, unet):
        """Z = (1 − scale)·Z₊, which is an output projection with its weight times (1 − scale)."""
        with away_from_states(unet, PROMPT, 0.25):
            steered = self.asked(unet)
        quieter = copy.deepcopy(unet)
        for part in quieter.modules():
            if getattr(part, "is_cross_attention", False):
                part.to_out[0].weight.data *= 0.75
        assert torch.allclose(steered, self.asked(quieter), rtol=1e-10, atol=1e-12)

    def test_every_processor_will_do(self, unet):
        with away_from_states(unet, NEGATIVE, 0.4):
            fused = self.asked(unet)
            before = unet.model.attn_processors
            unet.model.set_attn_processor(AttnProcessor())
            plain = self.asked(unet)
            unet.model.set_attn_processor(before)
        assert torch.allclose(fused, plain, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(fused, self.asked(unet))

    def test_samples_do_not_meet(self, unet):
        each = torch.cat([NEGATIVE, 2 * NEGATIVE])
        with away_from_states(unet, each, 0.4):
            both = self.asked(unet)
        with away_from_states(unet, each[1:], 0.4):
            alone = unet(X[1:], T[1:], encoder_hidden_states=PROMPT[1:])
        assert torch.allclose(both[1:], alone, rtol=1e-10, atol=1e-12)

    def test_the_network_is_left_as_it_was(self, unet):
        before = self.asked(unet)
        with pytest.raises(KeyError), away_from_states(unet, NEGATIVE, 0.4):
            raise KeyError
        assert torch.equal(self.asked(unet), before)
        assert not any(part._forward_pre_hooks for part in unet.modules())


class TestLabels:
    LABEL, AVOIDED = torch.tensor([1, 2]), torch.tensor([3, 0])

    def test_one_block_is_the_formula(self, dit):
        """A DiT of one block, its attention written out."""
        net = copy.deepcopy(dit)
        net.blocks = net.blocks[:1]
        block, t = net.blocks[0], T / 1000
        tokens, wanted = net.embed(X, t, self.LABEL)
        _, avoided = net.embed(X, t, self.AVOIDED)

        def attended(modulation):
            shift, scale, *_ = block.modulation(modulation)[:, None].chunk(6, dim=-1)
            parts = block.queries_keys_values(block.norm(tokens) * (1 + scale) + shift)
            q, k, v = (z.unflatten(-1, (2, 8)).transpose(1, 2) for z in parts.chunk(3, dim=-1))
            return ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

        _, _, gate, shift, scale, gate2 = block.modulation(wanted)[:, None].chunk(6, dim=-1)
        after = tokens + gate * block.mixed(attended(wanted) - 0.4 * attended(avoided))
        after = after + gate2 * block.feed_forward(block.norm(after) * (1 + scale) + shift)
        with away_from_label(net, self.AVOIDED, 0.4):
            steered = net(X, t, self.LABEL)
        assert torch.allclose(steered, net.unembed(after, wanted), rtol=1e-10, atol=1e-12)

    def test_scale_zero_changes_nothing(self, dit):
        with away_from_label(dit, 3, 0.0):
            steered = dit(X, T, label=self.LABEL)
        assert torch.equal(steered, dit(X, T, label=self.LABEL))

    def test_away_from_the_label_itself_only_scales_what_it_says(self, dit):
        with away_from_label(dit, self.LABEL, 0.25):
            steered = dit(X, T, self.LABEL, T / 2)
        quieter = copy.deepcopy(dit)
        for block in quieter.blocks:
            block.mixed.weight.data *= 0.75
        assert torch.allclose(steered, quieter(X, T, self.LABEL, T / 2), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("how", [{"label": LABEL, "s": T / 2}, {"s": T / 2}, {}], ids=str)
    def test_arguments_may_be_named(self, dit, how):
        with away_from_label(dit, 3, 0.4):
            named, ordered = dit(x=X, t=T, **how), dit(X, T, how.get("label"), how.get("s"))
        assert torch.equal(named, ordered)

    def test_gradients_pass(self, dit):
        x = X.clone().requires_grad_()
        with away_from_label(dit, 3, 0.4):
            out = dit(x, T, self.LABEL)
            (gradient,) = torch.autograd.grad(out.square().sum(), x)
        step = drawn(*X.shape, seed=9) * 1e-6
        with away_from_label(dit, 3, 0.4), torch.no_grad():
            up, down = (dit(X + k * step, T, self.LABEL).square().sum() for k in (1, -1))
        assert torch.allclose((gradient * step).sum(), (up - down) / 2, rtol=1e-5)


def test_bad_input_is_named(unet, dit):
    ours = UNet(UNetConfig(widths=(8, 8), groups=4))
    with pytest.raises(TypeError, match="UNet has no cross-attention"), away_from_states(ours, NEGATIVE):
        pass
    with (
        pytest.raises(ValueError, match=r"states must be .* got \(3, 6\)"),
        away_from_states(unet, NEGATIVE[0]),
    ):
        pass
    with pytest.raises(TypeError, match="away_from_label takes a DiT"), away_from_label(ours, 1):
        pass
    plain = DiT(DiTConfig(width=16, depth=1, heads=2))
    with pytest.raises(ValueError, match="no classes"), away_from_label(plain, 1):
        pass
