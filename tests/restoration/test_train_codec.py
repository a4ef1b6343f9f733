"""Training of the one-step codec: its loss, a run from photographs to files, and how it is measured."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.restoration.codec import Codec
from fewstep.restoration.codec_quality import compare
from fewstep.restoration.data import to_signed
from fewstep.restoration.methods.oscar import Oscar, OscarConfig, pseudo_time
from fewstep.restoration.train_codec import (
    CodecRecipe,
    count_indices,
    measure_times,
    rate_distortion,
    train_codec,
)

FIELDS = {"luma": 6, "chroma": 2, "detail": 4, "network_options": {"width": 8, "blocks": 1}}
SMALL = OscarConfig(**FIELDS)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(2, 12) + c) + np.cos(y / rng.uniform(2, 12)) for c in range(3)]
    return (
        (127 + 50 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def test_training_leaves_a_checkpoint_that_decodes_its_own_files(tmp_path):
    (tmp_path / "photos").mkdir()
    for seed in range(2):
        Image.fromarray(photo(40, 48, seed)).save(tmp_path / "photos" / f"{seed}.png")
    recipe = CodecRecipe(FIELDS, patch=32, batch_size=2, max_steps=3, validate_every=3)
    result = train_codec(recipe, tmp_path / "photos", tmp_path / "photos", tmp_path / "run", device="cpu")
    assert result.step == 3
    assert result.metrics["psnr_8"] > result.metrics["psnr_1"]
    codec = Codec.from_pretrained(tmp_path / "run" / "model")
    again = Codec.from_pretrained(tmp_path / "run" / "model")
    cosines = codec.model.cosines
    assert (cosines[1:] > cosines[:-1]).all()
    assert (pseudo_time(codec.model.path, cosines).diff() < 0).all()
    image = photo(40, 48)
    assert again.decode(codec.encode(image, 5)).size == (48, 40)
    (point,) = compare(codec, [image], [6])
    assert point.bpp == pytest.approx(8 * len(codec.encode(image, 6)) / 1920)
    with pytest.raises(ValueError, match="another recipe"):
        train_codec(CodecRecipe(), tmp_path / "photos", tmp_path / "photos", tmp_path / "run")


def test_the_loss_falls_and_gradients_reach_the_transform():
    torch.manual_seed(0)
    model = Oscar(SMALL)
    image = torch.from_numpy(photo(32, 32).transpose(2, 0, 1)[None].copy()).float() / 127.5 - 1
    rate = torch.tensor([4])
    batch = {"image": image, "rate": rate, "step": torch.tensor([SMALL.steps[4]])}
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = rate_distortion(model, batch, torch.Generator())["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert model.analysis.kernels.grad is not None
    assert model.analysis.kernels.grad.abs().max() > 0


def test_times_and_tables_are_those_of_the_photographs():
    model = Oscar(SMALL)
    images = [photo(40, 48, seed) for seed in range(2)]
    measure_times(model, images)
    z = torch.cat([model.latent(to_signed(image[None])).flatten() for image in images]).detach().double()
    assert float(model.scale) == pytest.approx(float(z.square().mean().sqrt()))
    q = [model.indices(to_signed(image[None]), 2).flatten() for image in images]
    q = torch.cat(q).double() * SMALL.steps[2]
    assert float(model.cosines[2]) == pytest.approx(float(z @ q / (z.norm() * q.norm())))
    assert float(model.gains[2]) == pytest.approx(float(z.norm() / q.norm()))
    before = Codec(model, "a").encode(images[0], 7)
    count_indices(model, images)
    assert len(Codec(model, "a").encode(images[0], 7)) < len(before)


def test_bad_recipes_are_refused():
    with pytest.raises(ValueError, match="patch must be a multiple of 8, got 12"):
        CodecRecipe(patch=12)
    with pytest.raises(ValueError, match="measured must be at least 1"):
        CodecRecipe(measured=0)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        CodecRecipe(learning_rate=0.0)
