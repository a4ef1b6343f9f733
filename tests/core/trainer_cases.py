"""A small training run with everything that has a state, for the tests of the trainer."""

import numpy as np
import torch
from torch import nn

from fewstep.core.training import (
    CosineSchedule,
    Trainer,
    TrainerConfig,
)

CONFIG = TrainerConfig(
    max_steps=9,
    batch_size=4,
    accumulate=3,
    ema_decays=(0.9, 0.5),
    log_every=2,
    device="cpu",
    tensorboard=False,
)


def make_net(seed=0):
    """Convolutions with everything that has a state: dropout (a global generator) and running statistics."""
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, 2, 1),
    )
    return nn.Sequential(*layers)


def crops(rng):
    return torch.from_numpy(rng.standard_normal((4, 2, 6, 6), dtype=np.float32))


class Images(torch.utils.data.Dataset):
    """Ten images whose augmentation uses global generators (not Python's own: beartype draws from it)."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        image = torch.full((2, 6, 6), float(index)) + torch.randn(2, 6, 6)
        return {"image": image, "shift": np.float32(np.random.normal())}  # noqa: NPY002


def denoising_loss(net, batch, generator):
    """Predict the image from a noisy one; the noise comes from the generator of the loss."""
    image = batch["image"] + batch["shift"].reshape(-1, 1, 1, 1) if isinstance(batch, dict) else batch
    noise = torch.randn(image.shape, generator=generator)
    return {"loss": (net(image + noise) - image).square().mean(), "energy": image.square().mean()}


def trainer(folder, config=CONFIG, data=crops, loss=denoising_loss, **options):
    net = make_net()
    return Trainer(net, loss, data, folder=folder, config=config, schedule=CosineSchedule(0.3), **options)


def everything(run):
    """All tensors that a run ends with: weights, running statistics, averages, moments of the optimiser."""
    tensors = list(run.model.state_dict().values())
    for model in run.ema.models.values():
        tensors += model.state_dict().values()
    for moments in run.turns["train"].optimizer.state_dict()["state"].values():
        tensors += moments.values()
    return tensors


def same(first, second):
    pairs = list(zip(everything(first), everything(second), strict=True))
    assert len(pairs) > 30
    return all(torch.equal(a, b) for a, b in pairs)
