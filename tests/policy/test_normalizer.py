"""Normalisers, against the published one and in LeRobot's forms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fewstep.core.weights import CheckpointError
from fewstep.policy.files.normalizer_layouts import (
    from_diffusion_policy,
    from_lerobot,
    to_diffusion_policy,
    to_lerobot,
)
from fewstep.policy.normalizer import BUFFERS, Normalizer
from fewstep.policy.statistics import statistics_of

FOLDER = Path(__file__).parents[1] / "golden" / "policy"
GOLDENS = {"lowdim_ddpm": "limits", "lowdim_ddim": "gaussian"}
THEIRS = {"state": "obs", "action": "action"}


@pytest.mark.parametrize("name", GOLDENS)
def test_fits_as_the_published_normaliser_does(name):
    golden, mode = load_file(FOLDER / f"{name}.safetensors"), GOLDENS[name]
    arrays = {ours: golden[f"in.fit_{theirs}"] for ours, theirs in THEIRS.items()}
    fitted = Normalizer.fit(arrays, dict.fromkeys(arrays, mode))
    for ours, theirs in THEIRS.items():
        prefix = f"sd.normalizer.params_dict.{theirs}."
        for buffer in BUFFERS:
            key = prefix + (buffer if buffer in ("scale", "offset") else f"input_stats.{buffer}")
            torch.testing.assert_close(
                getattr(fitted.scaling(ours), buffer), golden[key], rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize("name", GOLDENS)
def test_published_weights_go_in_and_out(name):
    golden = load_file(FOLDER / f"{name}.safetensors")
    state = {key[3:]: value for key, value in golden.items() if key.startswith("sd.")}
    normalizer = from_diffusion_policy(state)
    assert set(normalizer.names) == {"state", "action"}
    exported = to_diffusion_policy(normalizer, THEIRS)
    official = {key: value for key, value in state.items() if key.startswith("normalizer.")}
    assert set(exported) == set(official)
    assert all(torch.equal(exported[key], official[key]) for key in official)
    x = golden["in.fit_obs"]
    scale, offset = (
        official["normalizer.params_dict.obs.scale"],
        official["normalizer.params_dict.obs.offset"],
    )
    assert torch.equal(normalizer.normalize("state", x), x * scale + offset)


@pytest.mark.parametrize("mode", ["limits", "gaussian", "min_max", "mean_std", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unnormalize_is_the_inverse(mode, dtype):
    data = np.random.default_rng(0).normal(5, 3, (100, 4))
    data[:, 2] = 7.5
    normalizer = Normalizer.fit({"action": data}, {"action": mode}, dtype)
    x = torch.from_numpy(data).to(dtype)
    back = normalizer.unnormalize("action", normalizer.normalize("action", x))
    assert back.dtype == dtype
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_ranges_of_the_modes_and_constant_dimensions():
    data = np.stack([np.linspace(-3, 9, 50), np.full(50, 4.25), np.linspace(1, 1 + 5e-5, 50)], axis=1)
    scaled = {
        mode: Normalizer.fit({"state": data}, {"state": mode}, torch.float64).normalize(
            "state", torch.from_numpy(data)
        )
        for mode in ("limits", "gaussian", "min_max", "mean_std")
    }
    for mode in ("limits", "min_max"):
        torch.testing.assert_close(scaled[mode][[0, -1], 0], torch.tensor([-1.0, 1.0]).double())
    assert scaled["limits"][:, 1].abs().max() == 0  # constant: 0 in Diffusion Policy, −1 in LeRobot
    assert (scaled["min_max"][:, 1] == -1).all()
    assert scaled["limits"][:, 2].abs().max() <= 5e-5 + 1e-12  # narrower than 1e-4 is constant there alone
    torch.testing.assert_close(scaled["min_max"][-1, 2], torch.tensor(1.0).double())
    assert scaled["gaussian"][:, 1].abs().max() == scaled["mean_std"][:, 1].abs().max() == 0
    torch.testing.assert_close(scaled["gaussian"][:, 0].std(), torch.tensor(1.0).double())


def test_statistics_do_not_cancel_for_a_small_spread_far_from_zero():
    rng = np.random.default_rng(0)
    data = 1e6 + rng.normal(0, 1e-2, (3_000_00, 1))
    found = statistics_of("state", data)
    assert float(found["std"]) == pytest.approx(float(data.std(ddof=1)), rel=1e-9)
    assert float(found["mean"]) == pytest.approx(float(data.mean()), abs=1e-9)


def test_images_have_statistics_per_channel():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    normalizer = Normalizer.fit({"image.top": images}, {"image.top": "mean_std"})
    x = torch.from_numpy(images).movedim(-1, 1) / 255
    y = normalizer.normalize("image.top", x)
    assert normalizer.scaling("image.top").scale.shape == (3, 1, 1)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    unit = Normalizer.fit({"image": images}, {"image": "unit"})
    assert torch.equal(unit.normalize("image", x), x * 2 - 1)
    with pytest.raises(ValueError, match=r"\(…, 3, height, width\), got \(5, 4, 6, 3\)"):
        normalizer.normalize("image.top", torch.zeros(5, 4, 6, 3))


def test_a_blank_normaliser_takes_up_saved_weights():
    features = {"state": (5,), "image": (3, 8, 8), "image.top": (3, 8, 8), "points": (64, 3), "action": (2,)}
    modes = {
        "state": "limits",
        "image": "unit",
        "image.top": "mean_std",
        "points": "limits",
        "action": "gaussian",
    }
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((7, *shape)) for name, shape in features.items()}
    arrays.update({name: np.moveaxis(arrays[name], 1, -1) for name in ("image", "image.top")})
    fitted = Normalizer.fit(arrays, modes)
    blank = Normalizer.blank(features, modes)
    blank.load_state_dict(fitted.state_dict())
    assert blank.names == tuple(features)
    x = torch.rand(2, 3, 64, 3)
    assert torch.equal(blank.normalize("points", x), fitted.normalize("points", x))


def test_lerobot_statistics_in_their_three_forms():
    stats = json.loads((FOLDER / "lerobot_v3" / "meta" / "stats.json").read_text())
    nested = from_lerobot(stats)
    assert nested["state"]["min"].shape == (2,)
    assert nested["image"]["mean"].shape == (3, 1, 1)
    flat = {
        f"{feature}.{key}": torch.tensor(v[key]) for feature, v in stats.items() for key in ("min", "max")
    }
    old = {
        "normalize_inputs.buffer_observation_state.min": nested["state"]["min"],
        "normalize_inputs.buffer_observation_images_top.mean": nested["image"]["mean"],
        "unnormalize_outputs.buffer_action.max": nested["action"]["max"],
        "diffusion.unet.final_conv.1.bias": torch.zeros(2),
    }
    torch.testing.assert_close(from_lerobot(flat)["action"]["max"], nested["action"]["max"])
    found = from_lerobot(old)
    assert set(found) == {"state", "image.top", "action"}
    modes = {"state": "min_max", "action": "min_max", "image": "mean_std"}
    normalizer = Normalizer.from_statistics(nested, modes, torch.float64)
    exported = to_lerobot(normalizer)
    assert torch.equal(exported["observation.state.max"], nested["state"]["max"])
    state = torch.tensor([[100.0, 200.0]], dtype=torch.float64)
    low, high = nested["state"]["min"], nested["state"]["max"]
    torch.testing.assert_close(normalizer.normalize("state", state), 2 * (state - low) / (high - low) - 1)


@pytest.mark.parametrize(
    ("arrays", "modes", "words"),
    [
        ({"state": np.zeros((3, 2))}, {"state": "minmax"}, "must be one of limits"),
        ({"state": np.zeros((3, 2))}, {"action": "limits"}, "modes names"),
        ({"state": np.zeros((0, 2))}, {"state": "limits"}, "must hold values"),
        ({"state": np.array([[np.nan, 1.0]])}, {"state": "limits"}, "must be finite"),
        ({"a/b": np.zeros((3, 2))}, {"a/b": "limits"}, "slash"),
    ],
)
def test_bad_arrays_and_modes_are_refused(arrays, modes, words):
    with pytest.raises(ValueError, match=words):
        Normalizer.fit(arrays, modes)


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({}, "needs"),
        ({"min": [0.0], "max": [0.0, 1.0]}, "one shape"),
        ({"min": [1.0], "max": [0.0]}, "below its minimum"),
        ({"min": [float("-inf")], "max": [0.0]}, "finite"),
    ],
)
def test_bad_statistics_are_refused(statistics, words):
    with pytest.raises(ValueError, match=words):
        Normalizer.from_statistics({"state": statistics}, {"state": "limits"})


def test_wrong_widths_and_names_are_refused():
    normalizer = Normalizer.fit({"state": np.random.rand(4, 5)}, {"state": "limits"})  # noqa: NPY002
    with pytest.raises(ValueError, match=r"\(…, 5\), got \(2, 4\)"):
        normalizer.normalize("state", torch.zeros(2, 4))
    with pytest.raises(ValueError, match="known are state"):
        normalizer.unnormalize("action", torch.zeros(2, 4))
    with pytest.raises(ValueError, match="no feature"):
        Normalizer.blank({"state": (5,)}, {"action": "limits"})


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"normalizer.params_dict.obs.scale": torch.ones(2)},
        {"params_dict.obs.scale": torch.zeros(2), "params_dict.obs.offset": torch.zeros(2)},
        {"params_dict.obs.scale": torch.ones(2), "params_dict.obs.offset": torch.zeros(3)},
        {"params_dict.obs.scale": torch.ones(2), "params_dict.obs.offset": torch.full((2,), torch.nan)},
    ],
)
def test_weights_without_a_usable_normaliser_are_refused(state):
    with pytest.raises(CheckpointError, match=r"normaliser|scale"):
        from_diffusion_policy(state)
    with pytest.raises(CheckpointError, match="no statistics"):
        from_lerobot({"diffusion.unet.bias": torch.zeros(2)})
