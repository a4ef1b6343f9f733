"""R1 and its approximation, on judges whose slope is known."""

from typing import Any

import pytest
import torch
from torch import nn

from fewstep.core import paths
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.adversarial.heads import QueryHead
from fewstep.core.objectives.adversarial.regularisers import R1, ApproximateR1
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.training import Moment

SIZE = 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def quadratic():
    """l(x) = ½·xᵀ·A·x + bᵀ·x, with symmetric A."""
    a = noise(SIZE, SIZE, seed=1)
    a = (a + a.T).requires_grad_()
    b = noise(SIZE, seed=2).requires_grad_()
    return a, b, lambda x: ((x @ a * x).sum(1) / 2 + x @ b).unsqueeze(1)


def test_r1_and_its_gradient_in_closed_form():
    """gamma/2·‖A·x + b‖²; by b gamma·(A·x + b), by A gamma·(A·x + b)·xᵀ, made symmetric as A's use is."""
    a, b, judge = quadratic()
    x, gamma = noise(5, SIZE), 0.7
    penalty: Any = R1(gamma)(judge, x, generator(), Moment())
    slope = (x @ a + b).detach()
    torch.testing.assert_close(penalty.detach(), gamma / 2 * slope.square().sum(1), rtol=1e-12, atol=0)
    by_a, by_b = torch.autograd.grad(penalty.sum(), (a, b))
    torch.testing.assert_close(by_b, gamma * slope.sum(0), rtol=1e-12, atol=1e-12)
    outer = gamma * slope.T @ x
    # x@a*x differentiates into both orders of the product.
    torch.testing.assert_close(by_a, (outer + outer.T) / 2, rtol=1e-12, atol=1e-12)


def test_r1_takes_the_mean_of_a_samples_logits_and_needs_no_open_graph():
    a, b, judge = quadratic()
    x = noise(4, SIZE)
    with torch.no_grad():
        once: Any = R1(2.0)(judge, x, generator(), Moment())
        twice: Any = R1(2.0)(lambda x: torch.cat([judge(x), -judge(x)], dim=1), x, generator(), Moment())
    torch.testing.assert_close(once.detach(), (x @ a + b).detach().square().sum(1))
    assert twice.abs().max() < 1e-24


def test_lazy_r1_is_paid_every_so_many_updates():
    _, _, judge = quadratic()
    lazy = R1(0.02, every=15)
    paid = [step for step in range(40) if lazy(judge, noise(2, SIZE), generator(), Moment(step)) is not None]
    assert paid == [0, 15, 30]


def test_approximate_r1_is_the_difference_at_its_own_noise():
    _, _, judge = quadratic()
    x, sigma = noise(6, SIZE), 0.3
    moved = x + sigma * normal_like(x, generator(4))
    wanted = 100 * (judge(x) - judge(moved)).square().squeeze(1)
    got = ApproximateR1(100.0, sigma)(judge, x, generator(4), Moment())
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)


def test_approximate_r1_tends_to_r1_with_the_square_of_sigma():
    """For a quadratic judge its mean is weight·(sigma²·‖g‖² + sigma⁴/4·(2·tr A² + (tr A)²)), g = A·x + b."""
    a, b, judge = quadratic()
    count, weight = 1_000_000, 1.0
    x = noise(1, SIZE, seed=7)
    slope = (x @ a + b).detach().square().sum()
    curve = ((2 * (a @ a).trace() + a.trace() ** 2) / 4).detach()
    for sigma in (0.4, 0.2, 0.1):
        with torch.no_grad():
            each = ApproximateR1(weight, sigma)(judge, x.expand(count, -1), generator(8), Moment())
        each = each / sigma**2
        error = each.std() / count**0.5
        assert abs(each.mean() - slope - sigma**2 * curve) < 5 * error
        # The rate can be told apart from the limit at the largest sigma.
        assert sigma < 0.4 or sigma**2 * curve > 20 * error
    exact: Any = R1(2 * weight * 0.1**2)(judge, x, generator(), Moment())
    torch.testing.assert_close(exact.detach(), weight * 0.1**2 * slope[None])


def test_the_judge_pays_for_its_slope_at_data_only():
    class Sloped(nn.Module):
        def forward(self, features, t):
            return 3 * features[0].sum(1, keepdim=True)

    head = AdversarialHead(paths.EDM(), Sloped(), lambda x, t: x, regulariser=R1(0.5))
    data = noise(4, SIZE)
    losses = head.judge_loss(head.modules(), data, -data, SampleBatch(data), generator(), Moment())
    torch.testing.assert_close(losses["regulariser"], torch.tensor(0.25 * 9 * SIZE, dtype=torch.float64))
    plain = AdversarialHead(paths.EDM(), Sloped(), lambda x, t: x)
    without = plain.judge_loss(plain.modules(), data, -data, SampleBatch(data), generator(), Moment())
    torch.testing.assert_close(losses["loss"], without["loss"] + losses["regulariser"])
    assert "regulariser" not in without


def test_attention_heads_have_a_second_derivative():
    torch.manual_seed(0)
    head = QueryHead(8, heads=2).double()
    penalty: Any = R1(1.0)(lambda x: head([x], x[:, 0, 0]), noise(3, 5, 8), generator(), Moment())
    penalty.sum().backward()
    assert head.query.grad is not None
    assert head.query.grad.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: R1(-1.0), "gamma must be at least 0, got -1.0"),
        (lambda: R1(every=0), "every must be at least 1, got 0"),
        (lambda: ApproximateR1(-1.0), "weight must be at least 0, got -1.0"),
        (lambda: ApproximateR1(sigma=0.0), "sigma must be positive, got 0.0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
