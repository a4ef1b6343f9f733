"""Several networks that take turns in one run."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tests.core.trainer_cases import CONFIG
from torch import nn

from fewstep.core.training import Moment, Objective, Phase, Trainer, TrainerConfig, read_log
from fewstep.core.training.ema import Ema, decay_after

TURNS = replace(CONFIG, max_steps=11, accumulate=2, log_every=1)
SGD = partial(torch.optim.SGD, lr=0.1)


def lines(rng):
    return torch.from_numpy(rng.standard_normal((4, 3), dtype=np.float32))


class Duel(Objective):
    """A fake network follows the student, twice a round; the student moves by the fake's gradient."""

    def __init__(self):
        torch.manual_seed(1)
        self.fake = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2))
        self.teacher = nn.Linear(3, 3)
        self.copies = nn.Linear(3, 3)
        self.seen = []

    def phases(self):
        fake = Phase(
            "fake", self._fake, trains=("fake",), updates=2, optimizer=partial(torch.optim.Adam, lr=0.01)
        )
        return fake, Phase("student", self._student)

    def modules(self):
        return {"fake": self.fake, "copies": self.copies}

    def frozen(self):
        return (self.teacher,)

    def after_update(self, phase, networks, moment):
        self.seen.append((phase, moment.step))
        if phase == "student":
            self.copies.load_state_dict(networks["student"].state_dict())

    def _fake(self, networks, batch, generator, moment):
        noise = torch.randn(batch.shape, generator=generator)
        made = networks["student"](batch).detach()
        return {"loss": (networks["fake"](made + noise) - made).square().mean(), "size": made.abs().mean()}

    def _student(self, networks, batch, generator, moment):
        made = networks["student"](batch)
        return (networks["fake"](made) - self.teacher(made)).square().mean()


def duel(folder, config=TURNS):
    torch.manual_seed(0)
    return Trainer(nn.Linear(3, 3), Duel(), lines, folder=folder, config=config)


def everything(run):
    tensors = [tensor for network in run.networks.values() for tensor in network.state_dict().values()]
    for model in run.ema.models.values():
        tensors += model.state_dict().values()
    for turn in run.turns.values():
        for moments in turn.optimizer.state_dict()["state"].values():
            tensors += [value for value in moments.values() if isinstance(value, torch.Tensor)]
    return tensors


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_run_that_stops_within_a_round_goes_on_bit_for_bit(tmp_path, stop):
    whole = duel(tmp_path / "a")
    whole.fit()
    schedule = lambda progress: 1.0  # noqa: E731 - max_steps differs, so the default schedule would too
    parts = []
    for steps in (stop, TURNS.max_steps):
        torch.manual_seed(0)
        config = replace(TURNS, max_steps=steps)
        run = Trainer(nn.Linear(3, 3), Duel(), lines, folder=tmp_path / "b", config=config, schedule=schedule)
        run.fit()
        parts.append(run)
    torch.manual_seed(0)
    straight = Trainer(nn.Linear(3, 3), Duel(), lines, folder=tmp_path / "c", config=TURNS, schedule=schedule)
    straight.fit()
    pairs = list(zip(everything(straight), everything(parts[-1]), strict=True))
    assert len(pairs) > 20
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not all(
        torch.equal(one, other) for one, other in zip(everything(whole), everything(straight), strict=True)
    )


def test_phases_take_turns_and_only_theirs_moves(tmp_path):
    run = duel(tmp_path, replace(TURNS, accumulate=1, max_steps=3))
    before = {name: [p.clone() for p in network.parameters()] for name, network in run.networks.items()}
    teacher = [p.clone() for p in run.objective.teacher.parameters()]

    def moved(name):
        return any(
            not torch.equal(p, q) for p, q in zip(before[name], run.networks[name].parameters(), strict=True)
        )

    run.objective.seen.clear()
    for steps, student, fake in ((2, False, True), (3, True, True)):
        run.config = replace(run.config, max_steps=steps)
        run.fit()
        assert (moved("student"), moved("fake")) == (student, fake)
    assert run.objective.seen == [("fake", 0), ("fake", 1), ("student", 0)]
    assert all(torch.equal(p, q) for p, q in zip(teacher, run.objective.teacher.parameters(), strict=True))
    for p in run.objective.fake.parameters():  # the student's phase leaves nothing behind
        assert p.grad is None
    assert run.ema.updates == 1


def test_networks_can_be_trained_again(tmp_path):
    """Whichever phase was the last, a run leaves every network as it found it, also one that failed."""

    def failing(networks, batch, generator, moment):
        raise RuntimeError("no loss")

    for steps in (2, 3):
        run = duel(tmp_path / str(steps), replace(TURNS, accumulate=1, max_steps=steps))
        run.fit()
        again = Trainer(run.model, run.objective, lines, folder=tmp_path / f"{steps} again", config=TURNS)
        assert again.fit().step == TURNS.max_steps
    broken = Bad(Phase("fake", run.objective._fake, ("fake",)), Phase("student", failing))
    with pytest.raises(RuntimeError, match="no loss"):
        Trainer(run.model, broken, lines, folder=tmp_path / "broken", config=TURNS).fit()
    assert all(p.requires_grad for net in (run.model, broken.fake) for p in net.parameters())


def test_gradients_pass_through_networks_that_stand_still(tmp_path):
    """The student of the duel has no other way to its loss than through the fake."""
    run = duel(tmp_path, replace(TURNS, accumulate=1, max_steps=3))
    run.fit()
    [student] = [
        line["student/gradient_norm"] for line in read_log(tmp_path) if "student/gradient_norm" in line
    ]
    assert student > 0


def test_every_phase_has_its_own_curve(tmp_path):
    duel(tmp_path).fit()
    names = set().union(*read_log(tmp_path))
    assert {"fake/loss", "fake/size", "student/loss", "fake/gradient_norm", "student/gradient_norm"} <= names


def test_a_run_of_another_objective_is_refused(tmp_path):
    duel(tmp_path).fit()
    with pytest.raises(ValueError, match="another network or optimiser"):
        Trainer(
            nn.Linear(3, 3), lambda net, batch, g: net(batch).mean(), lines, folder=tmp_path, config=TURNS
        ).fit()


class Bad(Duel):
    def __init__(self, *phases):
        super().__init__()
        self._phases = phases

    def phases(self):
        return self._phases


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((), "phases with different names"),
        ((Phase("a", print), Phase("a", print)), "phases with different names"),
        ((Phase("a", print, trains=("judge",)),), "trains 'judge', which is none of student, fake, copies"),
    ],
)
def test_phases_that_cannot_be_are_named(tmp_path, phases, message):
    with pytest.raises(ValueError, match=message):
        Trainer(nn.Linear(3, 3), Bad(*phases), lines, folder=tmp_path, config=TURNS)


def test_an_optimizer_for_several_phases_is_refused(tmp_path):
    net = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="several phases"):
        Trainer(net, Duel(), lines, folder=tmp_path, config=TURNS, optimizer=SGD(net.parameters()))
    with pytest.raises(ValueError, match="updates of phase 'a' must be at least 1, got 0"):
        Phase("a", print, updates=0)
    with pytest.raises(ValueError, match="trains no network"):
        Phase("a", print, trains=())


def test_a_metric_that_does_not_improve_ends_the_run(tmp_path):
    values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    config = TrainerConfig(
        max_steps=10,
        validate_every=1,
        monitor="error",
        monitor_mode="min",
        patience=2,
        device="cpu",
        tensorboard=False,
    )
    run = Trainer(
        nn.Linear(3, 3),
        lambda net, batch, g: net(batch).square().mean(),
        lines,
        folder=tmp_path,
        config=config,
        validate=lambda net: {"error": next(values)},
    )
    result = run.fit()
    assert (result.stopped, result.step, result.best) == ("no_improvement", 4, 2.0)
    with pytest.raises(ValueError, match="patience needs a metric"):
        TrainerConfig(patience=2)


def test_averages_of_each_family_follow_their_formula():
    torch.manual_seed(0)
    net = nn.Linear(1, 1, bias=False).double()
    rules = (0.9, "power:2", "half-life:5", "inverse-power:0.75")
    ema = Ema(net, rules)
    expected = dict.fromkeys(rules, net.weight.item())
    for n in range(1, 40):
        with torch.no_grad():
            net.weight.fill_(np.sin(n))
        ema.update(net)
        decays = (
            min(0.9, n / (9 + n)),
            (1 - 1 / n) ** 3,
            0.5 ** (1 / min(5.0, 0.05 * n)),
            1 - max(n - 1, 1) ** -0.75,
        )
        for rule, decay in zip(rules, decays, strict=True):
            expected[rule] = decay * expected[rule] + (1 - decay) * np.sin(n)
    for rule in rules:
        assert ema.models[rule].weight.item() == pytest.approx(expected[rule], rel=1e-12)
    # A power average of a linear ramp lags by the same share of the run at any length.
    lag = {}
    for length in (200, 2000):
        average = 0.0
        for n in range(1, length + 1):
            decay = decay_after("power:6.94", n - 1)
            average = decay * average + (1 - decay) * n
        lag[length] = 1 - average / length
    assert lag[200] == pytest.approx(lag[2000], abs=1 / 200)


@pytest.mark.parametrize("rule", ["power", "power:x", "power:-1", "life:3", 1.0, "half-life:inf"])
def test_unknown_rules_are_named(rule):
    with pytest.raises(ValueError, match="ema_decays must be numbers in"):
        TrainerConfig(ema_decays=(rule,))


def test_moments_count_the_updates_of_their_own_phase(tmp_path):
    seen = []

    class Counting(Duel):
        def _student(self, networks, batch, generator, moment):
            seen.append(moment)
            return super()._student(networks, batch, generator, moment)

    torch.manual_seed(0)
    config = replace(TURNS, accumulate=1, max_steps=9)
    Trainer(nn.Linear(3, 3), Counting(), lines, folder=tmp_path, config=config).fit()
    assert [moment.step for moment in seen] == [0, 1, 2]
    assert [moment.progress for moment in seen] == pytest.approx([2 / 9, 5 / 9, 8 / 9])
    assert isinstance(seen[0], Moment)
