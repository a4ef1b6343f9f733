"""IDM's network and its memory-saving backward pass: against the published code, and against autograd."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.weights import CheckpointError, load_into
from fewstep.restoration.compressed_sensing import BlockSensing
from fewstep.restoration.converters import idm as converter
from fewstep.restoration.methods.idm import IDM, IDMConfig
from fewstep.restoration.nets.idm_blocks import Injector
from fewstep.restoration.nets.idm_unet import Shape
from fewstep.restoration.nets.invertible import Link, keeping, recomputing, undo

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration" / "idm_net.safetensors"
CONFIG = IDMConfig(ratio=0.25, block=8, steps=2, channels=(16, 16), heads=2, groups=8)


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the file, and the official state dictionary in it."""
    tensors = load_file(GOLDEN)
    return tensors, {name[3:]: value.float() for name, value in tensors.items() if name.startswith("sd.")}


def sensing_of(tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[BlockSensing, Tensor]:
    """The golden operator and measurements."""
    sensing = BlockSensing(tensors["in.Phi"].to(dtype), tensors["in.perm"], (32, 32))
    return sensing, tensors["in.y"].to(dtype).unsqueeze(1)


def run(golden, dtype: torch.dtype, memory: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, loss and gradients."""
    tensors, weights = golden
    model = IDM(CONFIG)
    load_into(model, weights, "golden")
    model.to(dtype)
    sensing, y = sensing_of(tensors, dtype)
    out = model(y, sensing, memory=memory)
    loss = (out - tensors["in.x"].to(dtype)).abs().mean()
    loss.backward()
    return out.detach(), loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("memory", ["keep", "steps", "all"])
def test_equals_published_output_loss_and_gradients(golden, memory):
    tensors, _ = golden
    out, loss, gradients = run(golden, torch.float32, memory)
    torch.testing.assert_close(out, tensors["out.x"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, tensors["out.loss"], rtol=1e-5, atol=0)
    names = [name[5:] for name in tensors if name.startswith("grad.")]
    assert len(names) == 9
    for name in names:
        difference = (gradients[name] - tensors[f"grad.{name}"]).norm() / tensors[f"grad.{name}"].norm()
        # The published backward pass undoes each coupling in float32, which multiplies its rounding errors:
        # its own gradients are off by up to 2e-3 relative, in scalars that nearly cancel.
        assert difference < (5e-4 if name.endswith("rev_module_lists.0.0.v") else 2e-5), name


@pytest.mark.parametrize("memory", ["steps", "all"])
def test_recomputed_gradients_equal_autograds(golden, memory):
    _, _, expected = run(golden, torch.float64, "keep")
    _, _, recomputed = run(golden, torch.float64, memory)
    assert len(expected) == 503
    assert expected.keys() == recomputed.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # A bias that the last projection removes has no gradient but rounding errors.
        assert (recomputed[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-15 * largest, name


def test_golden_adjoint(golden):
    tensors, _ = golden
    sensing, y = sensing_of(tensors, torch.float64)
    torch.testing.assert_close(sensing.adjoint(y), tensors["out.ATy"].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sensing.forward(tensors["in.x"].double()), y, rtol=0, atol=1e-6)


class Tanh(nn.Module):
    """A nonlinear body with a weight and something it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return torch.tanh(x @ self.w + told)


def nested(
    x1: Tensor, x2: Tensor, modules: list[Tanh], v: list[Tensor], told: Tensor, outer, inner
) -> Tensor:
    """Three links, each around a chain of two links that share a module and what they are told."""

    def body(module: Tanh, weight: Tensor):
        def function(x: Tensor, told: Tensor) -> Tensor:
            links = [Link(module, weight, (told,), tuple(module.parameters()))] * 2
            a, b = inner(x, told * x, links)
            return a + 0.5 * b

        return function

    links = [
        Link(body(module, weight), weight, (told.exp(),), (weight, *module.parameters()))
        for module, weight in zip(modules, v, strict=True)
    ]
    a, b = outer(x1, x2, links)
    return (a * b).sum() + a.square().sum()


@pytest.mark.parametrize("inner", [keeping, recomputing])
def test_nested_chains_have_autograds_gradients(inner):
    torch.manual_seed(0)
    modules = [Tanh() for _ in range(3)]
    v = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.5, 0.3, 0.8)]
    x1, x2, told = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    wanted = [x1, x2, told, *v, *(p for module in modules for p in module.parameters())]
    expected = torch.autograd.grad(nested(x1, x2, modules, v, told, keeping, keeping), wanted)
    found = torch.autograd.grad(nested(x1, x2, modules, v, told, recomputing, inner), wanted)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_undo_gives_back_what_went_in():
    module, v, told = Tanh(), torch.tensor([0.4], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    links = [Link(module, v, (told,))] * 4
    with torch.no_grad():
        back = undo(*recomputing(x[0], x[1], links), links)
    torch.testing.assert_close(torch.stack(back), x, rtol=0, atol=1e-12)


def test_recomputing_under_autocast_has_the_gradients_of_keeping():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8)

    def gradient(chain) -> Tensor:
        v = torch.tensor([0.5])
        with torch.autocast("cpu", torch.bfloat16):
            y1, y2 = chain(x, x, [Link(layer, v, (), tuple(layer.parameters()))] * 2)
        assert y1.dtype == torch.float32
        return torch.autograd.grad((y1.square() + y2).sum(), layer.weight)[0]

    # Products of bfloat16 gradients may be added in another order: a few of its rounding steps of 2^-8.
    difference = gradient(recomputing) - gradient(keeping)
    assert difference.norm() < 2**-7 * gradient(keeping).norm()


def test_injector_equals_its_layers_at_the_resolution_of_the_image():
    torch.manual_seed(0)
    injector = Injector(32, 4, steps=2).double()
    x, seen = torch.randn(2, 32, 3, 5, dtype=torch.float64), torch.randn(2, 1, 12, 20, dtype=torch.float64)
    to_image, to_features = injector.f2i[1].get_submodule("1"), injector.i2f[1].get_submodule("0")
    image = to_image(nn.functional.pixel_shuffle(x, 4))
    told = to_features(torch.cat([image, 3 * image, seen], dim=1))
    expected = x + nn.functional.pixel_unshuffle(told, 4)
    torch.testing.assert_close(injector(x, seen, lambda z: 3 * z, 1), expected, rtol=0, atol=1e-12)


def official(weights: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state dictionary as the published code writes it, with layers repeated under their couplings."""
    repeated = {
        "unet.down_blocks.0.rev_module_lists.0.0.body.conv1.bias": "unet.down_blocks.0.resnets.0.conv1.bias",
        "unet.up_blocks.1.rev_module_list.10.body.f2i.0.1.bias": "unet.up_blocks.1.injectors.5.f2i.0.1.bias",
    }
    state = weights | {name: weights[source] for name, source in repeated.items()}
    return {prefix + name: value.clone() for name, value in state.items()}


def test_official_file_with_repeated_layers_loads(golden, tmp_path):
    tensors, weights = golden
    folder = tmp_path / "R_0.25_T_2_B_8"
    folder.mkdir()
    torch.save(official(weights, "module."), folder / "net_params_50.pkl")
    model = converter.from_official(folder / "net_params_50.pkl", heads=2, groups=8)
    assert model.config == CONFIG
    sensing, y = sensing_of(tensors, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(y, sensing), tensors["out.x"], rtol=1e-5, atol=1e-5)


def test_official_file_without_ratio_or_of_another_layout(golden, tmp_path):
    _, weights = golden
    save_file(official(weights), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="ratio must be given"):
        converter.from_official(tmp_path / "mine.safetensors", heads=2, groups=8)
    save_file(official(weights) | {"unet.stranger": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected: unet\.stranger"):
        converter.from_official(tmp_path / "more.safetensors", ratio=0.25, block=8, heads=2, groups=8)
    save_file({"head.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not an IDM model"):
        converter.from_official(tmp_path / "other.safetensors", ratio=0.1)
    assert converter.recognises(weights)
    assert not converter.recognises({"alpha": torch.ones(1)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (20, 32)}, "multiples of groups 8, got 20"),
        ({"channels": (16, 24)}, "level 1 must be a multiple of 16"),
        ({"heads": 3}, "multiples of heads 3"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"wiring": 1.0}, r"wiring must lie in \(0, 1\)"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Shape(**({"channels": (16, 16), "heads": 2, "groups": 8} | changes))
