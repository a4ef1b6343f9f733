"""OFTSR: the published network and formulas, the tunable student, and its distillation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.training import Moment
from fewstep.core.weights import CheckpointError
from fewstep.restoration.converters.oftsr import from_official, network_options_of, recognises
from fewstep.restoration.methods.oftsr import (
    OFTSR,
    OFTSRConfig,
    distillation_objective,
    flow_objective,
    student_of,
)
from fewstep.restoration.nets.guided_unet import GuidedUNet

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration" / "oftsr_guided_unet.safetensors"
OPTIONS = {"model_channels": 32, "channel_mult": (1, 1), "attention_downsampling": (2,), "head_channels": 16}


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the published network's code at a small size, and what it gave for an input."""
    stored = load_file(GOLDEN)
    state = {name[6:]: value.float() for name, value in stored.items() if name.startswith("state.")}
    return state, {name: value for name, value in stored.items() if not name.startswith("state.")}


def small(kind: str, **options) -> OFTSR:
    torch.manual_seed(0)
    network_options = {"widths": (8, 8), "blocks": 1}
    config = OFTSRConfig(kind, network="small-unet", network_options=network_options, padding=1, **options)
    model = OFTSR(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_the_network_gives_what_the_published_one_gives(golden):
    state, told = golden
    options = network_options_of(state, head_channels=16)
    assert {name: options[name] for name in OPTIONS} == OPTIONS
    net = GuidedUNet(**options).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        velocity = net(told["x"], 999 * told["t"], told["y"])
        again = net(told["x"], 999 * told["t"], told["y"])
    assert torch.allclose(velocity, told["velocity"], atol=1e-5, rtol=0)
    assert torch.equal(velocity, again)


def test_the_published_size_is_found_from_names_and_shapes():
    with torch.device("meta"):
        net = GuidedUNet()
    options = network_options_of(net.state_dict())
    assert options["channel_mult"] == (1, 1, 2, 2, 4, 4)
    assert options["attention_downsampling"] == (16,)
    assert (options["model_channels"], options["num_res_blocks"], options["outputs"]) == (128, 1, 6)
    assert net.multiple == 32


@pytest.mark.parametrize("layout", ["names", "averaged list"])
def test_published_files_are_loaded(layout, golden, tmp_path):
    state, _ = golden
    file = tmp_path / "checkpoint_4.pth"
    if layout == "names":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "step": 4}, file)
        model = from_official(file, perturbation=0.1, head_channels=16)
    else:
        names = [name for name, _ in GuidedUNet(**OPTIONS).named_parameters()]
        values = [state[name] for name in names]
        torch.save({"ema": {"decay": 0.9999, "shadow_params": values}, "step": 4}, file)
        model = from_official(file, perturbation=0.1, network_options=OPTIONS)
        with pytest.raises(CheckpointError, match="averaged weights"):
            from_official(file)
    assert recognises(state)
    assert all(torch.equal(model.net.state_dict()[name], value) for name, value in state.items())
    assert (model.config.perturbation, model.config.kind) == (0.1, "student")


def test_a_student_is_asked_once_at_the_time_it_is_tuned_to(golden, tmp_path):
    state, _ = golden
    file = tmp_path / "student.pth"
    torch.save(state, file)
    model = from_official(file, perturbation=0.2, head_channels=16)
    lq, noise = 0.2 * torch.randn(2, 3, 4, 6), 0.2 * torch.randn(2, 3, 16, 24)
    y = F.interpolate(lq, scale_factor=4, mode="bicubic")
    start = (1 - 0.2**2) ** 0.5 * y + 0.2 * noise
    for mode, realism in (("mean", 0.0), ("sample", 0.3), ("sample", 0.99)):
        time = torch.full((2,), 999 * realism)
        with torch.no_grad():
            wanted = start + (1 - 1e-3) * model.net(start, time, y)
        made = model.tuned(realism or 0.5).restore(lq, mode=mode, noise=lambda like: noise)
        assert torch.allclose(made, wanted.clamp(-1, 1), atol=1e-5)


def test_a_flow_is_followed_by_euler_steps(golden, tmp_path):
    state, _ = golden
    file = tmp_path / "flow.pth"
    torch.save(state, file)
    model = from_official(file, kind="flow", head_channels=16)
    lq, noise = 0.2 * torch.randn(1, 3, 4, 4), 0.2 * torch.randn(1, 3, 16, 16)
    y = F.interpolate(lq, scale_factor=4, mode="bicubic")
    x = (1 - 0.2**2) ** 0.5 * y + 0.2 * noise
    with torch.no_grad():
        for i in range(5):
            t = torch.full((1,), (1 - 1e-3) * i / 5)
            x = x + (1 - 1e-3) / 5 * model.net(x, 999 * t, y)
    made = model.restore(lq, steps=5, noise=lambda like: noise)
    assert torch.allclose(made, x.clamp(-1, 1), atol=1e-5)


def test_the_flow_learns_the_velocity():
    model, generator = small("flow"), torch.Generator().manual_seed(0)
    x0, y, noise = (torch.randn(3, 3, 16, 16, generator=generator) for _ in range(3))
    (phase,) = flow_objective(model).phases()
    batch = {"x0": x0, "y": y, "lq": y, "noise": noise}
    losses = phase.loss({"student": model.clockwise()}, batch, torch.Generator().manual_seed(4), Moment())
    drawn = torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    t = 1e-3 + (1 - 1e-3) * drawn
    u = t.float().view(3, 1, 1, 1)
    x = (1 - u) * x0 + u * (0.96**0.5 * y + 0.2 * noise)
    with torch.no_grad():
        said = model.net(x, (999 - 999 * t).float(), y)
    assert isinstance(losses, dict)
    assert losses["loss"].item() == pytest.approx(float((said - x0).abs().mean()), rel=1e-5)


def test_distillation_has_the_published_loss():
    flow, dt = small("flow"), 0.05
    student = student_of(flow)
    for parameter in student.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    generator = torch.Generator().manual_seed(0)
    x0, y, noise = (0.5 * torch.randn(2, 3, 16, 16, generator=generator) for _ in range(3))
    batch = {"x0": x0, "y": y, "lq": y, "noise": noise}
    (phase,) = distillation_objective(flow, dt).phases()
    losses = phase.loss({"student": student.clockwise()}, batch, torch.Generator().manual_seed(3), Moment())
    # In the published time: the student's state at t, the teacher's midpoint step to s, v_boot.
    drawn = torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    s = 1 - (1e-3 + (1 - dt - 1e-3) * drawn)
    t = s - dt
    start = 0.96**0.5 * y + 0.2 * noise

    def wide(values: Tensor) -> Tensor:
        return values.float().view(-1, 1, 1, 1)

    def says(model: OFTSR, x: Tensor, time: Tensor, origin: Tensor) -> Tensor:
        # The small network says x0; its velocity is the way there divided by the time that is left.
        return (model.net(x, (999 * time).float(), y) - x) / wide(1 - origin)

    zero = torch.zeros_like(t)
    with torch.no_grad():
        at_t, at_s = says(student, start, t, zero), says(student, start, s, zero)
        x_t = start + wide(t) * at_t
        half = x_t + dt / 2 * says(flow, x_t, t, t)
        teacher = says(flow, half, t + dt / 2, t + dt / 2)
        wanted = at_t + dt / wide(s) * (teacher - at_t)
        bound = says(student, start, zero, zero) - says(flow, start, zero, zero)
    assert isinstance(losses, dict)
    assert losses["trajectory"].item() == pytest.approx(float((at_s - wanted).square().mean()), rel=1e-4)
    assert losses["boundary"].item() == pytest.approx(float(bound.square().mean()), rel=1e-4)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in student.net.parameters())
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_a_student_begins_as_the_flows_mean_and_is_saved(tmp_path):
    flow = small("flow")
    student, lq = student_of(flow).eval(), torch.rand(1, 3, 5, 7) - 0.5
    assert torch.equal(student.restore(lq, mode="mean"), flow.restore(lq, mode="mean"))
    tuned = student.tuned(0.4)
    assert tuned.net is student.net
    assert not torch.equal(tuned.restore(lq), student.restore(lq))
    tuned.save_pretrained(tmp_path)
    assert torch.equal(OFTSR.from_pretrained(tmp_path).restore(lq), tuned.restore(lq))


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"realism must lie in \[0, 1\], got 1.5"):
        OFTSRConfig(realism=1.5)
    with pytest.raises(ValueError, match=r"perturbation must lie in \(0, 1\), got 1"):
        OFTSRConfig(perturbation=1)
    with pytest.raises(ValueError, match="kind must be one of 'flow', 'student', got 'teacher'"):
        OFTSRConfig("teacher")
    with pytest.raises(ValueError, match="padding times scale must be a multiple of 4, got 1·1"):
        OFTSR(OFTSRConfig(network="small-unet", network_options={"widths": (8, 8)}, padding=1, scale=1))
    student = small("student")
    with pytest.raises(ValueError, match="steps must lie in 1 … 1"):
        student.steps_of("sample", 2)
    with pytest.raises(ValueError, match="this model is a flow"):
        small("flow").tuned(0.5)
    for function in (student_of, flow_objective, distillation_objective):
        with pytest.raises(ValueError, match="flow must be a model of kind 'flow', got kind 'student'"):
            function(student)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not a guided-diffusion U-Net"):
        from_official(tmp_path / "other.pth")
