"""DiT and DiffusionModel: the network, its checkpoint, and the digits that the core ships."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from fewstep.core import Guided, paths, sample, solvers
from fewstep.core.checkpoints import CheckpointError, shipped
from fewstep.core.models import DiffusionModel, DiffusionModelConfig
from fewstep.core.nets import DiT, DiTConfig

torch.set_num_threads(1)
CONFIG = DiTConfig(size=(4, 6), channels=2, patch=2, width=16, depth=2, heads=2, classes=3)


def filled(config=CONFIG):
    """A DiT whose zero-initialised parts are not zero."""
    torch.manual_seed(0)
    net = DiT(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.double().eval()


def inputs(batch=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 2, 4, 6, dtype=torch.float64, generator=generator)
    return x, torch.linspace(0.0, 300.0, batch).double(), torch.arange(batch)


def test_a_new_network_returns_zero_whatever_it_sees():
    x, t, label = inputs()
    assert not DiT(CONFIG)(x.float(), t.float(), label).any()


def test_patches_keep_their_places():
    """Without blocks every output patch depends on the pixels of that patch alone."""
    net = filled(DiTConfig(size=(4, 6), channels=2, patch=2, width=16, depth=0, heads=2))
    x, t, _ = inputs(1)
    changed = x.clone()
    changed[..., 2:4, 0:2] += 1.0
    difference = (net(changed, t) - net(x, t)).abs().sum(1)[0] > 0
    wanted = torch.zeros(4, 6, dtype=torch.bool)
    wanted[2:4, 0:2] = True
    assert torch.equal(difference, wanted)


def test_attention_reaches_every_token_and_positions_tell_them_apart():
    net = filled()
    x, t, label = inputs(1)
    changed = x.clone()
    changed[..., 0, 0] += 1.0
    assert ((net(changed, t, label) - net(x, t, label)).abs() > 0).all()
    assert not torch.allclose(net(x.flip(-1), t, label).flip(-1), net(x, t, label), atol=1e-3)


def test_time_and_label_matter_and_none_is_the_last_label():
    net = filled()
    x, t, label = inputs()
    out = net(x, t, label)
    assert not torch.allclose(net(x, t + 1, label), out)
    assert not torch.allclose(net(x, t, (label + 1) % 3), out)
    assert torch.equal(net(x, t), net(x, t, torch.full((3,), 3)))


def test_a_sample_does_not_depend_on_its_batch_mates():
    net = filled()
    x, t, label = inputs()
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    assert (net(x, t, label) - alone).abs().max() < 1e-12


def test_parts_make_the_whole():
    """embed, blocks and unembed are what compute savers take apart."""
    net = filled()
    x, t, label = inputs()
    tokens, modulation = net.embed(x, t, label)
    for block in net.blocks:
        tokens = block(tokens, modulation)
    assert torch.equal(net.unembed(tokens, modulation), net(x, t, label))


def test_checkpoint_round_trip(tmp_path):
    model = DiffusionModel.with_network(CONFIG, paths.VP.linear(), "v", labels=("a", "b", "c"))
    model.net.load_state_dict({k: v.float() for k, v in filled().state_dict().items()})
    model.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.path == paths.VP.linear()
    assert again.shape == (2, 4, 6)
    x, t, label = inputs()
    assert torch.equal(again(x.float(), t.float(), label), model.eval()(x.float(), t.float(), label))


def test_a_tuned_plan_lies_beside_the_checkpoint(tmp_path):
    model = DiffusionModel.with_network(CONFIG, paths.EDM(), "edm", labels=("a", "b", "c"))
    assert model.tuned_plan(3) is None
    model.save_pretrained(tmp_path)
    plan = solvers.get("ddim").compile(paths.EDM(), (80.0, 3.0, 0.5, 0.0))
    (tmp_path / "plan-3.json").write_text(plan.to_json())
    again = DiffusionModel.from_pretrained(tmp_path)
    assert again.tuned_plan(3) == plan
    assert again.tuned_plan(4) is None


def test_shipped_tuned_plans_are_nearer_to_the_exact_trajectory_than_the_default():
    model = DiffusionModel.from_pretrained("digits")
    start = 80.0 * torch.randn(64, *model.shape, generator=torch.Generator().manual_seed(11))
    exact = sample(model.denoiser(), solver="rho-rk4", steps=40, grid="karras", x=start)

    def error(solver, steps=5):
        return float(
            (sample(model.denoiser(), solver=solver, steps=steps, grid="karras", x=start) - exact).std()
        )

    for calls in (5, 8, 10):
        plan = model.tuned_plan(calls)
        assert plan is not None
        assert plan.nfe == calls
        assert error(plan) < 0.5 * error("dpmpp-2m", calls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "vnet"}, "network must be one of dit, mlp, unet"),
        ({"shape": (0, 8, 8)}, "shape must be positive"),
        ({"prediction": "noise"}, "prediction must be one of"),
        ({"path": {"path": "Nowhere"}}, "path must be one of"),
        ({"network_options": {"depths": 3}}, "depths"),
        ({"network_options": {"patch": 3}}, "patch must divide"),
    ],
)
def test_bad_configuration_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionModelConfig(**{"shape": (1, 8, 8), **options})


def test_bad_labels_and_names_are_named():
    model = DiffusionModel.from_pretrained("digits")
    with pytest.raises(ValueError, match="label must lie in 0 … 10"):
        model.denoiser(label=11)
    plain = DiffusionModel.with_network(DiTConfig(), paths.EDM(), "edm")
    with pytest.raises(ValueError, match="this model has no classes"):
        plain.denoiser(label=1)
    with pytest.raises(CheckpointError, match="not a shipped name"):
        DiffusionModel.from_pretrained("digit")
    with pytest.raises(TypeError, match="config must be of a known network"):
        DiffusionModel.with_network(object(), paths.EDM(), "edm")


def test_the_shipped_digits_are_the_digits_that_were_asked_for():
    """A nearest-neighbour classifier of the real pictures reads what 8 calls drew."""
    assert "digits" in shipped("fewstep.core")
    model = DiffusionModel.from_pretrained("digits")
    labels = torch.arange(10).repeat_interleave(10)
    denoise = Guided(model.denoiser(label=labels), scale=1.5, null={"label": model.null_label})
    drawn = sample(denoise, solver="dpmpp-2m", steps=8, grid="karras", shape=(100, *model.shape))
    pixels, targets = (np.asarray(part) for part in load_digits(return_X_y=True))
    reader = KNeighborsClassifier(3).fit(pixels, targets)
    read = reader.predict(((drawn + 1) * 8).clamp(0, 16).flatten(1).numpy())
    assert (read == labels.numpy()).mean() > 0.9
