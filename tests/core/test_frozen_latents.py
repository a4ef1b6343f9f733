"""FrozenEncoderLatents: statistics, the way there and back, what is trained, and the path's shift."""

# pyright: reportArgumentType=false, reportOptionalCall=false

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.core.frozen_latents import LATENT_PATH, FrozenEncoderLatents, LatentAutoencoding
from fewstep.core.objectives.distances import SquaredError
from fewstep.core.objectives.times import Uniform
from fewstep.core.training import Moment, Trainer, TrainerConfig


def normal(*shape, seed=0, offset=0.0, scale=1.0):
    return offset + scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(residual=True):
    """Two frozen channels on a grid half as fine, one residual, a linear decoder."""
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.BatchNorm2d(2), nn.Dropout(0.5))
    small = nn.Conv2d(1, 1, 2, stride=2) if residual else None
    channels = 3 if residual else 2
    return FrozenEncoderLatents(frozen, small, nn.ConvTranspose2d(channels, 1, 2, stride=2), channels)


@pytest.mark.parametrize("parts", [1, 3, 10])
def test_fitted_latents_have_mean_zero_and_deviation_one(parts):
    """However the data is cut into batches, also far from zero."""
    x = normal(60, 1, 8, 8, offset=300.0, scale=0.5)
    model = latents().eval()
    z = model.fit(x.chunk(parts)).encode(x)
    assert z.shape == (60, 3, 4, 4)
    # float32 near 300 is exact to 3e-5, which the deviation of 0.5 makes 6e-5.
    assert z.mean((0, 2, 3)).abs().max() < 1e-3
    assert (z.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-3


def test_decoding_undoes_the_normalisation():
    x = normal(20, 1, 8, 8)
    model = latents().eval().fit([x])
    assert (model.decode(model.encode(x)) - model.decoder(model.raw(x))).abs().max() < 1e-5
    vectors = FrozenEncoderLatents(nn.Linear(5, 3), None, nn.Linear(3, 5), 3).fit([normal(30, 5)])
    assert vectors.decode(vectors.encode(normal(4, 5))).shape == (4, 5)


def test_the_statistics_are_saved_with_the_weights(tmp_path):
    x = normal(20, 1, 8, 8)
    model = latents().eval().fit([x])
    save_file(model.state_dict(), tmp_path / "latents.safetensors")
    other = latents().eval()
    other.load_state_dict(load_file(tmp_path / "latents.safetensors"))
    assert torch.equal(other.encode(x), model.encode(x))


def test_training_moves_residual_and_decoder_and_never_the_frozen_encoder(tmp_path):
    model, x = latents(), normal(64, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    error = (model.decoder(model.raw(x)) - x).abs().mean()
    config = TrainerConfig(max_steps=60, learning_rate=1e-2, tensorboard=False)
    Trainer(model, LatentAutoencoding(), lambda _: {"x0": x}, folder=tmp_path, config=config).fit()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("frozen."))
    assert all(not torch.equal(before[name], after[name]) for name in ("residual.weight", "decoder.weight"))
    assert (model.decoder(model.raw(x)) - x).abs().mean() < 0.8 * error
    assert not model.frozen.training  # its batch norm and dropout would otherwise be at work
    assert model.decoder.training


def test_the_residual_carries_what_the_features_lack():
    """Least squares on the decoder: two of four pixels' directions are not enough, three are better."""
    x = normal(400, 1, 8, 8)

    def best(model):
        raw = model.eval().raw(x).permute(0, 2, 3, 1).flatten(0, 2)
        pixels = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2).flatten(0, 1)
        return torch.linalg.lstsq(raw, pixels).solution, (raw, pixels)

    errors = []
    for residual in (False, True):
        solution, (raw, pixels) = best(latents(residual))
        errors.append((raw @ solution - pixels).square().mean())
    assert errors[1] < 0.7 * errors[0]


def test_the_loss_is_the_formula():
    model, x = latents(), normal(10, 1, 8, 8)
    losses = LatentAutoencoding(SquaredError(), 0.3).loss(model, x, torch.Generator(), Moment())
    features, residual = model.features(x), model.residual(x)
    error = (model.decoder(torch.cat([features, residual], 1)) - x).square().mean()
    apart = (residual.mean() - features.mean()) ** 2 + (residual.std() - features.std()) ** 2
    assert abs(losses["loss"] - error - 0.3 * apart) < 1e-6
    assert apart > 1e-3
    alone = LatentAutoencoding(SquaredError()).loss(latents(False), x, torch.Generator(), Moment())
    assert alone["misaligned"] == 0


def test_the_path_has_the_published_shift():
    """Uniform times u' = 0.4·t'/(1 − 0.6·t') of a time that runs from noise to data, t' = 1 − t."""
    t = Uniform(0.0, 1.0)(LATENT_PATH, 100, torch.Generator().manual_seed(0))
    published = 0.4 * (1 - t) / (1 + (0.4 - 1) * (1 - t))
    a, _, sigma = LATENT_PATH.evaluate(t)
    assert (a - published).abs().max() < 1e-12
    assert (sigma - (1 - published)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: latents().encode(torch.zeros(1, 1, 8, 8)), "fit"),
        (lambda: latents().decode(torch.zeros(1, 3, 4, 4)), "fit"),
        (lambda: latents().fit([]), "pictures"),
        (lambda: latents().eval().fit([torch.zeros(4, 1, 8, 8)]), "constant: \\[0, 1, 2\\]"),
        (lambda: FrozenEncoderLatents(nn.Identity(), None, nn.Identity(), 0), "channels"),
        (
            lambda: FrozenEncoderLatents(nn.Identity(), None, nn.Identity(), 2).raw(torch.zeros(1, 1, 4, 4)),
            "give 1",
        ),
        (lambda: LatentAutoencoding(alignment=-1.0), "alignment"),
    ],
)
def test_bad_input_is_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()
