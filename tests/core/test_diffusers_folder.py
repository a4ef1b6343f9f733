"""A diffusers pipeline's folder as teacher and as student."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tests.core.distill_cases import REGRESSION, TWO_TIMES, make_data

from fewstep.core.bridges.diffusers_folder import DiffusersModel, is_diffusers_folder
from fewstep.core.checkpoints import CheckpointError
from fewstep.core.comparison import Comparison
from fewstep.core.objectives import methods
from fewstep.core.objectives.distill import distill
from fewstep.core.objectives.recipe import DistillRecipe

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=4,
        num_class_embeds=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipeline") / "ddpm"
    scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


def test_a_folder_is_a_model(folder):
    assert is_diffusers_folder(folder)
    assert not is_diffusers_folder(folder / "unet")
    model = DiffusersModel.from_pretrained(folder)
    assert (model.shape, model.prediction, model.labels) == (SHAPE, "eps", ("0", "1"))
    x, t = torch.randn(3, *SHAPE), torch.full((3,), 40.0)
    label = torch.tensor([0, 1, 1])
    expected = model.net.model(x, t, class_labels=label).sample
    torch.testing.assert_close(model.net(x, t, label=label), expected)


def test_a_student_is_a_pipeline_again(folder, tmp_path):
    teacher = DiffusersModel.from_pretrained(folder)
    data = {"x0": make_data(40, SHAPE), "label": torch.arange(40) % 2}
    recipe = DistillRecipe.of(REGRESSION, "own", updates=3, batch_size=4, validation_samples=8, steps=2)
    student = distill(teacher, REGRESSION, data=data, recipe=recipe, folder=tmp_path / "out")
    assert isinstance(student, DiffusersModel)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    moved = 0.0
    for name, value in pipeline.unet.state_dict().items():
        torch.testing.assert_close(value, student.net.model.state_dict()[name])
        moved += float((value - teacher.net.model.state_dict()[name]).abs().sum())
    assert moved > 0
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert DistillRecipe.load(tmp_path / "out" / "recipe.json") == recipe
    again = DiffusersModel.from_pretrained(tmp_path / "out")
    assert (again.sampling.kind, again.sampling.steps) == ("consistency", 2)
    [one] = Comparison(data["x0"][:8], {"label": data["label"][:8]}, calls=(1,)).of("student", again)
    assert one.calls == 1


def test_methods_with_two_times_name_those_that_can(folder, tmp_path):
    teacher = DiffusersModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="a second time, which a network of diffusers does not") as raised:
        distill(teacher, TWO_TIMES, data=make_data(40, SHAPE), folder=tmp_path)
    able = [name for name in methods.names() if not methods.get(name).two_times]
    assert f"methods for it: {', '.join(able)}" in str(raised.value)


def changed(folder, target, **entries):
    """A copy of the folder whose index has other entries."""
    import shutil

    shutil.copytree(folder, target)
    index = json.loads((folder / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps({**index, **entries}))
    return target


def test_what_is_no_pipeline_is_refused(folder, tmp_path):
    cases = [
        (
            changed(folder, tmp_path / "a", unet=["os", "system"]),
            "os.system, which is no network of diffusers",
        ),
        (changed(folder, tmp_path / "b", unet=["diffusers", "DDPMScheduler"]), "is no network of diffusers"),
        (changed(folder, tmp_path / "c", unet=None), "names neither a unet nor a transformer"),
    ]
    weights = changed(folder, tmp_path / "d") / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"junk")
    scheduler = changed(folder, tmp_path / "e") / "scheduler" / "scheduler_config.json"
    scheduler.unlink()
    pickled = changed(folder, tmp_path / "f") / "unet"
    (pickled / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, pickled / "diffusion_pytorch_model.bin")
    cases += [(tmp_path / "d", "cannot be read"), (tmp_path / "e", "scheduler_config.json cannot be read")]
    cases += [(tmp_path / "f", "cannot be read")]
    for bad, message in cases:
        with pytest.raises(CheckpointError, match=message):
            DiffusersModel.from_pretrained(bad)


def test_only_a_loaded_model_can_be_saved(folder, tmp_path):
    model = DiffusersModel.from_pretrained(folder)
    loose = DiffusersModel(model.net.model, model.scheduler)
    with pytest.raises(ValueError, match="loaded from a folder"):
        loose.save_pretrained(tmp_path)
