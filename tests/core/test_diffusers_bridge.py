"""The diffusers bridge, against diffusers' own schedulers in small real pipelines."""

# diffusers' classes get their attributes at run time
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fewstep.core import Denoiser, sample
from fewstep.core.bridges.diffusers_model import from_diffusers
from fewstep.core.bridges.diffusers_scheduler import FewstepScheduler

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="diffusers")
SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}
FLOAT32 = 2e-5


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def autoencoder(**options):
    return seeded(
        lambda: diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            sample_size=16,
            **options,
        )
    )


@pytest.fixture(scope="module")
def unet():
    return seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        )
    )


@pytest.fixture(scope="module")
def text_unet():
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            norm_num_groups=4,
            attention_head_dim=4,
        )
    )


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.std() > 0.01
    assert np.abs(ours - theirs).max() <= FLOAT32 * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize(
    ("peer", "solver", "options", "clip"),
    [
        (DDIMScheduler, "ddim", {}, False),
        (DPMSolverMultistepScheduler, "dpmpp-2m", {"lower_order_below": 15}, False),
        (DDPMScheduler, "ancestral", {}, False),
        (DDPMScheduler, "ancestral", {}, True),
    ],
)
def test_unconditional_pipeline_gives_the_peers_picture(unet, peer, solver, options, clip):
    config = {**DDPMScheduler(timestep_spacing="trailing", clip_sample=clip).config}
    pipeline = quiet(diffusers.DDPMPipeline(unet, DDPMScheduler()))

    def picture(scheduler):
        pipeline.scheduler = scheduler
        generator = torch.Generator().manual_seed(3)
        return pipeline(2, generator, num_inference_steps=8, output_type="np").images

    theirs = picture(peer.from_config(config))
    close(picture(FewstepScheduler.from_config(config, solver=solver, solver_options=options)), theirs)


def test_unipc_keeps_its_history_over_the_pipelines_steps(text_unet):
    peer = UniPCMultistepScheduler(**SD)
    ours = FewstepScheduler.from_config(peer.config, solver="unipc-2")
    embedding, results = torch.randn(1, 5, 16), []
    for scheduler in (peer, ours):
        scheduler.set_timesteps(8)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(text_unet(x, t, embedding).sample, t, x).prev_sample
        results.append(x)
    close(results[1], results[0])


def test_class_conditional_transformer_with_guidance_and_learned_variance():
    transformer = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
            sample_size=8, num_embeds_ada_norm=1000,
        )
    )  # fmt: skip
    peer = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    pipeline = quiet(diffusers.DiTPipeline(transformer, autoencoder(latent_channels=4), peer))

    def picture():
        generator = torch.Generator().manual_seed(0)
        return pipeline([1, 2], 3.0, generator, num_inference_steps=5, output_type="np").images

    theirs = picture()
    pipeline.scheduler = FewstepScheduler.from_config(peer.config, solver="ddim")
    close(picture(), theirs)


@pytest.mark.parametrize("kind", ["text to image", "image to image"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion(text_unet, kind, prediction):
    peer = DDIMScheduler(**SD, clip_sample=False, steps_offset=1, prediction_type=prediction)
    parts = {
        "vae": autoencoder(latent_channels=4), "unet": text_unet, "text_encoder": None, "tokenizer": None,
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip
    prompts = dict(zip(("prompt_embeds", "negative_prompt_embeds"), torch.randn(2, 1, 5, 16), strict=True))
    if kind == "text to image":
        pipeline, more = (
            diffusers.StableDiffusionPipeline(scheduler=peer, **parts),
            {"height": 16, "width": 16},
        )
    else:
        pipeline = diffusers.StableDiffusionImg2ImgPipeline(scheduler=peer, **parts)
        more = {"image": torch.rand(1, 3, 16, 16), "strength": 0.5}
    quiet(pipeline)

    def picture():
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            **prompts, **more, generator=generator, num_inference_steps=8, output_type="np"
        ).images

    theirs = picture()
    pipeline.scheduler = FewstepScheduler.from_config(peer.config, solver="ddim")
    close(picture(), theirs)
    pipeline.scheduler = FewstepScheduler.from_config(peer.config, solver="heun")
    assert np.isfinite(picture()).all()


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}], ids=str)
def test_flux(options):
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        )
    )  # fmt: skip
    peer = FlowMatchEulerDiscreteScheduler(**options)
    pipeline = quiet(
        diffusers.FluxPipeline(
            peer, autoencoder(latent_channels=4, shift_factor=0.1, scaling_factor=1.0),
            None, None, None, None, transformer,
        )
    )  # fmt: skip

    def latents():
        return pipeline(
            prompt_embeds=torch.ones(1, 4, 32), pooled_prompt_embeds=torch.ones(1, 32), height=16, width=16,
            generator=torch.Generator().manual_seed(0), num_inference_steps=5, output_type="latent",
        ).images  # fmt: skip

    theirs = latents()
    pipeline.scheduler = FewstepScheduler.from_config(peer.config, solver="euler")
    close(latents(), theirs)


def test_edm_loop():
    peer = EDMEulerScheduler()
    ours = FewstepScheduler.from_config(peer.config, solver="euler")
    states = []
    for scheduler in (peer, ours):
        scheduler.set_timesteps(6)
        # the peer starts with sqrt(sigma² + 1), we with sigma: same start for both
        x = 80.0 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
        states.append(x)
    torch.testing.assert_close(ours.timesteps, peer.timesteps, rtol=1e-5, atol=1e-6)
    close(states[1], states[0])


def test_flow_default_times_are_the_peers():
    for shift in (1.0, 3.0):
        peer = FlowMatchEulerDiscreteScheduler(shift=shift)
        ours = FewstepScheduler.from_config(peer.config, solver="euler")
        for scheduler in (peer, ours):
            scheduler.set_timesteps(7)
        torch.testing.assert_close(ours.timesteps.float(), peer.timesteps, rtol=1e-5, atol=1e-3)


def test_network_as_denoiser_samples_as_the_pipeline_does(text_unet):
    peer = DDIMScheduler(**SD, clip_sample=False)
    embedding = torch.randn(1, 5, 16)
    start = torch.randn(2, 4, 8, 8)
    denoise = from_diffusers(text_unet, peer, encoder_hidden_states=embedding)
    assert isinstance(denoise, Denoiser)
    ours = sample(denoise, solver="ddim", steps=8, grid="trailing", x=start)
    scheduler = DDIMScheduler.from_config(peer.config)
    scheduler.set_timesteps(8)
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(text_unet(x, t, embedding.expand(2, -1, -1)).sample, t, x).prev_sample
    close(ours, x)


def test_noise_is_added_as_the_peer_adds_it():
    peer = DDIMScheduler(**SD)
    ours = FewstepScheduler.from_config(peer.config)
    ours.set_timesteps(8)
    x0, noise, times = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([999, 249])
    torch.testing.assert_close(
        ours.add_noise(x0, noise, times), peer.add_noise(x0, noise, times), rtol=1e-5, atol=1e-5
    )


def test_configuration_survives_a_round_trip(tmp_path):
    first = FewstepScheduler.from_config(DDIMScheduler(**SD).config, solver="dpmpp-3m")
    first.save_pretrained(tmp_path)
    again = FewstepScheduler.from_pretrained(tmp_path)
    assert (again.path, again.method) == (first.path, first.method)


def test_changed_state_is_what_the_plan_goes_on_from(unet):
    """A pipeline that masks the state between two steps: the answer follows the changed state."""
    scheduler = FewstepScheduler.from_config(DDIMScheduler(**SD, clip_sample=False).config, solver="dpmpp-2m")
    scheduler.set_timesteps(4)
    x = torch.randn(1, 3, 8, 8)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), t, x * 0 + 2.0).prev_sample
    a, _, _ = scheduler.path.coefficients(float(scheduler.timesteps[-1]))
    # eps = 0 everywhere: the last step of order 1 gives x/a for whatever state it was told
    torch.testing.assert_close(x, torch.full_like(x, 2.0 / a))
