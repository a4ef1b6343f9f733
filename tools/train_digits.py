"""Train the small diffusion model that the core ships, "digits", on scikit-learn's handwritten digits.

    python -m tools.train_digits --output runs/digits --max-minutes 30
    python -m tools.train_digits --output runs/digits --ship

The first command trains (and goes on where it was stopped); the second puts the result into the package.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core import paths, predictions
from fewstep.core.cards import CardFacts
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import DiTConfig
from fewstep.core.training import Trainer, TrainerConfig, load_weights, read_log

SHIPPED = FilePath(__file__).parents[1] / "shared/src/fewstep/core/checkpoints/digits"
SIGMA_DATA = 0.752
TRAINING_PICTURES = 1497


def digits() -> tuple[Tensor, Tensor]:
    """All 1797 pictures (n, 1, 8, 8) in [-1, 1] and their labels, in a fixed random order."""
    from sklearn.datasets import load_digits

    pixels, targets = (np.asarray(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(targets))
    pictures = torch.tensor(pixels[order], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return pictures, torch.tensor(targets[order])


def new_model(seed: int = 0) -> DiffusionModel:
    """The untrained network: 0.9 million weights."""
    torch.manual_seed(seed)
    config = DiTConfig(size=(8, 8), patch=2, width=96, depth=6, heads=4, classes=10, time_scale=250.0)
    return DiffusionModel.with_network(
        config, paths.EDM(sigma_data=SIGMA_DATA), "edm", labels=tuple(map(str, range(10)))
    )


@dataclass(frozen=True)
class EDMLoss:
    """Mean squared error of the preconditioned network, ln sigma ~ N(mean, std²), a tenth without a label.

    Reference: Karras et al. 2022, equations 7 and 8 with their weighting, which makes the error of F uniform.
    """

    path: paths.Path
    mean: float = -0.8
    std: float = 1.2
    drop: float = 0.1

    def __call__(self, net: nn.Module, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """The loss of a batch {"x0": (n, 1, 8, 8), "label": (n,)}."""
        x0, label = batch["x0"], batch["label"]
        draw = {"generator": generator, "device": x0.device}
        sigma = (torch.randn(len(x0), **draw) * self.std + self.mean).exp().double()
        noise = torch.randn(x0.shape, **draw)
        label = torch.where(torch.rand(len(x0), **draw) < self.drop, 10, label)
        x = self.path.corrupt(x0, sigma, noise)
        target = predictions.get("edm").target(self.path, sigma, x0, noise)
        scale = self.path.input_scale_at(sigma).to(x0.dtype).view(-1, 1, 1, 1)
        told = self.path.network_time_at(sigma).to(x0.dtype)
        return (net(x * scale, told, label) - target).square().mean()


def train(folder: FilePath, max_minutes: float) -> None:
    """Train, or go on with a run that was stopped."""
    pictures, labels = digits()
    x0, label = pictures[:TRAINING_PICTURES], labels[:TRAINING_PICTURES]
    held_out = {"x0": pictures[TRAINING_PICTURES:], "label": labels[TRAINING_PICTURES:]}
    model = new_model()
    loss = EDMLoss(model.path)

    def batches(generator: np.random.Generator) -> dict[str, Tensor]:
        chosen = torch.from_numpy(generator.integers(0, len(x0), 128))
        return {"x0": x0[chosen], "label": label[chosen]}

    def validate(net: nn.Module) -> dict[str, float]:
        torch_generator = torch.Generator().manual_seed(1)
        values = [float(loss(net, held_out, torch_generator)) for _ in range(8)]
        return {"held_out_loss": float(np.mean(values))}

    config = TrainerConfig(
        max_minutes=max_minutes,
        learning_rate=1e-3,
        ema_decays=(0.999,),
        validate_every=500,
        monitor="held_out_loss",
        monitor_mode="min",
        save_every_minutes=3.0,
        tensorboard=False,
    )
    print(Trainer(model, loss, batches, folder=folder, config=config, validate=validate).fit(resume=True))


def ship(folder: FilePath) -> None:
    """Save the averaged weights with their card into the package."""
    model = new_model()
    model.load_state_dict(load_weights(folder, "best"))
    log = read_log(folder)
    config = TrainerConfig.load(folder / "config.json")
    held_out, best = min((line["held_out_loss"], line["step"]) for line in log if "held_out_loss" in line)
    facts = CardFacts(
        title="digits",
        summary=(
            "A diffusion transformer (DiT) for handwritten digits of 8×8 pixels, with labels; small enough "
            "to try samplers, search and guidance on any machine in seconds."
        ),
        data="scikit-learn's digits (UCI Optical Recognition of Handwritten Digits), 1,497 of 1,797 pictures",
        data_licence="CC BY 4.0",
        command=f"python -m tools.train_digits --output runs/digits --max-minutes {config.max_minutes:g}",
        steps=int(log[-1]["step"]),
        minutes=config.max_minutes,
        machine="one CPU core, shared",
        limits=(
            f"Loss on the 300 pictures not trained on: {held_out:.4f} at step {best:,}, whose averaged "
            "weights these are; it rose after that. For demonstrations and tests."
        ),
    )
    model.save_pretrained(SHIPPED, dtype=torch.float16, model_card_kwargs={"facts": facts})
    print(SHIPPED)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=FilePath, required=True, help="folder of the run")
    parser.add_argument("--max-minutes", type=float, default=30.0)
    parser.add_argument("--ship", action="store_true", help="put the finished run into the package")
    arguments = parser.parse_args()
    ship(arguments.output) if arguments.ship else train(arguments.output, arguments.max_minutes)


if __name__ == "__main__":
    main()
