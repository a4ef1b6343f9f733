"""A small classifier of 16×16 grey pictures, whose features measure generated ones.

The file holds the byte arrays train (n, 16, 16), train_label, test and test_label. The classifier is trained
once, for 3,000 steps of 128, and kept under runs/grey-features.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CACHE = Path("runs/grey-features/classifier.safetensors")
STEPS = 3_000


@cache
def _arrays(file: Path) -> dict[str, Tensor]:
    with np.load(file, allow_pickle=False) as found:
        arrays = {
            name: torch.from_numpy(found[name]) for name in ("train", "train_label", "test", "test_label")
        }
    pictures = {name: arrays[name].float()[:, None] / 127.5 - 1 for name in ("train", "test")}
    return {**arrays, **pictures}


def pictures(file: Path) -> tuple[Tensor, Tensor]:
    """Training and test pictures (n, 1, 16, 16) in [-1, 1]."""
    arrays = _arrays(file)
    return arrays["train"], arrays["test"]


class Classifier(nn.Module):
    """Three convolutions and a hidden layer, whose 64 values are the features."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64), (64, 64)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.inner = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 64), nn.ReLU())
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, 10)."""
        return self.last(self.inner(x))


@cache
def classifier(file: Path) -> Classifier:
    """The trained classifier, frozen."""
    torch.manual_seed(0)
    net = Classifier()
    if CACHE.is_file():
        net.load_state_dict(load_file(CACHE))
    else:
        _train(net, _arrays(file))
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        save_file(net.state_dict(), CACHE)
    return net.eval().requires_grad_(False)


def _train(net: Classifier, arrays: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        chosen = torch.randint(len(arrays["train"]), (128,), generator=generator)
        x = arrays["train"][chosen]
        x = torch.where(torch.rand(128, 1, 1, 1, generator=generator) < 0.5, x.flip(-1), x)
        loss = F.cross_entropy(net(x), arrays["train_label"][chosen].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(file: Path) -> float:
    """Share of test pictures that are recognised."""
    arrays = _arrays(file)
    return float((classifier(file)(arrays["test"]).argmax(1) == arrays["test_label"]).double().mean())


def features(file: Path, x: Tensor) -> Tensor:
    """(n, 64), float64."""
    net = classifier(file)
    with torch.inference_mode():
        return torch.cat([net.inner(part.float()) for part in x.split(1000)]).double()
