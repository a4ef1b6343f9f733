"""DenoisingObjective: the published losses, equivalences between errors, conditions, learned weights."""

import json
import math
from pathlib import Path as File

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.core import paths
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.denoising import ConditionDropout, DenoisingObjective, Error
from fewstep.core.objectives.distances import PseudoHuber, SquaredError
from fewstep.core.objectives.loss_history import LossHistory
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.times import Fixed, UniformClock, UShaped, time_sampler
from fewstep.core.objectives.uncertainty import Uncertainty
from fewstep.core.objectives.weights import WEIGHTS, snr_at
from fewstep.core.training import Moment, Trainer, TrainerConfig

FOLDER = File(__file__).parents[1] / "golden" / "distill"
PATHS = {
    "edm": paths.EDM(),
    "vp": paths.VP.linear(),
    "flow": paths.RectifiedFlow(time="t"),
    "table": paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000).tolist()),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class Closed(nn.Module):
    """A function of the network's input, told time and three parameters."""

    def __init__(self, p, function):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=torch.float64))
        self.function = function

    def forward(self, x, t):
        return self.function(self.p, x, t.reshape(-1, *[1] * (x.ndim - 1)))


def loss_of(objective, net, batch):
    found = objective.loss(net, batch, seeded(), Moment())
    assert isinstance(found, dict)
    return found["loss"]


def golden(name):
    told = json.loads((FOLDER / f"{name}.json").read_text())
    return told, load_file(FOLDER / f"{name}.safetensors")


def consistency_net(told):
    # The golden's network is told 250·ln(sigma), EDM's path tells ln(sigma)/4.
    return Closed(
        told["student_p"], lambda p, x, t: p[0] * torch.tanh(x) + p[1] * x + p[2] * torch.cos(10 * t)
    )


def score_net(told):
    return Closed(told["fake_p"], lambda p, x, t: p[0] * torch.tanh(x) + p[1] + p[2] * torch.sin(4 * t))


def test_the_loss_of_consistency_models_training():
    told, tensors = golden("consistency_models")
    net, objective = consistency_net(told), DenoisingObjective(paths.EDM(), "edm")
    batch = SampleBatch(tensors["in.x_start"], tensors["in.noise"])
    losses = objective.error(net, batch, tensors["in.dsm.sigmas"], seeded())
    plain = DenoisingObjective(paths.EDM(), "edm", Error("x0"))
    torch.testing.assert_close(losses, tensors["out.dsm.loss"], rtol=1e-12, atol=0)
    unweighted = plain.error(net, batch, tensors["in.dsm.sigmas"], seeded())
    torch.testing.assert_close(unweighted, tensors["out.dsm.xs_mse"], rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(losses.mean(), net.p)
    torch.testing.assert_close(gradient, tensors["out.dsm.grad_p"], rtol=1e-12, atol=0)


def test_the_fake_score_s_loss_of_edm():
    told, tensors = golden("score_and_flow_losses")
    net = score_net(told)
    objective = DenoisingObjective(paths.EDM(), "edm", Error("x0", "karras", SquaredError(total=True)))
    sigma = (told["P_std"] * tensors["in.z_normal"] + told["P_mean"]).exp()
    batch = SampleBatch(tensors["in.images"], tensors["in.noise_after_normal"])
    losses = objective.error(net, batch, sigma, seeded())
    wanted = tensors["out.fake_score_edm.loss"].flatten(1).sum(1)
    torch.testing.assert_close(losses, wanted, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), net.p)
    torch.testing.assert_close(gradient, tensors["out.fake_score_edm.grad_p"], rtol=1e-12, atol=0)


def test_the_fake_score_s_loss_of_dmd2():
    told, tensors = golden("score_and_flow_losses")
    net, objective = score_net(told), DenoisingObjective(paths.EDM(), "edm")
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = (low + tensors["in.dmd2.fake.index"] / 999 * (high - low)) ** 7
    batch = SampleBatch(tensors["in.images"], tensors["in.dmd2.fake.noise"])
    loss = objective.error(net, batch, sigma.double(), seeded()).mean()
    # The published grid of noise levels is float32.
    torch.testing.assert_close(loss, tensors["out.dmd2.loss_fake"][0], rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, net.p)
    torch.testing.assert_close(gradient, tensors["out.dmd2.fake.grad_p"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_errors_of_x0_eps_and_velocity_differ_by_their_weights(name):
    path = PATHS[name]
    net = Closed([0.3, 0.2, 0.1], lambda p, x, t: p[0] * torch.tanh(x) + p[1] * x + p[2])
    batch, t = SampleBatch(drawn(6, 3), drawn(6, 3, seed=2)), UniformClock(0.05, 0.95)(path, 6, seeded())

    def error(prediction, *errors):
        return DenoisingObjective(path, prediction, errors).error(net, batch, t, seeded())

    for prediction in ("x0", "eps", "edm"):
        by_weight = error(prediction, Error("x0", "velocity"))
        torch.testing.assert_close(error(prediction, Error("velocity")), by_weight, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        error("eps", Error("output")), error("eps", Error("x0", "snr")), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(error("x0", Error("output")), error("x0", Error("x0")), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        error("edm", Error("output")), error("edm", Error("x0", "karras")), rtol=1e-9, atol=0
    )
    both = error("edm", Error("x0", "snr"), Error("velocity", "1/tau", PseudoHuber()))
    parts = error("edm", Error("x0", "snr")), error("edm", Error("velocity", "1/tau", PseudoHuber()))
    torch.testing.assert_close(both, sum(parts))


def test_a_velocity_network_on_rectified_flow_is_flow_matching():
    net = Closed([0.3, 0.2, 0.1], lambda p, x, t: p[0] * torch.tanh(x) + p[1] * x * t + p[2])
    x0, noise, t = drawn(6, 3), drawn(6, 3, seed=2), torch.rand(6, dtype=torch.float64, generator=seeded(3))
    objective = DenoisingObjective(PATHS["flow"], "velocity", Error("velocity"))
    x = (1 - t[:, None]) * x0 + t[:, None] * noise
    wanted = (net(x, t) - (noise - x0)).square().mean(1)
    torch.testing.assert_close(
        objective.error(net, SampleBatch(x0, noise), t, seeded()), wanted, rtol=1e-9, atol=0
    )


def test_paths_with_a_degraded_input():
    path = paths.MeanReverting()
    net = Closed([0.3, 0.2, 0.1], lambda p, x, t: p[0] * x + p[1])
    x0, noise, y = drawn(5, 2), drawn(5, 2, seed=2), drawn(5, 2, seed=3)
    t = UniformClock()(path, 5, seeded())
    objective = DenoisingObjective(path, "x0", Error("x0"))
    a, b, sigma = (c[:, None] for c in path.evaluate(t))
    told = a * x0 + b * y + sigma * noise
    wanted = (0.3 * told + 0.2 - x0).square().mean(1)
    torch.testing.assert_close(objective.error(net, SampleBatch(x0, noise, y), t, seeded()), wanted)
    with pytest.raises(ValueError, match="y"):
        objective.error(net, SampleBatch(x0, noise), t, seeded())


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_weights_are_positive_and_finite(name, path):
    weight = WEIGHTS[name](path, UniformClock(0.01, 0.99)(path, 64, seeded()))
    assert weight.shape == (64,)
    assert bool((weight.isfinite() & (weight > 0)).all())


def test_values_of_the_newer_weights():
    path, t = paths.EDM(), torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    snr = snr_at(path, t)
    torch.testing.assert_close(
        WEIGHTS["min-snr"](path, t), torch.tensor([5.0, 1.0, 1 / 16], dtype=torch.float64)
    )
    torch.testing.assert_close(WEIGHTS["sigmoid"](path, t), snr / (1 + math.exp(-2) * snr))
    torch.testing.assert_close(WEIGHTS["p2"](path, t), snr / (1 + snr))
    torch.testing.assert_close(WEIGHTS["velocity"](path, t), ((1 + t) / t) ** 2)
    torch.testing.assert_close(WEIGHTS["tau^2"](path, t), (t / (1 + t)) ** 2)


def test_time_samplers_have_their_distributions():
    path, count = PATHS["flow"], 40_000
    tau = UniformClock(0.2, 0.6)(path, count, seeded())
    assert float(tau.min()) >= 0.2
    assert float(tau.max()) <= 0.6
    assert float(tau.mean()) == pytest.approx(0.4, abs=4 * 0.4 / math.sqrt(12 * count))
    tau = UShaped(4.0)(path, count, seeded())
    # E[(tau − 1/2)²] under exp(a·tau) + exp(a·(1 − tau)), by quadrature.
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    density = (4 * grid).exp() + (4 * (1 - grid)).exp()
    wanted = float(((grid - 0.5) ** 2 * density).sum() / density.sum())
    assert float((tau - 0.5).square().mean()) == pytest.approx(wanted, abs=4 * 0.08 / math.sqrt(count))
    assert isinstance(time_sampler("u-shaped"), UShaped)
    with pytest.raises(ValueError, match="times must be one of"):
        time_sampler("often")


def test_dropped_labels():
    batch = SampleBatch(
        torch.zeros(4000, 2), conditions={"label": torch.arange(4000) % 7, "gain": torch.ones(4000, 3)}
    )
    found = ConditionDropout({"label": 7, "gain": 0.0}, 0.25)(batch, seeded())
    dropped = found.conditions["label"] == 7
    assert float(dropped.double().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 4000))
    assert bool((found.conditions["label"][~dropped] == batch.conditions["label"][~dropped]).all())
    assert bool(((found.conditions["gain"] == 0).all(1) == dropped).all())
    assert found.conditions["label"].dtype == torch.long
    with pytest.raises(ValueError, match="null names 'text'"):
        ConditionDropout({"text": 0})(batch, seeded())


def test_a_network_learns_its_null_label():
    net = MLP(MLPConfig(shape=(2,), width=16, depth=1, classes=2))
    objective = DenoisingObjective(
        paths.EDM(), "edm", dropout=ConditionDropout({"label": 2}, 1.0), times=Fixed(1.0)
    )
    batch = {"x0": torch.ones(8, 2), "label": torch.tensor([0, 1] * 4)}
    # The last layer begins at zero and would let no gradient through.
    nn.init.normal_(net.last.weight, generator=seeded())
    loss_of(objective, net, batch).backward()
    labels = net.embedding.labels
    assert labels is not None
    assert labels.weight.grad is not None
    moved = labels.weight.grad.abs().sum(1)
    assert moved[2] > 0
    assert float(moved[:2].sum()) == 0


def test_uncertainty_learns_the_logarithm_of_the_loss():
    head, path = Uncertainty().double(), paths.EDM()
    t = torch.tensor([0.02, 0.3, 5.0], dtype=torch.float64)
    assert float(head(path, t).detach().abs().max()) == 0
    losses = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        u = head(path, t)
        value = (losses * torch.exp(-u) + u).mean()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(head(path, t), losses.log(), rtol=0, atol=1e-3)


def test_history_and_uncertainty_train_and_resume_exactly(tmp_path):
    def run(folder, *, halves):
        path = PATHS["flow"]
        torch.manual_seed(0)
        net = MLP(MLPConfig(shape=(2,), width=8, depth=1))
        history, uncertainty = LossHistory(path, bins=2, length=2), Uncertainty()
        objective = DenoisingObjective(
            path, "velocity", Error("velocity"), times=history, uncertainty=uncertainty
        )

        def data(generator):
            return torch.from_numpy(generator.standard_normal((16, 2)).astype("float32"))

        for steps in (6, 12) if halves else (12,):
            config = TrainerConfig(max_steps=12, device="cpu", tensorboard=False)
            trainer = Trainer(net, objective, data, folder=folder, config=config, schedule=lambda _: 1.0)
            trainer.config = TrainerConfig(max_steps=steps, device="cpu", tensorboard=False)
            trainer.fit()
        return net.state_dict(), history.state_dict(), uncertainty.state_dict()

    whole, parts = run(tmp_path / "a", halves=False), run(tmp_path / "b", halves=True)
    for one, other in zip(whole, parts, strict=True):
        for name in one:
            assert bool((one[name] == other[name]).all()), name
    assert int(whole[1]["count"].sum()) == 12 * 16
    assert float(whole[2]["last.bias"].abs()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4), (3, 5)])
def test_any_shape_and_dtype(shape, dtype):
    net = Closed([0.3, 0.2, 0.1], lambda p, x, t: p.to(x.dtype)[0] * x).to(dtype)
    batch = torch.randn(6, *shape, dtype=dtype, generator=seeded())
    loss, again = (loss_of(DenoisingObjective(paths.EDM(), "edm"), net, batch) for _ in range(2))
    assert loss.dtype == dtype
    assert loss == again


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="of must be one of x0, output, velocity, got 'noise'"):
        Error("noise")
    with pytest.raises(ValueError, match="weight must be one of"):
        Error("x0", "heavy")
    with pytest.raises(ValueError, match="errors must hold"):
        DenoisingObjective(paths.EDM(), "edm", ())
    with pytest.raises(ValueError, match="probability must lie in"):
        ConditionDropout({"label": 1}, 1.5)
    with pytest.raises(ValueError, match="null must name"):
        ConditionDropout()
    with pytest.raises(ValueError, match="floor must lie"):
        LossHistory(paths.EDM(), floor=2.0)
