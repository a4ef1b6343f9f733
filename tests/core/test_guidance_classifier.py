"""Guidance by classifiers: exact conditioning with an exact classifier, and the most confused class."""

import math

import pytest
import torch
from tests.core.solver_problems import Mixture, smooth_mixture, start_noise

from fewstep.core import paths, sample
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import ClassifierGuided, ConfusionGuided, Guided
from fewstep.core.guidance.confusion import confusion_share
from fewstep.core.thresholding import Static, Thresholded
from fewstep.core.tiling import Tiled
from fewstep.core.wrapping import as_denoiser

MIX = smooth_mixture()
PATHS = [paths.VP.linear(), paths.EDM(), paths.RectifiedFlow(), paths.ResShift()]


def part(chosen):
    """The data of a class: the components of the mixture that belong to it."""
    weight = MIX.weight[chosen]
    return Mixture(MIX.mean[chosen], MIX.std[chosen], weight / weight.sum())


def log_share(path, y, chosen):
    """log p(class | x_t), exactly."""

    def log_prob(x, t):
        a, b, sigma = (c.reshape(-1, 1) for c in path.evaluate(torch.as_tensor(t, dtype=torch.float64)))
        z = x.flatten(1) if y is None else x.flatten(1) - b * y.flatten(1)
        variance = a**2 * MIX.std**2 + sigma**2
        distance = (z[:, None] - a[..., None] * MIX.mean).square().sum(-1)
        logits = MIX.weight.log() - distance / (2 * variance) - 6 * variance.log()
        return logits[:, chosen].logsumexp(1) - logits.logsumexp(1)

    return log_prob


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("each", [False, True])
def test_an_exact_classifier_gives_the_exact_conditional_denoiser(path, each):
    x = start_noise()
    y = 0.3 * start_noise(seed=5) if path.uses_y else None
    inner = as_denoiser(MIX.denoiser(path, y), path)
    guided = ClassifierGuided(inner, log_share(path, y, [0, 2]), 1.0)
    times = [path.time_at(-math.log(ratio)) for ratio in (0.1, 0.5, 2.0, 20.0)]
    for t in [torch.tensor(times, dtype=torch.float64)] if each else times:
        wanted = part([0, 2]).denoiser(path, y)(x, t)
        torch.testing.assert_close(guided(x, t), wanted, rtol=1e-11, atol=1e-11)
    assert (guided.nfe, guided.classifier_calls) == (1, 1)


def test_guided_samples_are_those_of_the_class():
    path = paths.EDM()
    guided = ClassifierGuided(as_denoiser(MIX.denoiser(path), path), log_share(path, None, [1]), 1.0)
    x = 80.0 * start_noise()
    options = {"solver": "dpmpp-2m", "steps": 12, "x": x}
    out, wanted = sample(guided, **options), sample(part([1]).denoiser(path), path, **options)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)


def test_strength_is_scale_times_sigma_squared_over_a():
    path = paths.VP.linear()
    zero = as_denoiser(lambda x, t: 0 * x, path)
    a, _, sigma = path.coefficients(0.4)
    guided = ClassifierGuided(zero, lambda x, t: -0.5 * x.flatten(1).square().sum(1), 3.0)
    x = start_noise()
    torch.testing.assert_close(guided(x, 0.4), -3.0 * sigma**2 / a * x)


def test_nothing_is_added_at_pure_noise_and_outside_of_the_interval():
    flow = paths.RectifiedFlow()
    inner = as_denoiser(lambda x, t: 0 * x, flow)
    guided = ClassifierGuided(inner, lambda x, t: x.flatten(1).sum(1), interval=(0.5, math.inf))
    x = start_noise(2)
    assert not guided(x, 1.0).any()
    assert not guided(x, 0.2).any()
    assert guided(x, 0.5).any()
    out = guided(x, torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert not out[0].any()
    assert out[1].any()


def test_works_without_gradients_around_it():
    guided = ClassifierGuided(
        as_denoiser(lambda x, t: 0 * x, paths.EDM()), lambda x, t: -x.flatten(1).square().sum(1)
    )
    with torch.inference_mode():
        out = guided(torch.ones(1, 1, 2), 1.0)
    assert out.tolist() == [[[-2.0, -2.0]]]


def test_conditions_of_the_classifier_are_its_own_or_shared():
    def log_prob(x, t, label, centre):
        return -0.5 * (x - centre - label.to(x)[:, None, None]).flatten(1).square().sum(1)

    denoise = Denoiser(lambda x, t, label: 0 * x, paths.EDM()).given(label=torch.tensor([1, 2]))
    guided = ClassifierGuided(denoise, log_prob).given(centre=torch.full((1, 1, 4), 0.5), spatial=("centre",))
    assert set(guided.bound) == {"label", "centre"}
    x = torch.zeros(2, 1, 4)
    assert guided(x, 1.0)[:, 0, 0].tolist() == [1.5, 2.5]
    assert guided.given(label=torch.tensor([3]))(x, 1.0)[:, 0, 0].tolist() == [3.5, 3.5]
    assert guided.repeat(2)(torch.zeros(4, 1, 4), 1.0)[:, 0, 0].tolist() == [1.5, 1.5, 2.5, 2.5]
    assert torch.equal(Tiled(guided, 2, 1)(x, 1.0), guided(x, 1.0))
    doubled = Guided(guided, 2.0, {"label": 0})  # both halves are pushed by their own classifier term
    assert doubled(x, 1.0)[:, 0, 0].tolist() == [2.5, 4.5]
    assert torch.equal(Thresholded(guided, Static(-1.0, 1.0))(x, 1.0), torch.ones(2, 1, 4))


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (lambda x, t: x.sum(), r"one number for each sample, shape \(2,\), not \(\)"),
        (lambda x, t: torch.zeros(2), "log_prob must depend on x"),
    ],
)
def test_bad_classifiers_are_refused(log_prob, message):
    guided = ClassifierGuided(as_denoiser(lambda x, t: x, paths.EDM()), log_prob)
    with pytest.raises(ValueError, match=message):
        guided(torch.zeros(2, 1, 4), 1.0)


def test_a_path_and_a_callable_are_needed():
    with pytest.raises(ValueError, match="needs a denoiser that knows its path"):
        ClassifierGuided(lambda x, t: x, lambda x, t: x.sum(1))
    with pytest.raises(TypeError, match=r"(?i)callable"):
        ClassifierGuided(as_denoiser(lambda x, t: x, paths.EDM()), 3)  # type: ignore[arg-type]


def class_denoiser(path, shift=0.0):
    """x0 of single components, chosen by a label; calls are counted."""

    def net(x, t, label):
        asked.append(label.tolist())
        a, _, sigma = path.coefficients(t)
        return torch.cat([part([int(c)]).x0(x[i : i + 1], a, sigma) for i, c in enumerate(label)]) + shift

    asked: list[list[int]] = []
    return as_denoiser(net, path).given(label=torch.tensor([0, 1, 2, 1])), asked


def logits(x0):
    return -4.0 * (x0.flatten(1)[:, None] - MIX.mean).square().sum(-1)


def test_the_most_confused_class_and_weight_by_hand():
    path, x = paths.EDM(), start_noise()
    inner, asked = class_denoiser(path)
    guided = ConfusionGuided(inner, logits, 2.0)
    x0 = inner(x, 1.0)
    asked.clear()
    out = guided(x, 1.0)
    for i, wanted in enumerate([0, 1, 2, 1]):
        p = logits(x0[i : i + 1])[0].softmax(0)
        rival = max((c for c in range(3) if c != wanted), key=lambda c: float(p[c]))
        assert asked[1][i] == rival
        w = 2.0 * p[rival] / (p[rival] + p[wanted])
        reference = part([rival]).x0(x[i : i + 1], 1.0, 1.0)[0]
        torch.testing.assert_close(out[i], x0[i] + w * (x0[i] - reference), rtol=1e-12, atol=1e-12)
    assert len(asked) == 2
    assert (guided.nfe, guided.classifier_calls) == (2, 1)


def test_a_sure_classifier_turns_it_off_and_an_undecided_one_weighs_half():
    assert confusion_share(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.0])).tolist() == [
        0,
        0.5,
        0.5,
    ]
    path, x = paths.EDM(), start_noise()
    inner, _ = class_denoiser(path)
    sure = ConfusionGuided(inner, lambda x0: 1e4 * torch.eye(3).double()[[0, 1, 2, 1]], 2.0)
    assert torch.equal(sure(x, 1.0), inner(x, 1.0))


def test_the_reference_may_be_a_worse_model_on_another_path():
    x = start_noise()
    (inner, _), (bad, _) = class_denoiser(paths.EDM()), class_denoiser(paths.VP.linear(), shift=0.1)
    guided = ConfusionGuided(inner, logits, 2.0, reference=bad, weight=lambda p, q: torch.ones_like(p))
    rival, _ = guided.confused(inner(x, 1.0))
    reference = class_denoiser(paths.EDM(), shift=0.1)[0].given(label=rival)
    torch.testing.assert_close(
        guided(x, 1.0), 3 * inner(x, 1.0) - 2 * reference(x, 1.0), rtol=1e-9, atol=1e-9
    )
    assert guided.nfe == 2


def test_confusion_guidance_goes_around_other_wrappers():
    path, x = paths.EDM(), start_noise()
    inner, _ = class_denoiser(path)
    free = Guided(inner, 1.5, {"label": 0})
    guided = ConfusionGuided(free, logits, 2.0)
    rival, weight = guided.confused(free(x, 1.0))
    reference = free.given(label=rival)
    wanted = free(x, 1.0) + weight.view(-1, 1, 1, 1) * (free(x, 1.0) - reference(x, 1.0))
    torch.testing.assert_close(guided(x, 1.0), wanted, rtol=1e-12, atol=1e-12)
    assert guided.nfe == 4
    other = guided.given(label=torch.tensor([2, 2, 2, 2]))
    assert other.confused(free(x, 1.0))[0].max() < 2


def test_confusion_guidance_raises_the_accuracy_of_samples():
    path = paths.EDM()
    generator = torch.Generator().manual_seed(3)
    x = 80.0 * torch.randn(400, 12, dtype=torch.float64, generator=generator)
    label = torch.randint(3, (400,), generator=generator)

    def net(x, t, label):
        each = torch.stack([part([c]).x0(x, 1.0, t) for c in range(3)])
        return each[label, torch.arange(len(x))]

    inner = as_denoiser(net, path).given(label=label)
    accuracy = [
        float((logits(sample(d, steps=8, x=x)).argmax(1) == label).double().mean())
        for d in (inner, ConfusionGuided(inner, logits, 1.5))
    ]
    assert accuracy[1] > accuracy[0] + 0.05


@pytest.mark.parametrize("label", [None, torch.tensor([0.5]), "cat"])
def test_the_class_must_be_bound_to_integers(label):
    inner = Denoiser(lambda x, t, label: x, paths.EDM())
    inner = inner if label is None else inner.given(label=label)
    with pytest.raises(ValueError, match="'label' must be bound to integers of shape"):
        ConfusionGuided(inner, logits)


def test_logits_of_another_shape_are_refused():
    inner, _ = class_denoiser(paths.EDM())
    with pytest.raises(ValueError, match=r"must give logits \(batch, classes\) for 4 samples, not \(4,\)"):
        ConfusionGuided(inner, lambda x0: x0.flatten(1).sum(1))(start_noise(), 1.0)
