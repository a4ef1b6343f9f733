"""The ResShift model: the published sampler, sizes, noise, inpainting, first stages and checkpoints."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core import sample
from fewstep.core.noise import NoiseField
from fewstep.restoration.methods.padding import reflect_to_multiple
from fewstep.restoration.methods.resshift import ResShift, ResShiftConfig
from fewstep.restoration.nets.edsr import ConditionalEDSR
from fewstep.restoration.nets.unet_swin import UNetModelSwin
from fewstep.restoration.nets.vq import VQModel

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
RUNS = json.loads((GOLDEN / "resshift_sampler.json").read_text())["runs"]

TINY_SWIN = {
    "image_size": 16,
    "model_channels": 32,
    "attention_resolutions": [16],
    "num_res_blocks": [1],
    "channel_mult": [1],
    "swin_embed_dim": 32,
    "lq_size": 16,
}
TINY_VQ = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "n_embed": 16}


class ClosedForm(nn.Module):
    """The function that stands for a network in the golden file; it records what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        self.seen.append((x.clone(), t.clone()))
        ratio = x.shape[-1] // lq.shape[-1]
        condition = lq.repeat_interleave(ratio, -1).repeat_interleave(ratio, -2)
        return 0.6 * x.tanh() + 0.4 * condition + 0.05 * t.sin().view(-1, 1, 1, 1)


def edsr(**changes) -> ResShift:
    """A small pixel-space model with random weights."""
    values = {
        "network": "edsr",
        "network_options": {"width": 8, "blocks": 2},
        "first_stage": "identity",
        "latent": False,
        "kappa": 0.5,
        "padding": 1,
    }
    torch.manual_seed(0)
    model = ResShift(ResShiftConfig(**(values | changes))).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def inpainting(**changes) -> ResShift:
    """A small latent model told a mask, at the published ratio of input and latent."""
    options = TINY_SWIN | {"cond_mask": True, "lq_size": 64}
    values = {"scale": 1, "network_options": options, "first_stage_options": TINY_VQ, "padding": 32}
    torch.manual_seed(0)
    return ResShift(ResShiftConfig(**(values | changes))).eval()


def published_run(index: int) -> tuple[dict, dict[str, Tensor], ResShift]:
    """Settings, tensors and model of one run of the golden file."""
    run = RUNS[index]
    tensors = load_file(GOLDEN / "resshift_sampler.safetensors")
    golden = {name.split(".", 1)[1]: v for name, v in tensors.items() if name.startswith(f"s{index}.")}
    config = ResShiftConfig(
        steps=run["steps"],
        kappa=run["kappa"],
        min_noise_level=run["min_noise_level"],
        etas_end=run["etas_end"],
        power=run["schedule_kwargs"]["power"],
        latent=run["latent_flag"],
        scale=run["sf"],
        prediction=run["predict_type"],
        first_stage="identity",
        padding=1,
    )
    return run, golden, ResShift(config, network=ClosedForm())


@pytest.mark.parametrize("index", range(4))
def test_training_equals_published(index):
    """Noisy states and clean estimates at one noise level per image, as in training."""
    run, golden, model = published_run(index)
    denoise = model.denoiser(golden["in.y"], steps=run["num_timesteps"], respacing="official")
    noisy = denoise.path.corrupt(golden["q.x0"], golden["q.t"], golden["q.noise"], golden["out.zy"])
    torch.testing.assert_close(noisy, golden["q.zt"], rtol=0, atol=1e-5)
    estimate = denoise(noisy, golden["q.t"].double())
    scale = golden["q.pred_z0"].abs().max()
    torch.testing.assert_close(estimate / scale, golden["q.pred_z0"] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_sampler_equals_published(index):
    run, golden, model = published_run(index)
    net = model.net
    assert isinstance(net, ClosedForm)
    draws, states = iter(golden["in.noise"]), []
    lq = golden["in.y"]
    torch.testing.assert_close(model.prior(lq), golden["out.zy"], rtol=0, atol=1e-6)

    def remember(info) -> None:
        states.append(info.x.clone())

    result = model.restore(
        lq,
        steps=run["num_timesteps"],
        respacing="official",
        noise=lambda like: next(draws),
        on_step=remember,
    )
    torch.testing.assert_close(torch.stack(states), golden["out.states"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result, golden["out.states"][-1].clamp(-1, 1), rtol=0, atol=1e-5)
    told = torch.stack([t for _, t in net.seen])
    assert torch.equal(told, golden["out.t_model"][:, None].expand_as(told).float())
    if "out.model_in" in golden:
        inputs = torch.stack([x for x, _ in net.seen])
        torch.testing.assert_close(inputs, golden["out.model_in"], rtol=0, atol=1e-5)


def test_mean_is_one_call_from_the_start():
    net = ClosedForm()
    config = ResShiftConfig(latent=False, first_stage="identity", padding=1, kappa=0.5)
    model = ResShift(config, network=net)
    lq = torch.rand(2, 3, 5, 6) * 2 - 1
    noise = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    restored = model.restore(lq, mode="mean", noise=lambda like: noise)
    assert len(net.seen) == 1
    assert net.seen[0][1].tolist() == [3, 3]
    y = F.interpolate(lq, scale_factor=4, mode="bicubic")
    start = (y + 0.5 * 0.99 * noise) / (3 * 0.5 * 0.99 + 1)
    torch.testing.assert_close(net.seen[0][0], start, rtol=1e-5, atol=1e-6)
    expected = ClosedForm()(start, torch.tensor([3.0, 3.0]), lq).clamp(-1, 1)
    torch.testing.assert_close(restored, expected, rtol=1e-5, atol=1e-6)


def test_pixels_are_clamped_at_every_step_and_latents_are_not():
    class Bright(nn.Module):
        def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
            return torch.full_like(x, 3.0)

    for latent, most in ((False, 1.0), (True, 3.0)):
        config = ResShiftConfig(latent=latent, first_stage="identity", padding=1)
        estimates = []
        ResShift(config, network=Bright()).restore(
            torch.zeros(1, 3, 4, 4), on_step=lambda info, kept=estimates: kept.append(info.x0.max().item())
        )
        assert estimates == [most] * 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (17, 33), (64, 65)])
def test_every_size_is_restored(size):
    model = edsr(padding=64)
    restored = model.restore(torch.rand(1, 3, *size) * 2 - 1)
    assert restored.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert restored.isfinite().all()
    assert restored.abs().max() <= 1


def test_padding_is_reflection_and_goes_on_where_reflection_ends():
    x = torch.rand(2, 3, 40, 50, dtype=torch.float64)
    assert torch.equal(reflect_to_multiple(x, 64), F.pad(x, (0, 14, 0, 24), mode="reflect"))
    assert reflect_to_multiple(x, 10) is x
    row = torch.arange(3.0).view(1, 1, 1, 3)
    assert reflect_to_multiple(row, 7)[0, 0, 3].tolist() == [0, 1, 2, 1, 0, 1, 2]


def test_extension_does_not_show_where_the_network_does_not_reach():
    """A fully convolutional model gives the same inner pixels whatever was added outside."""
    small, large = edsr(padding=1), edsr(padding=32)
    lq = torch.rand(1, 3, 40, 40) * 2 - 1
    field = NoiseField(0, small.state_channels)
    plain, extended = (m.restore(lq, noise=field.window((0, 0)), mode="mean") for m in (small, large))
    assert small.reach is not None
    inner = 4 * (40 - small.reach)
    torch.testing.assert_close(plain[..., :inner, :inner], extended[..., :inner, :inner], rtol=0, atol=1e-5)


def test_tiles_with_one_field_of_noise_agree():
    model = edsr()
    assert isinstance(model.net, ConditionalEDSR)
    reach = 2 + 4 * model.net.receptive_field  # of the enlargement and of four calls
    lq = torch.rand(1, 3, 2 * reach + 12, 16) * 2 - 1
    field = NoiseField(5, model.state_channels)
    whole = model.restore(lq, noise=field.window((0, 0)))
    first = 10
    ratio = int(model.state_ratio)
    tile = model.restore(lq[:, :, first:], noise=field.window((ratio * first, 0)))
    torch.testing.assert_close(tile[:, :, 4 * reach :], whole[:, :, 4 * (first + reach) :], rtol=0, atol=1e-5)


def test_seeds_belong_to_images():
    model = edsr()
    lq = torch.rand(3, 3, 8, 8) * 2 - 1
    together = model.restore(lq, seed=[4, 9, 4])
    torch.testing.assert_close(together[1:2], model.restore(lq[1:2], seed=9), rtol=0, atol=1e-5)
    again = model.restore(lq[[0, 2]], seed=4)
    torch.testing.assert_close(again[0], together[0], rtol=0, atol=1e-5)
    assert (again[1] - together[2]).abs().max() > 1e-3  # image 1 draws from seed 5


def test_on_step_stops():
    steps = []
    model = edsr()
    model.restore(torch.zeros(1, 3, 4, 4), on_step=lambda info: steps.append(info.step) or len(steps) < 2)
    assert steps == [1, 2]


def test_fewer_steps_start_from_the_noisiest_level():
    net = ClosedForm()
    model = ResShift(ResShiftConfig(steps=15, min_noise_level=0.04, first_stage="identity"), network=net)
    lq = torch.zeros(1, 3, 64, 64)
    model.restore(lq, steps=5)
    assert [int(t[0]) for _, t in net.seen] == [14, 10, 7, 4, 0]
    net.seen.clear()
    model.restore(lq, steps=5, respacing="official")
    assert [int(t[0]) for _, t in net.seen] == [12, 9, 6, 3, 0]


def test_pixel_unshuffle_is_lossless():
    options = {"network": "unet-swin", "first_stage": "pixel-unshuffle", "first_stage_options": {"factor": 4}}
    swin = TINY_SWIN | {"in_channels": 48, "out_channels": 48}
    model = edsr(**options, network_options=swin, padding=16)
    image = torch.rand(1, 3, 8, 12)
    assert model.encode(image).shape == (1, model.state_channels, 2, 3)
    assert torch.equal(model.decode(model.encode(image)), image)
    assert model.state_ratio == 1
    assert model.restore(torch.zeros(1, 3, 10, 10)).shape == (1, 3, 40, 40)


def test_decoding_quantises_unless_told_not_to():
    model = inpainting()
    z = torch.randn(1, 3, 4, 4)
    assert isinstance(model.first_stage, VQModel)
    codes = model.first_stage.quantize.embedding.weight
    nearest = torch.cdist(z.flatten(2)[0].T, codes).argmin(1)
    quantised = codes[nearest].T.reshape(z.shape)
    expected = model.decode(quantised, force_not_quantize=True)
    torch.testing.assert_close(model.decode(z), expected, rtol=1e-4, atol=1e-5)
    assert (model.decode(z, force_not_quantize=True) - expected).abs().max() > 1e-2


def test_inpainting_keeps_what_is_known():
    model = inpainting()
    lq = torch.rand(1, 3, 50, 70) * 2 - 1
    mask = torch.zeros(1, 1, 50, 70)
    mask[..., 10:30, 20:50] = 1
    restored = model.restore(lq, mask=mask)
    known = mask.expand_as(lq) == 0
    assert torch.equal(restored[known], lq[known])
    assert (restored - lq)[~known].abs().mean() > 0.1


def test_mask_reaches_the_network_extended_with_the_image(monkeypatch):
    model = inpainting()
    told = []
    assert isinstance(model.net, UNetModelSwin)
    original = model.net.condition

    def spy(lq: Tensor, mask: Tensor) -> Tensor:
        told.append((lq, mask))
        return original(lq, mask)

    monkeypatch.setattr(model.net, "condition", spy)
    mask = torch.zeros(1, 1, 20, 32)
    mask[..., 15:, :] = 1
    model.restore(torch.zeros(1, 3, 20, 32), mask=mask)
    ((image, given),) = told  # once for all steps
    assert image.shape[-2:] == given.shape[-2:] == (32, 32)
    assert given[0, 0, :, 0].tolist() == [-1.0] * 15 + [1.0] * 9 + [-1.0] * 8


@pytest.mark.parametrize("channels_last", [False, True])
def test_latent_model_in_bfloat16(channels_last):
    torch.manual_seed(0)
    model = inpainting()
    for parameter in model.net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    lq, mask = torch.rand(1, 3, 32, 32) * 2 - 1, torch.ones(1, 1, 32, 32)
    states: dict[str, list[Tensor]] = {"exact": [], "half": [], "autocast": []}

    def run(name: str, model: ResShift) -> None:
        model.restore(lq, mask=mask, on_step=lambda info: states[name].append(info.x.clone()))

    run("exact", model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        run("autocast", model)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    run("half", model.bfloat16())
    for name in ("half", "autocast"):
        for got, exact in zip(states[name], states["exact"], strict=True):
            assert got.dtype == torch.float32
            # Some forty layers round to 2^-8 in each of four calls: √160 · 2^-8 ≈ 0.05, partly amplified.
            assert (got - exact).norm() < 0.1 * exact.norm()


def test_used_in_inference_mode_then_trained():
    model = edsr()
    lq = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        model.restore(lq)
    denoise = model.train().denoiser(lq)
    denoise(torch.randn(1, 3, 32, 32), 2.0).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_denoiser_goes_through_sample():
    model = edsr(latent=True)
    lq = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        drawn = sample(model.denoiser(lq), solver="ancestral", grid=(3, 2, 1, 0, -1), seed=7)
    torch.testing.assert_close(model.restore(lq, seed=7), drawn.clamp(-1, 1))


def test_copies_and_pickles_after_use():
    model = edsr()
    lq = torch.rand(1, 3, 8, 8)
    expected = model.restore(lq)
    assert torch.equal(copy.deepcopy(model).restore(lq), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model)).restore(lq), expected)


@pytest.mark.parametrize("build", [edsr, inpainting])
def test_checkpoint_round_trip(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = ResShift.from_pretrained(tmp_path)
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_what_a_tiler_asks():
    model = edsr()
    assert (model.state_channels, model.state_ratio, model.reach) == (3, 4, 6 + 2)
    assert inpainting().reach is None
    assert inpainting().state_ratio == 0.25
    assert model.steps_of("mean") == 1
    assert model.steps_of("sample") == 4
    assert model.steps_of("sample", 2) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "x0"}, "prediction must be one of 'xstart', .*, got 'x0'"),
        ({"first_stage": "vae"}, "first_stage must be one of 'identity', .*, got 'vae'"),
        ({"network": "unet"}, "network must be one of 'unet-swin', 'edsr', got 'unet'"),
        ({"padding": 0}, "padding must be at least 1, got 0"),
        ({"kappa": -1.0}, "kappa"),
        ({"steps": 1}, "steps"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        ResShiftConfig(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "faithful"}, "mode must be one of 'mean', 'sample', got 'faithful'"),
        ({"mode": "mean", "steps": 4}, "steps must be 1 or left out in mode 'mean'.* got 4"),
        ({"steps": 5}, r"steps must lie in 1 … 4.* got 5"),
        ({"steps": 0}, r"steps must lie in 1 … 4.* got 0"),
        ({"respacing": "trailing"}, "respacing"),
        ({"mask": torch.ones(1, 1, 8, 8)}, "mask must be left out"),
    ],
)
def test_restore_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        edsr().restore(torch.zeros(1, 3, 8, 8), **arguments)


def test_inpainting_asks_for_a_mask():
    with pytest.raises(ValueError, match="mask must be given"):
        inpainting().restore(torch.zeros(1, 3, 32, 32))
