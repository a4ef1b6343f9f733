"""Published files of IR-SDE, Refusion and Resfusion: recognised, measured from shapes, loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.weights import CheckpointError
from fewstep.restoration.converters import irsde, resfusion
from fewstep.restoration.methods.denoising_sde import DenoisingSDE
from fewstep.restoration.methods.irsde import IRSDE
from fewstep.restoration.nets.conditional_nafnet import ConditionalNAFNet
from fewstep.restoration.nets.conditional_unet import ConditionalUNet
from fewstep.restoration.nets.ddim_unet import DDIMUnet
from fewstep.restoration.nets.rddm_unet import RDDMUnet
from fewstep.restoration.nets.refusion_autoencoder import RefusionAutoencoder

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
NAFNET = {"width": 8, "enc_blk_nums": [1, 2], "middle_blk_num": 2, "dec_blk_nums": [1, 1]}


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and the other tensors of a golden file."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key[3:]: value.float() for key, value in tensors.items() if key[:3] == "sd."}
    return weights, tensors


def saved(path: Path, content: dict) -> Path:
    torch.save(content, path)
    return path


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("name", ["irsde_cond_unet", "irsde_cond_unet_latent", "irsde_cond_nafnet"])
def test_published_networks(name, tmp_path):
    """Found from shapes as the golden file's configuration says, with what the training put around it."""
    weights, tensors = golden(name)
    other = {key: value + 1 for key, value in weights.items()}
    averaged = {**prefixed(other, "online_model."), **prefixed(weights, "ema_model."), "step": torch.ones(1)}
    config = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    for content in (weights, prefixed(weights, "module."), averaged):
        assert irsde.recognises(content)
        model = irsde.from_official(saved(tmp_path / "net.pth", content), max_sigma=10)
        assert isinstance(model, IRSDE)
        assert {**config, **model.config.network_options} == dict(model.config.network_options)
        assert all(model.config.network_options[key] == value for key, value in config.items())
        with torch.no_grad():
            out = model.net(tensors["in.x"], tensors["in.t"], tensors["in.cond"])
        torch.testing.assert_close(out, tensors["out.0"], rtol=0, atol=1e-5)
        assert (model.training, model.config.path().noise_scale) == (False, 10 / 255)


def test_latent_refusion(tmp_path):
    weights, _ = golden("irsde_refusion_unet_ae")
    network = ConditionalNAFNet(img_channel=4, **NAFNET).state_dict()
    net, stage = saved(tmp_path / "net.pth", network), saved(tmp_path / "stage.pth", weights)
    model = irsde.from_official(net, stage)
    assert isinstance(model, IRSDE)
    assert model.config.autoencoder == {
        "in_ch": 3,
        "out_ch": 3,
        "ch": 8,
        "ch_mult": [1, 2, 2],
        "embed_dim": 4,
    }
    assert model.config.network_options["long_skip"]
    assert model.config.max_sigma == 50
    assert (model.state_channels, model.state_ratio, model.config.padding) == (4, 0.25, 16)
    assert model.restore(torch.zeros(1, 3, 9, 6), solver="mrs-1", steps=2).shape == (1, 3, 9, 6)
    assert not irsde.from_official(net, stage, long_skip=False).config.network_options["long_skip"]


def test_saving_and_loading_again(tmp_path):
    weights, _ = golden("irsde_refusion_unet_ae")
    network = ConditionalNAFNet(img_channel=4, **NAFNET).state_dict()
    model = irsde.from_official(
        saved(tmp_path / "net.pth", network),
        saved(tmp_path / "stage.pth", weights),
        tasks=("dehaze",),
        subtract_first=False,
    )
    model.save_pretrained(tmp_path / "ours")
    again = IRSDE.from_pretrained(str(tmp_path / "ours")).eval()
    lq = torch.rand(1, 3, 8, 8) * 2 - 1
    options = {"solver": "mrs-2", "steps": 2}
    assert torch.equal(again.restore(lq, **options), model.restore(lq, **options))
    assert (again.tasks, again.config.subtract_first) == (("dehaze",), False)


def test_denoising_networks(tmp_path):
    unet = ConditionalUNet(nf=8, depth=1, conditional=False, middle="full").state_dict()
    nafnet = ConditionalNAFNet(**NAFNET, conditional=False).state_dict()
    for state, sigma, steps in ((unet, 75, 100), (nafnet, 70, 1000)):
        model = irsde.from_official(saved(tmp_path / "net.pth", state))
        assert isinstance(model, DenoisingSDE)
        assert (model.config.max_sigma, model.config.steps, model.config.eps) == (sigma, steps, 0.04)
        got = model.restore(torch.zeros(1, 3, 5, 5), level=15.0, solver="ddim", steps=2)
        assert torch.isfinite(got).all()
    assert model.config.tasks == ("denoise",)


@pytest.mark.parametrize("prefix", ["", "denoising_module.", "module.denoising_module."])
@pytest.mark.parametrize("kind", ["rddm", "ddim"])
def test_resfusion(kind, prefix, tmp_path):
    """The Lightning layout, with what the module holds beside the network; a mask is told by two channels."""
    unet = RDDMUnet(8, (1, 2, 2), condition_channels=5)
    ddim = DDIMUnet(16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), condition_channels=3)
    net = unet if kind == "rddm" else ddim
    content = {"state_dict": prefixed(net.state_dict(), prefix)}
    assert resfusion.recognises(content["state_dict"])
    model = resfusion.from_official(saved(tmp_path / "net.ckpt", content), tasks=("shadow",))
    assert (model.config.mask, model.config.padding) == ((True, 4) if kind == "rddm" else (False, 2))
    ours = model.net.state_dict()
    assert ours.keys() == net.state_dict().keys()
    assert all(torch.equal(ours[name], value) for name, value in net.state_dict().items())
    lq = torch.rand(1, 3, 6, 6) * 2 - 1
    mask = torch.ones(1, 1, 6, 6) if kind == "rddm" else None
    assert model.restore(lq, mask=mask, steps=1).shape == lq.shape


@pytest.mark.parametrize("name", ["resfusion_rddm_unet", "resfusion_ddim_unet"])
def test_resfusion_golden_networks(name, tmp_path):
    weights, tensors = golden(name)
    state = resfusion.network_state(prefixed(weights, "denoising_module."))
    kind = resfusion.kind_of(state)
    if kind == "rddm-unet":
        net = RDDMUnet(**resfusion.rddm_options(state))
    else:
        net = DDIMUnet(**resfusion.ddim_options(state))
    net.load_state_dict(state)
    # The file has a mask, but its network was built without one.
    told = tensors["in.input_cond"] if resfusion.condition_channels(state) else None
    with torch.no_grad():
        out = net.eval()(tensors["in.x"], tensors["in.t"], told)
    torch.testing.assert_close(out, tensors["out.0"], rtol=0, atol=1e-5)


def test_files_of_other_systems_are_refused(tmp_path):
    rddm = RDDMUnet(8, (1, 2), condition_channels=3).state_dict()
    own = ConditionalUNet(nf=8, depth=1).state_dict()
    stage = RefusionAutoencoder(ch=8, ch_mult=(1, 2)).state_dict()
    assert not irsde.recognises(rddm)
    assert not irsde.recognises(stage)
    assert not irsde.recognises(prefixed(rddm, "unet0."))
    assert not resfusion.recognises(own)
    assert not resfusion.recognises(prefixed(rddm, "unet0."))
    assert not resfusion.recognises(RDDMUnet(8, (1, 2)).state_dict())
    with pytest.raises(CheckpointError, match="is no network of IR-SDE or Refusion: it has neither"):
        irsde.from_official(saved(tmp_path / "a.pth", rddm))
    with pytest.raises(CheckpointError, match="is no network of Resfusion: it has neither"):
        resfusion.from_official(saved(tmp_path / "b.pth", own))
    camera = {"encoders.0.0.cam_mlp.1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="it is told the camera"):
        irsde.from_official(saved(tmp_path / "c.pth", camera))
    with pytest.raises(ValueError, match="max_sigma must be given: it is not in the file"):
        irsde.from_official(saved(tmp_path / "d.pth", own))


def test_files_that_do_not_fit(tmp_path):
    nafnet = ConditionalNAFNet(**NAFNET).state_dict()
    stage = RefusionAutoencoder(ch=8, ch_mult=(1, 2)).state_dict()
    net, other = saved(tmp_path / "net.pth", nafnet), saved(tmp_path / "stage.pth", stage)
    with pytest.raises(CheckpointError, match=r"works on 3 channels, but the latents of .* have 4"):
        irsde.from_official(net, other)
    with pytest.raises(
        CheckpointError, match=r"is no autoencoder of Refusion: it has no latent_conv\.weight"
    ):
        irsde.from_official(net, net)
    del nafnet["ending.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: ending\.bias"):
        irsde.from_official(saved(tmp_path / "short.pth", nafnet))
    odd = RDDMUnet(8, (1, 2), condition_channels=4).state_dict()
    with pytest.raises(CheckpointError, match="is told 4 channels beside the noisy image"):
        resfusion.from_official(saved(tmp_path / "odd.ckpt", odd))
