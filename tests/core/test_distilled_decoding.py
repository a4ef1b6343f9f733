"""Distilled Decoding 1 and 2: what the pairs, the losses and their gradients are."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewstep.core.mixture_flow import MixtureFlow
from fewstep.core.nets.autoregressive import Autoregressive, AutoregressiveConfig, TokenGenerator
from fewstep.core.nets.conditional_denoiser import ConditionalDenoiser
from fewstep.core.nets.mixture_denoiser import MixtureDenoiser
from fewstep.core.objectives.distilled_decoding import DistilledDecoding, decode, generate, mixed
from fewstep.core.objectives.distilled_decoding_2 import (
    ConditionalScoreDistillation,
    ConditionalScoreMatching,
    TokenTeacher,
)
from fewstep.core.training import Moment, Trainer, TrainerConfig

CODES, TOKENS, FEATURES = 5, 4, 2
CONFIG = AutoregressiveConfig(TOKENS, CODES, FEATURES, width=16, depth=2, heads=2, classes=3)


def draws(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


POINTS = 2 * draws(0, CODES, FEATURES)
FLOW = MixtureFlow(POINTS)


class Markov(nn.Module):
    """A chain whose next token depends on the last one."""

    def __init__(self, seed=1):
        super().__init__()
        self.register_buffer("first", draws(seed, CODES).log_softmax(-1))
        self.register_buffer("rows", (2 * draws(seed + 50, CODES, CODES)).log_softmax(-1))

    def forward(self, tokens, label=None):
        later = self.rows[tokens[:, :-1]]
        return torch.cat([self.first.expand(len(tokens), 1, -1), later], dim=1)


def batch(count=6, seed=3):
    noise = draws(seed, count, TOKENS, FEATURES)
    return {"noise": noise, "tokens": decode(Markov(), FLOW, noise, steps=16)}


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", ["model", "generator", "denoiser"])
def test_the_networks_see_only_what_they_may(kind):
    """Place i of the model and of the denoiser sees places before it, the generator its own as well."""
    torch.manual_seed(0)
    tokens, label = torch.tensor([[0, 1, 2, 3]]), torch.tensor([1])
    changed = tokens.clone()
    changed[0, 2] = 4
    points = POINTS.float()
    if kind == "model":
        net = Autoregressive(CONFIG, points)
        before, after = net(tokens, label), net(changed, label)
        assert (before.exp().sum(-1) - 1).abs().max() < 1e-6
    elif kind == "generator":
        net = TokenGenerator(CONFIG, points)
        before, after = (net(points[found], None, label)[0] for found in (tokens, changed))
    else:
        net = ConditionalDenoiser(CONFIG, points)
        nn.init.normal_(net.leave.weight)
        x, t = torch.zeros(1, TOKENS, FEATURES), torch.full((1, TOKENS), 0.5)
        before, after = (net(x, t, points[found], label) for found in (tokens, changed))
    differs = (before != after).any(-1)[0]
    assert differs.tolist() == ([False, False, True, True] if kind == "generator" else [False] * 3 + [True])
    other = net(tokens, torch.tensor([2])) if kind == "model" else None
    assert other is None or (other != before).any()


def test_decoded_noise_is_a_sample_of_the_model():
    """The joint law of two tokens of the chain, by chi-square."""
    count, model = 6000, Markov()
    tokens = decode(model, FLOW, draws(7, count, 2, FEATURES), steps=64)
    joint = (model.first[:, None] + model.rows).exp().flatten()
    counts = torch.bincount(tokens[:, 0] * CODES + tokens[:, 1], minlength=CODES**2)
    chi = ((counts - count * joint).square() / (count * joint)).sum()
    freedom = CODES**2 - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom)
    alone = (counts.view(CODES, CODES).sum(1, keepdim=True) * counts.view(CODES, CODES).sum(0)) / count
    independent = ((counts.view(CODES, CODES) - alone).square() / alone.clamp_min(1)).sum()
    assert independent > 10 * chi


class Oracle(nn.Module):
    """Knows the tokens of every noise: right wherever it is asked, nonsense where it is told."""

    def forward(self, x, known=None, label=None):
        tokens = batch()["tokens"]
        right = 60.0 * F.one_hot(tokens, CODES).double()
        wrong = known[..., None] if known is not None else torch.zeros_like(right[..., :1], dtype=torch.bool)
        return torch.where(wrong, 7.0, right), torch.where(wrong, 7.0, POINTS[tokens])


def test_the_loss_is_zero_for_the_true_map_and_counts_only_what_is_unknown():
    losses = DistilledDecoding(POINTS, (0, 1, 3)).loss(Oracle(), batch(), generator(), Moment())
    assert losses["loss"] < 1e-12
    assert losses["right"] == 1


def test_the_loss_of_a_constant_student_is_the_formula():
    class Constant(nn.Module):
        def forward(self, x, known, label):
            return torch.zeros(*x.shape[:2], CODES).double(), torch.zeros_like(x)

    student, pair = Constant(), batch()
    objective = DistilledDecoding(POINTS, (0,), cross_entropy=2.0, regression=3.0)
    losses = objective.loss(student, pair, generator(), Moment())
    wanted = 2 * math.log(CODES) + 3 * POINTS[pair["tokens"]].square().mean()
    assert abs(losses["loss"] - wanted) < 1e-12
    with_picture = DistilledDecoding(
        POINTS, (0,), 2.0, 3.0, lambda made, real: (made - real).abs().sum((1, 2))
    )
    extra = with_picture.loss(student, pair, generator(), Moment())["loss"] - losses["loss"]
    assert abs(extra - POINTS[pair["tokens"]].abs().sum((1, 2)).mean()) < 1e-12


def test_states_hold_tokens_before_the_start_and_noise_after_it():
    pair = batch(2)
    x, known = mixed(pair["tokens"], pair["noise"], POINTS, torch.tensor([0, 3]))
    assert known.tolist() == [[False] * 4, [True] * 3 + [False]]
    assert torch.equal(x[0], pair["noise"][0])
    assert torch.equal(x[1, :3], POINTS[pair["tokens"][1, :3]])


@pytest.mark.parametrize("starts", [(0,), (0, 2), (0, 1, 2, 3)])
def test_generation_by_the_true_map_gives_the_tokens(starts):
    pair = batch()
    assert torch.equal(generate(Oracle(), POINTS, pair["noise"], starts), pair["tokens"])


class Given(nn.Module):
    """A student whose output is its parameter, and a fake that is another chain's exact denoiser."""

    def __init__(self, made):
        super().__init__()
        self.made = nn.Parameter(made)

    def forward(self, x, known=None, label=None):
        return None, self.made


class ExactFake(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.teacher, self.idle = TokenTeacher(Markov(seed), FLOW), nn.Parameter(torch.zeros(()))

    def forward(self, x, t, before, label=None):
        return self.teacher.x0(x, t.double(), self.teacher.nearest(before), label)


def student_gradient(fake_seed):
    made = POINTS[batch()["tokens"]] + 0.1 * draws(9, 6, TOKENS, FEATURES)
    networks = {"student": Given(made), "fake": ExactFake(fake_seed)}
    objective = ConditionalScoreDistillation(TokenTeacher(Markov(1), FLOW), networks["fake"])
    losses = objective.phases()[1].loss(networks, batch(), generator(), Moment())
    losses["loss"].backward()
    return made, networks["student"].made.grad


def test_no_force_acts_where_the_conditional_laws_agree():
    assert student_gradient(1)[1].abs().max() < 1e-12
    assert student_gradient(2)[1].abs().max() > 1e-4


def test_the_student_feels_the_difference_of_the_exact_denoisers():
    made, gradient = student_gradient(2)
    draw = generator()
    t = (1e-3 + (1 - 1e-3) * torch.rand(6 * TOKENS, generator=draw, dtype=torch.float64)).view(6, TOKENS)
    noise = torch.randn(6 * TOKENS, FEATURES, generator=draw, dtype=torch.float64).view_as(made)
    x = (1 - t[..., None]) * made + t[..., None] * noise
    tokens = torch.cdist(made, POINTS).argmin(-1)
    fake, real = (FLOW.x0(x, t, Markov(seed)(tokens)) for seed in (2, 1))
    scale = (made - real).abs().mean((1, 2), keepdim=True)
    assert (gradient - (fake - real) / scale / made.numel()).abs().max() < 1e-12


def test_the_matched_conditional_denoiser_has_no_loss_and_another_has():
    objective = ConditionalScoreMatching(TokenTeacher(Markov(1), FLOW))
    assert objective.loss(ExactFake(1), batch(), generator(), Moment()) < 1e-20
    assert objective.loss(ExactFake(2), batch(), generator(), Moment()) > 1e-4


def test_a_fake_with_the_models_own_probabilities_begins_as_the_teacher():
    """And its probabilities learn the student's tokens, here one code alone."""
    torch.manual_seed(0)
    points, told = POINTS.float(), torch.rand(6, TOKENS, generator=generator())
    model, label = Autoregressive(CONFIG, points), torch.arange(6) % 3
    flow = MixtureFlow(points)
    fake = MixtureDenoiser(copy.deepcopy(model), flow, ConditionalDenoiser(CONFIG, points))
    x, tokens = torch.randn(6, TOKENS, FEATURES), batch()["tokens"]
    teacher = TokenTeacher(model, flow)
    exact = teacher.x0(x, told.double(), tokens, label)
    # The time goes through a logarithm of the odds, in float64; the weights are float32.
    torch.testing.assert_close(fake(x, told, points[tokens], label), exact, rtol=1e-4, atol=1e-5)

    student = Given(points[torch.full((6, TOKENS), 2)])
    phase = ConditionalScoreDistillation(teacher, fake).phases()[0]
    optimizer = torch.optim.Adam(fake.parameters(), 0.02)
    noise = {"noise": torch.randn(6, TOKENS, FEATURES), "label": label}
    for _ in range(60):
        loss: Any = phase.loss({"student": student, "fake": fake}, noise, generator(), Moment())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    share = fake.model.log_p(student.made, label).exp()[..., 2]
    assert share.min() > model.log_p(student.made, label).exp()[..., 2].max()


def test_the_student_waits_until_the_fake_knows_it():
    made = POINTS[batch()["tokens"]] + 0.1 * draws(9, 6, TOKENS, FEATURES)
    student, fake = Given(made), ExactFake(2)
    objective = ConditionalScoreDistillation(TokenTeacher(Markov(1), FLOW), fake, begins=0.25)
    sizes = []
    for progress in (0.2, 0.3):
        networks, moment = {"student": student, "fake": fake}, Moment(0, progress)
        losses: Any = objective.phases()[1].loss(networks, batch(), generator(), moment)
        (gradient,) = torch.autograd.grad(losses["loss"], student.made)
        sizes.append(float(gradient.abs().max()))
    assert sizes[0] == 0 < sizes[1]


def test_a_trainer_moves_student_and_fake_in_turns_and_the_teacher_stays(tmp_path):
    torch.manual_seed(0)
    points = POINTS.float()
    model, student = Autoregressive(CONFIG, points), TokenGenerator(CONFIG, points)
    fake = ConditionalDenoiser(CONFIG, points)
    was = {name: [p.clone() for p in net.parameters()] for name, net in (("model", model), ("fake", fake))}
    objective = ConditionalScoreDistillation(TokenTeacher(model, MixtureFlow(points)), fake, fake_updates=2)
    data = {"tokens": batch()["tokens"], "label": torch.zeros(6, dtype=torch.long)}
    config = TrainerConfig(max_steps=6, learning_rate=1e-3, tensorboard=False)
    start = [p.clone() for p in student.parameters()]
    result = Trainer(student, objective, lambda _: data, folder=tmp_path, config=config).fit()
    assert result.step == 6
    assert result.skipped == 0
    assert any((a != b).any() for a, b in zip(start, student.parameters(), strict=True))
    assert any((a != b).any() for a, b in zip(was["fake"], fake.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(was["model"], model.parameters(), strict=True))


def test_a_small_student_learns_the_map(tmp_path):
    torch.manual_seed(0)
    pairs = batch(256)
    pairs["noise"] = pairs["noise"].float()
    student = TokenGenerator(CONFIG, POINTS.float())
    config = TrainerConfig(max_steps=250, learning_rate=5e-3, tensorboard=False, log_every=1000)
    objective = DistilledDecoding(POINTS.float(), (0, 2))
    Trainer(student, objective, lambda _: pairs, folder=tmp_path, config=config).fit()
    right = (generate(student.eval(), POINTS.float(), pairs["noise"]) == pairs["tokens"]).double().mean()
    most_frequent = (pairs["tokens"] == pairs["tokens"].mode(dim=0).values).double().mean()
    assert 1 - right < (1 - most_frequent) / 2  # half the errors of a student that hears no noise


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: DistilledDecoding(POINTS, (1, 2)), ValueError, "starts"),
        (lambda: DistilledDecoding(POINTS, (0, 2, 2)), ValueError, "starts"),
        (lambda: DistilledDecoding(POINTS, (0,), 0.0, 0.0), ValueError, "cross_entropy"),
        (lambda: generate(Oracle(), POINTS, batch()["noise"], (0, 4)), ValueError, "starts"),
        (lambda: DistilledDecoding(POINTS).loss(Oracle(), 3, generator(), Moment()), TypeError, "mapping"),
        (
            lambda: DistilledDecoding(POINTS).loss(Oracle(), {"tokens": 1}, generator(), Moment()),
            ValueError,
            "tokens",
        ),
        (
            lambda: ConditionalScoreDistillation(TokenTeacher(Markov(), FLOW), ExactFake(1), fake_updates=0),
            ValueError,
            "fake_updates",
        ),
        (lambda: AutoregressiveConfig(width=10, heads=4), ValueError, "heads"),
        (lambda: AutoregressiveConfig(dropout=1.0), ValueError, "dropout"),
        (lambda: Autoregressive(CONFIG, torch.zeros(3, 2)), ValueError, "codebook"),
        (
            lambda: Autoregressive(CONFIG, POINTS.float())(torch.zeros(1, 9, dtype=torch.long)),
            ValueError,
            "at most",
        ),
    ],
)
def test_bad_input_is_named(make, error, word):
    with pytest.raises(error, match=word):
        make()
