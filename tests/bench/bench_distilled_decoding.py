"""Distilled Decoding on digits: an autoregressive model of 16 tokens against students of 1, 2 and 4 calls.

    python -m tests.bench.bench_distilled_decoding --max-minutes 14

A digit is 4 × 4 patches of 2 × 2 pixels, each one of 64 codes (k-means on the training part). The teacher, a
causal transformer, is trained here; its flows make pairs (noise, tokens); DD1 trains on them; DD2 begins as
the DD1 student, its fake score as the teacher. Every stage is kept under runs/distilled-decoding: a run that
was interrupted goes on where it was, and a stage that came to its end is not trained again.

nll: of the tokens under the teacher, nats a token (the teacher's own samples have its entropy); feature_fid,
class_tv, confidence: see digit_features; right: share of samples that the classifier sees as the label they
were made for; ms: for a batch of 500 on one thread.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.mixture_flow import MixtureFlow
from fewstep.core.nets.autoregressive import Autoregressive, AutoregressiveConfig, TokenGenerator
from fewstep.core.nets.conditional_denoiser import ConditionalDenoiser
from fewstep.core.nets.mixture_denoiser import MixtureDenoiser
from fewstep.core.objectives.distilled_decoding import DistilledDecoding, decode, generate
from fewstep.core.objectives.distilled_decoding_2 import ConditionalScoreDistillation, TokenTeacher
from fewstep.core.training import Trainer, TrainerConfig
from tests.bench import digit_features

RUNS = Path("runs/distilled-decoding")
CODES, STARTS, SAMPLES, PAIRS = 64, (0, 4, 8, 12), 1000, 8000
CONFIG = AutoregressiveConfig(tokens=16, codes=CODES, features=4, width=64, depth=3, classes=10)
SHARES = {"teacher": 0.2, "dd1": 0.4, "dd2": 0.4}
STEPS = {"teacher": 1500, "dd1": 4000, "dd2": 4000}


def patches(pictures: Tensor) -> Tensor:
    """(n, 1, 8, 8) → (n, 16, 4)."""
    return F.unfold(pictures, 2, stride=2).transpose(1, 2)


def pictures(embeddings: Tensor) -> Tensor:
    """(n, 16, 4) → (n, 1, 8, 8)."""
    return F.fold(embeddings.transpose(1, 2), (8, 8), 2, stride=2)


def codebook() -> Tensor:
    """The centres of k-means on the training part's patches."""
    from sklearn.cluster import KMeans

    found = patches(digit_features.split()[0][0]).flatten(0, 1)
    centres = KMeans(CODES, random_state=0).fit(found.numpy()).cluster_centers_
    return torch.tensor(centres, dtype=torch.float32)


def drawn(*parts: Tensor, names: tuple[str, ...], size: int = 64) -> Callable[[np.random.Generator], dict]:
    """Batches of rows that belong together."""

    def draw(generator: np.random.Generator) -> dict[str, Tensor]:
        rows = torch.as_tensor(generator.integers(len(parts[0]), size=size))
        return {name: part[rows] for name, part in zip(names, parts, strict=True)}

    return draw


def trained(name: str, net: nn.Module, objective, batches, minutes: float, rate: float) -> nn.Module:
    """The averaged weights after the stage's updates, or after its share of so many minutes; made once."""
    kept = RUNS / name / "average.safetensors"
    if kept.is_file():
        net.load_state_dict(load_file(kept))
        return net.eval().requires_grad_(False)
    config = TrainerConfig(
        max_steps=STEPS[name], max_minutes=minutes * SHARES[name], learning_rate=rate, log_every=200,
        weight_decay=0.05 if name == "teacher" else 0.0, tensorboard=False,
    )  # fmt: skip
    trainer = Trainer(net, objective, batches, folder=RUNS / name, config=config)
    result = trainer.fit()
    print(f"{name}: {result.step} updates, {result.minutes:.1f} minutes", flush=True)
    if result.stopped == "interrupted":
        sys.exit("interrupted; the same command goes on")
    average = next(iter(trainer.ema.models.values())).eval()
    save_file(average.state_dict(), kept)
    return average


def tokens_loss(net: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Mean negative log-likelihood of a token; a tenth of the samples is told no label."""
    tokens, label = batch["tokens"], batch["label"]
    dropped = torch.rand(len(label), generator=generator) < 0.1
    return nll(net, tokens, torch.where(dropped, CONFIG.classes, label)).mean()


def nll(model: nn.Module, tokens: Tensor, label: Tensor) -> Tensor:
    """Nats a token, of every sequence."""
    return -model(tokens, label).gather(-1, tokens[..., None]).squeeze(-1).mean(1)


def sampled(model: nn.Module, label: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens by ordinary ancestral sampling, 16 calls."""
    tokens = torch.zeros(len(label), CONFIG.tokens, dtype=torch.long)
    with torch.no_grad():
        for place in range(CONFIG.tokens):
            chances = model(tokens[:, : place + 1], label)[:, place].exp()
            tokens[:, place] = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return tokens


def measured(model: nn.Module, points: Tensor, make: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
    """The figures of `make(noise, label) → tokens`."""
    label = torch.arange(SAMPLES) % 10
    noise = torch.randn(SAMPLES, CONFIG.tokens, CONFIG.features, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        tokens = make(noise, label)
        began = time.perf_counter()
        make(noise[:500], label[:500])
        spent = 1000 * (time.perf_counter() - began)
        likely = float(nll(model, tokens, label).mean())
    made = pictures(points[tokens])
    right = digit_features.accuracy(made, label)
    return {"nll": likely, **digit_features.metrics(made), "right": right, "ms": spent}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-minutes", type=float, default=14.0)
    minutes = parser.parse_args().max_minutes
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (real, label), (test, test_label) = digit_features.split()
    points = codebook()
    flow = MixtureFlow(points)
    nearest = lambda found: torch.cdist(patches(found), points).argmin(-1)  # noqa: E731
    tokens, test_tokens = nearest(real), nearest(test)

    net = Autoregressive(replace(CONFIG, dropout=0.2), points)
    batches = drawn(tokens, label, names=("tokens", "label"))
    model = trained("teacher", net, tokens_loss, batches, minutes, 2e-3)
    with torch.no_grad():
        ours, theirs = nll(model, tokens, label).mean(), nll(model, test_tokens, test_label).mean()
    print(f"teacher: {ours:.3f} nats a token on training data, {theirs:.3f} on test data")

    with torch.no_grad():
        chances, noise = model(tokens[:300], label[:300]), torch.randn(300, CONFIG.tokens, CONFIG.features)
    fine = flow.tokens(noise, chances, 512)
    for steps in (32, 64, 128):
        wrong = float((flow.tokens(noise, chances, steps) != fine).double().mean())
        print(f"flow: {100 * wrong:.2f} % of the tokens by {steps} Heun steps are not those of 512")

    student = TokenGenerator(CONFIG, points)
    student.load_state_dict(model.state_dict(), strict=False)
    pairs = drawn(*make_pairs(model, flow), names=("noise", "tokens", "label"))
    dd1 = trained("dd1", student, DistilledDecoding(points, STARTS), pairs, minutes, 2e-3)

    teacher = TokenTeacher(model, flow)
    fake = MixtureDenoiser(Autoregressive(CONFIG, points), flow, ConditionalDenoiser(CONFIG, points))
    fake.model.load_state_dict(model.state_dict())
    fast = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)  # noqa: E731
    objective = ConditionalScoreDistillation(
        teacher, fake, fake_updates=3, begins=0.1, fake_optimizer=fast
    )  # fmt: skip
    begin = copy.deepcopy(dd1).train().requires_grad_(True)
    dd2 = trained("dd2", begin, objective, batches, minutes, 1e-4)

    random = torch.Generator().manual_seed(1)
    rows = [
        ("real test digits, quantised", real_row(model, points, test_tokens, test_label)),
        ("teacher, 16 calls, sampled", measured(model, points, lambda _, y: sampled(model, y, random))),
        (
            "teacher, 16 calls, flow of the noise",
            measured(model, points, lambda e, y: decode(model, flow, e, y)),
        ),
    ]
    for calls in (1, 2, 4):
        starts = STARTS[:: len(STARTS) // calls]
        rows.append((f"DD1, {calls} call{'s'[: calls > 1]}", measured(
            model, points, lambda e, y, starts=starts: generate(dd1, points, e, starts, y)
        )))  # fmt: skip
    rows.append(("DD2, 1 call", measured(model, points, lambda e, y: teacher.nearest(dd2(e, None, y)[1]))))
    rows.append(("its start: DD1, 1 call by embedding", measured(
        model, points, lambda e, y: teacher.nearest(dd1(e, None, y)[1])
    )))  # fmt: skip
    print(digit_features.table(rows))


def make_pairs(model: nn.Module, flow: MixtureFlow) -> list[Tensor]:
    """Noise, tokens and labels; kept beside the teacher."""
    kept = RUNS / "pairs.safetensors"
    if not kept.is_file():
        generator, began = torch.Generator().manual_seed(9), time.monotonic()
        noise = torch.randn(PAIRS, CONFIG.tokens, CONFIG.features, generator=generator)
        label = torch.randint(10, (PAIRS,), generator=generator)
        parts = zip(noise.split(500), label.split(500), strict=True)
        tokens = torch.cat([decode(model, flow, *part, steps=32) for part in parts])
        save_file({"noise": noise, "tokens": tokens, "label": label}, kept)
        print(f"pairs: {PAIRS} in {time.monotonic() - began:.0f} s", flush=True)
    pairs = load_file(kept)
    return [pairs[name] for name in ("noise", "tokens", "label")]


def real_row(model: nn.Module, points: Tensor, tokens: Tensor, label: Tensor) -> dict[str, float]:
    """The figures of data."""
    found = pictures(points[tokens])
    with torch.no_grad():
        likely = float(nll(model, tokens, label).mean())
    return {"nll": likely, **digit_features.metrics(found), "right": digit_features.accuracy(found, label)}


if __name__ == "__main__":
    main()
