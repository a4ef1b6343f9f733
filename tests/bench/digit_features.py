"""Quality of generated digits: Fréchet distance of a classifier's features, class shares, confidence.

    python -m tests.bench.digit_features

Pictures are (n, 1, 8, 8) in [-1, 1]; the first 1497 of scikit-learn's digits in a fixed random order train
everything, the other 300 test. The classifier, 64–128–32–10, is trained once for 1500 steps and kept under
runs/digit-features.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tools.train_digits import TRAINING_PICTURES, digits
from torch import Tensor, nn

from fewstep.core.metrics import frechet_distance

CACHE = Path("runs/digit-features/classifier.safetensors")
STEPS = 1500


@cache
def split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((pictures, labels) of the training part, the same of the test part)."""
    pictures, labels = digits()
    n = TRAINING_PICTURES
    return (pictures[:n], labels[:n]), (pictures[n:], labels[n:])


class Classifier(nn.Module):
    """Two hidden layers; the second one's 32 values are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.last = nn.Linear(32, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits, (n, 10)."""
        return self.last(self.inner(pictures))


@cache
def classifier() -> Classifier:
    """The trained classifier, frozen."""
    torch.manual_seed(0)
    net = Classifier()
    if CACHE.is_file():
        net.load_state_dict(load_file(CACHE))
    else:
        _train(net)
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        save_file(net.state_dict(), CACHE)
    return net.eval().requires_grad_(False)


def _train(net: Classifier) -> None:
    (pictures, labels), _ = split()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        chosen = torch.randint(len(pictures), (128,), generator=generator)
        loss = F.cross_entropy(net(pictures[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(pictures: Tensor, labels: Tensor) -> float:
    """Share of pictures that the classifier sees as their label."""
    return float((classifier()(pictures).argmax(1) == labels).double().mean())


def features(pictures: Tensor) -> Tensor:
    """(n, 32), float64."""
    return classifier().inner(pictures.float()).double()


@cache
def _training_features() -> Tensor:
    return features(split()[0][0])


def feature_fid(pictures: Tensor) -> float:
    """Fréchet distance to the training pictures."""
    return frechet(features(pictures), _training_features())


def frechet(ours: Tensor, theirs: Tensor) -> float:
    """Fréchet distance of two sets of features (n, features)."""
    return float(frechet_distance(ours, theirs))


def metrics(pictures: Tensor) -> dict[str, float]:
    """feature_fid; class_tv: total variation of the predicted classes to the training part's; confidence."""
    chances = classifier()(pictures.float()).softmax(1)
    shares = torch.bincount(chances.argmax(1), minlength=10) / len(pictures)
    real = torch.bincount(split()[0][1], minlength=10) / TRAINING_PICTURES
    return {
        "feature_fid": feature_fid(pictures),
        "class_tv": float((shares - real).abs().sum() / 2),
        "confidence": float(chances.max(1).values.mean()),
    }


def table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """Rows of figures as a Markdown table, one column per name that occurs."""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for title, row in rows:
        cells = [f"{row[name]:.4g}" if name in row else "" for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    (train, _), (test, test_labels) = split()
    print(f"test accuracy {accuracy(test, test_labels):.3f}")
    print(table([("test part", metrics(test)), ("half of the training part", metrics(train[:748]))]))
