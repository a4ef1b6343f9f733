"""Latents of a frozen encoder with residual channels (in the manner of SVG), against pixels and others.

    python -m tests.bench.bench_svg --max-minutes 2

No published self-supervised weights are at hand offline, so the frozen encoder is trained here, without
labels: the first blocks of an MLP by `RepresentationLearning` on the digits, 32 features. Then four flows of
the same width and time of the processor: of pixels, of the frozen features alone, of features ⊕ 8 residual
channels, and of an autoencoder's 40 channels without frozen features. The latents' flows have shift 2.5.

error: root mean square of decoded test digits in [-1, 1]; decoded_fid: of decoded test digits; feature_fid
and the like: of 2000 samples, 32 Heun steps (see digit_features; its classifier is not the frozen encoder).
"""

import argparse

import torch
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.frozen_latents import LATENT_PATH, FrozenEncoderLatents, LatentAutoencoding
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.denoising import DenoisingObjective, Error
from fewstep.core.objectives.representation import RepresentationLearning
from fewstep.core.objectives.times import Uniform
from fewstep.core.sampling import Sampling
from tests.bench import digit_features
from tests.bench.bench_epg import moved
from tests.bench.timed_training import rows, train

FEATURES, RESIDUAL, SAMPLES = 32, 8, 2000
TIMES = {"fastest": 0.01, "slowest": 5e-4}  # the path tells a thousand times its time
SHARES = {"encoder": 0.1, "autoencoder": 0.05, "flow": 0.1875}


class Nothing(nn.Module):
    """A frozen encoder that sees nothing: an ordinary autoencoder."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 0)."""
        return x.new_zeros(len(x), 0)


class Encoder(nn.Module):
    """What the representation's network sees in a clean picture."""

    def __init__(self, net: nn.Module, objective: RepresentationLearning) -> None:
        super().__init__()
        self.net, self._objective = net, objective

    def forward(self, x: Tensor) -> Tensor:
        """(batch, features)."""
        t = torch.full((len(x),), self._objective.path.t_min, dtype=torch.float64)
        return self._objective.represent(self.net, x, t, {})


def coder(inputs: int, outputs: int) -> nn.Sequential:
    """A small perceptron."""
    return nn.Sequential(
        nn.Linear(inputs, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, outputs)
    )


def encoder(pictures: Tensor, seconds: float) -> tuple[Encoder, int]:
    """The frozen encoder, trained without labels."""
    path = paths.EDM(sigma_data=0.752)
    net = MLP(MLPConfig(shape=(1, 8, 8), width=FEATURES, depth=3))
    projector = nn.Sequential(nn.Linear(FEATURES, 64), nn.SiLU(), nn.Linear(64, 32))
    objective = RepresentationLearning(path, net, projector, 2, moved)
    trained, updates = train(net, objective, rows(pictures), seconds, 2e-3)
    return Encoder(trained.eval(), objective), updates


def latents(frozen: nn.Module, residual: int, channels: int) -> FrozenEncoderLatents:
    """Untrained residual encoder and decoder."""
    small = nn.Sequential(nn.Flatten(), coder(64, residual)) if residual else None
    decoder = nn.Sequential(coder(channels, 64), nn.Unflatten(1, (1, 8, 8)))
    return FrozenEncoderLatents(frozen, small, decoder, channels)


def flow(data: Tensor, path: paths.RectifiedFlow, seconds: float) -> tuple[Tensor, int]:
    """Samples of a flow that was trained on data, and its updates."""
    torch.manual_seed(1)
    net = MLP(
        MLPConfig(shape=tuple(data.shape[1:]), width=256, depth=4, embedding=128, fastest=0.01, slowest=5e-4)
    )
    objective = DenoisingObjective(path, "velocity", Error("velocity"), times=Uniform())
    trained, updates = train(net, objective, rows(data), seconds)
    ask = FlowMap(trained, path, "velocity")
    with torch.no_grad():
        made = Sampling("ode", 32, spacing="clock", solver="heun").run(ask, data.shape[1:], SAMPLES, seed=5)
    return made, updates


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description="Frozen latents against others")
    parser.add_argument("--max-minutes", type=float, default=2.0, help="of the processor, for all trainings")
    seconds = {name: 60 * share * parser.parse_args().max_minutes for name, share in SHARES.items()}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (pictures, _), (test, _) = digit_features.split()
    frozen, updates = encoder(pictures, seconds["encoder"])
    print(f"frozen encoder: {updates} updates", flush=True)
    made, updates = flow(pictures, paths.RectifiedFlow(), seconds["flow"])
    table = [(f"pixels, 64 ({updates} updates)", digit_features.metrics(made))]
    kinds = {
        "frozen features, 32": (frozen, 0, FEATURES),
        "frozen 32 ⊕ residual 8": (frozen, RESIDUAL, FEATURES + RESIDUAL),
        "autoencoder, 40": (Nothing(), FEATURES + RESIDUAL, FEATURES + RESIDUAL),
    }
    for name, parts in kinds.items():
        model = latents(*parts)
        model, _ = train(model, LatentAutoencoding(), rows(pictures), seconds["autoencoder"])
        model = model.eval().fit([pictures])  # type: ignore[operator]
        with torch.no_grad():
            codes, decoded = model.encode(pictures), model.decode(model.encode(test))
        made, updates = flow(codes, LATENT_PATH, seconds["flow"])
        with torch.no_grad():
            figures = {
                "error": float((decoded - test).square().mean().sqrt()),
                "decoded_fid": digit_features.feature_fid(decoded),
                **digit_features.metrics(model.decode(made)),
            }
        table.append((f"{name} ({updates} updates)", figures))
        print(*table[-1], flush=True)
    print(digit_features.table(table))


if __name__ == "__main__":
    main()
