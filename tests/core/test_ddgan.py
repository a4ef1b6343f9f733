"""Denoising diffusion GAN: the chain and its posterior on every path, and the two losses."""

from typing import Any

import pytest
import torch
from tests.core.path_cases import PATHS
from torch import nn

from fewstep.core import paths, sample
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.adversarial.conditional import DenoisingDiffusionGan, PairJudge
from fewstep.core.objectives.adversarial.heads import VectorHead
from fewstep.core.objectives.adversarial.regularisers import R1
from fewstep.core.objectives.adversarial.transitions import Transitions
from fewstep.core.objectives.distances import SquaredError
from fewstep.core.solvers.first_order import FirstOrder
from fewstep.core.training import Moment

SIZE, LATER = 3, Moment(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def levels(path):
    """Start, two times inside, clean end; of tables whole numbers. Bridges start inside."""
    top = path.t_min + 0.9 * (path.t_max - path.t_min)
    inner = [top, (top + path.t_min) / 2, path.t_min + 0.1 * (top - path.t_min)]
    times = [float(round(t)) for t in inner] if path.is_discrete else inner
    return [*sorted(set(times), reverse=True), path.t_clean]


@pytest.mark.parametrize("name", PATHS)
def test_posterior_steps_are_those_of_the_ancestral_solver(name):
    path = PATHS[name]
    steps, x0, y = Transitions(path, levels(path)), noise(2, SIZE), noise(2, SIZE, seed=1)
    start, y = 1.5 * noise(2, SIZE, seed=2), y if path.uses_y else None
    draws = [noise(2, SIZE, seed=10 + i) for i in range(len(steps))]
    used = iter(draws)
    wanted = sample(
        lambda x, t: torch.tanh(x) + x0,
        path,
        FirstOrder(eta=1.0),
        grid=list(steps.times),
        x=start,
        y=y,
        noise=lambda like: next(used),
    )
    x = start
    for i in range(len(steps)):
        step = torch.full((2,), i)
        x = steps.posterior(x, torch.tanh(x) + x0, step, draws[i], y)
    torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_the_posterior_belongs_to_the_chain(name):
    """(x̂_s, x_t) has the moments of (x_s, x_t): mean a_s·x0 + b_s·y, variances, and covariance."""
    path = PATHS[name]
    steps = Transitions(path, levels(path))
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    y = zero if path.uses_y else None
    for i in range(len(steps)):
        step = torch.tensor([i])
        # Both are linear in (x0, noise, added, drawn): columns are the responses to each of them.
        made, real, noisy = [], [], []
        for column in torch.eye(4, dtype=torch.float64):
            x0, first, added, drawn = (value * one for value in column)
            x_s, x_t = steps.pair(x0, step, first, added, y)
            real.append(x_s.item())
            noisy.append(x_t.item())
            made.append(steps.posterior(x_t, x0, step, drawn, y).item())
        made, real, noisy = (torch.tensor(each, dtype=torch.float64) for each in (made, real, noisy))
        scale = noisy.abs().max().clamp_min(1)
        a_t, _, sigma_t = path.coefficients(steps.times[i])
        assert abs(noisy[0] - a_t) < 1e-10 * scale
        assert abs(noisy[1:] @ noisy[1:] - sigma_t**2) < 1e-10 * scale**2
        assert abs(made[0] - real[0]) < 1e-10
        assert abs(made[1:] @ made[1:] - real[1:] @ real[1:]) < 1e-10
        assert abs(made[1:] @ noisy[1:] - real[1:] @ noisy[1:]) < 1e-10 * scale


def objective(path=None, net=None, **options):
    path = path or paths.VP.linear()
    torch.manual_seed(0)
    pair = MLP(
        MLPConfig(shape=(2 * SIZE,), width=16, depth=2, embedding=8, classes=options.pop("classes", 0))
    )
    judge = PairJudge(pair, VectorHead(16)).double()
    return DenoisingDiffusionGan(path, "x0", levels(path), judge, **options)


def student(classes=0):
    torch.manual_seed(1)
    net = MLP(MLPConfig(shape=(SIZE,), width=16, depth=2, embedding=8, classes=classes)).double()
    nn.init.normal_(net.last.weight, std=0.3)
    return net


def losses(made, phase, batch, net: Any = None, moment=LATER, seed=0) -> tuple[Any, Any]:
    net = net or student()
    phase = {phase.name: phase for phase in made.phases()}[phase]
    networks = {"student": net, **made.modules()}
    return phase.loss(networks, batch, generator(seed), moment), net


def test_each_phase_moves_its_own():
    made = objective()
    result, net = losses(made, "judge", noise(6, SIZE), moment=Moment(0))
    result["loss"].backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(
        p.grad is not None and p.grad.any()
        for name, p in made.judge.named_parameters()
        if "net.last" not in name
    )
    made.judge.zero_grad(set_to_none=True)
    made.judge.requires_grad_(False)
    result, net = losses(made, "student", noise(6, SIZE))
    result["loss"].backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.last.weight.grad.abs().sum() > 0
    assert [phase.name for phase in made.phases()] == ["judge", "student"]
    assert objective(judge_updates=3).phases()[0].updates == 3


def test_the_penalty_is_lazy_and_by_the_scaled_cleaner_state():
    """A judge 2·sum(x_s): R1 is gamma/2·4·elements, whatever the level's scale."""

    class Sum(nn.Module):
        def forward(self, x_s, x_t, t, conditions):
            return 2 * x_s.sum(1, keepdim=True) + 0 * x_t.sum(1, keepdim=True)

    made = objective(paths.EDM(), regulariser=R1(0.02, every=15))
    made.judge = Sum()
    paid, _ = losses(made, "judge", noise(6, SIZE), moment=Moment(15))
    torch.testing.assert_close(paid["regulariser"], torch.tensor(0.01 * 4 * SIZE, dtype=torch.float64))
    free, _ = losses(made, "judge", noise(6, SIZE), moment=Moment(16))
    torch.testing.assert_close(paid["loss"], free["loss"] + paid["regulariser"])


def test_the_judge_sees_unit_states_of_neighbouring_levels():
    path, seen = paths.EDM(), []

    class Recorder(nn.Module):
        def forward(self, x_s, x_t, t, conditions):
            seen.append((x_s, x_t, t))
            return x_s.sum(1, keepdim=True)

    made = objective(path, regulariser=None)
    made.judge = Recorder()
    losses(made, "judge", noise(40_000, SIZE))
    (x_s, x_t, t), (made_s, same_t, _) = seen
    assert torch.equal(x_t, same_t)
    assert not torch.equal(x_s, made_s)
    told = path.network_time_at(torch.tensor(made.steps.times[:-1], dtype=torch.float64))
    assert set(t.float().tolist()) == set(told.float().tolist())
    for x in (x_s, x_t):
        assert abs(float(x.square().mean()) - 1) < 5 * (2 / 120_000) ** 0.5


def test_terms_compare_x0_where_the_mask_counts():
    mask = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64).expand(6, -1)
    made = objective(regulariser=None, terms=[(2.0, SquaredError())])
    data = noise(6, SIZE)
    first, net = losses(made, "student", {"x0": data, "mask": mask})
    gradient = torch.autograd.grad(
        first["loss"] - losses(objective(), "student", data, net)[0]["loss"], net.last.bias
    )
    assert gradient[0][2] == 0
    assert gradient[0][:2].abs().min() > 0
    torch.testing.assert_close(first["loss"].detach(), first["adversarial"] + first["term0"])


def test_labels_reach_student_and_judge():
    made, data = objective(classes=3, regulariser=None), noise(6, SIZE)
    values = {}
    for label in (0, 1):
        batch = {"x0": data, "label": torch.full((6,), label)}
        values[label] = [
            float(losses(made, phase, batch, student(3))[0]["loss"].detach())
            for phase in ("judge", "student")
        ]
    assert all(zero != one for zero, one in zip(values[0], values[1], strict=True))


class WithLatent(nn.Module):
    """x0 = z·w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(SIZE, dtype=torch.float64))
        self.seen = []

    def forward(self, x, t, z):
        self.seen.append(z)
        return self.w * z


def test_a_latent_is_fresh_noise_in_every_call():
    net, path = WithLatent(), paths.VP.linear()
    made = objective(path, regulariser=None, latent=("z", SIZE))
    flow = FlowMap(net, path, "x0")
    drawn = made.sample(flow, noise(50_000, SIZE), generator(3))
    assert len(net.seen) == len(made.steps)
    assert not torch.equal(net.seen[0], net.seen[1])
    # The last step leads to the clean end, where x is x0 itself.
    torch.testing.assert_close(drawn, net.seen[-1], rtol=1e-10, atol=1e-10)
    losses(made, "student", noise(4, SIZE), net)
    assert net.seen[-1].shape == (4, SIZE)


def test_bad_arguments():
    path = paths.VP.linear()
    with pytest.raises(ValueError, match="levels must be at least two decreasing times"):
        Transitions(path, [0.5, 0.5])
    with pytest.raises(ValueError, match="loss must be one of"):
        objective(loss="wgan")
    with pytest.raises(ValueError, match="updates of phase 'judge' must be at least 1, got 0"):
        objective(judge_updates=0).phases()
