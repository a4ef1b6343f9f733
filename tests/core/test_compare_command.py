"""`fewstep compare` as a user runs it, and what it measures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tests.core.commands import fewstep
from tests.core.distill_cases import REGRESSION, make_data, make_teacher

from fewstep.core.cli.compare_page import draw_chart
from fewstep.core.comparison import Comparison, Measurement, feature_distance
from fewstep.core.models import DiffusionModel
from fewstep.core.objectives.student import build_student
from fewstep.core.sampling import Sampling

SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    teacher = make_teacher(SHAPE, ("a", "b"))
    teacher.save_pretrained(folder / "tiny")
    student = build_student(teacher, REGRESSION, Sampling("consistency", 1))
    assert isinstance(student, DiffusionModel)
    student.save_pretrained(folder / "student <1>")
    make_teacher((2,)).save_pretrained(folder / "other")
    data = make_data(40, SHAPE).numpy()
    np.save(folder / "data.npy", data)
    np.savez(folder / "data.npz", x0=data, label=np.arange(40) % 2)
    (folder / "file").write_text("")
    return folder


@pytest.fixture(scope="module")
def ended(place):
    """A comparison with a report, and one with a table alone, run in one process."""
    arguments = ("--data", "data.npz", "--calls", "1,4", "--solvers", "heun,dpmpp-2m", "--features", "tiny")
    with_report = ("compare", "tiny", "student <1>", *arguments, "-o", "report", "--json")
    table = ("compare", "tiny", "--data", "data.npy", "--calls", "2", "--samples", 10)
    before = {path.name for path in place.iterdir()}
    found = fewstep(place, with_report, table)
    assert {path.name for path in place.iterdir()} == {*before, "report"}
    return found


def test_a_report(place, ended):
    ended = ended[0]
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    rows = [(row["model"], row["sampler"], row["calls"]) for row in report["measured"]]
    assert rows == [
        ("tiny", "heun", 1), ("tiny", "heun", 3), ("tiny", "dpmpp-2m", 1), ("tiny", "dpmpp-2m", 4),
        ("student <1>", "consistency", 1), ("student <1>", "consistency", 4),
    ]  # fmt: skip
    assert list(report["halves_of_the_data"]) == [
        "sliced-wasserstein",
        "energy",
        "frechet",
        "feature-frechet",
    ]
    assert json.loads((place / "report" / "compare.json").read_text()) == report
    chart = ElementTree.fromstring((place / "report" / "compare.svg").read_text())
    assert chart.tag.endswith("svg")
    page = (place / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "student &lt;1&gt;" in page
    assert "<1>" not in page
    # Self-contained: nothing is fetched.
    assert not re.search(r'(src|href)="(?!data:)', page)
    HTMLParser().feed(page)


def test_a_table(ended):
    assert ended[1].code == 0, ended[1].err
    assert "half of the data" in ended[1].out


def test_bad_input_gives_a_sentence(place):
    data = ("--data", "data.npy")
    cases = {
        ("tiny",): (2, "--data"),
        ("none", *data): (2, "there is no checkpoint 'none'"),
        ("tiny", "--data", "none.npy"): (1, "none.npy does not exist"),
        ("tiny", "other", *data): (1, "other makes samples of shape (2,), the data have (1, 4, 4)"),
        ("tiny", *data, "--calls", "one"): (2, "'one' is not numbers from 1 to 1000"),
        ("tiny", *data, "--calls", "0,1"): (2, "is not numbers from 1 to 1000"),
        ("tiny", *data, "--solvers", "magic"): (2, "'magic' is not one of"),
        ("tiny", *data, "--solvers", "ode45"): (2, "ode45 has no fixed number of network calls"),
        ("tiny", *data, "--samples", "2"): (2, "--samples"),
        ("tiny", *data, "--features", "none"): (2, "there is no checkpoint 'none'"),
        ("tiny", *data, "--device", "abacus"): (2, "--device"),
        ("tiny", *data, "-o", "file"): (1, "results cannot be written there"),
    }
    results = fewstep(place, *(("compare", *command) for command in cases))
    for (command, (code, sentence)), ended in zip(cases.items(), results, strict=True):
        assert ended.code == code, (command, ended.err)
        assert sentence in ended.err, (command, ended.err)
        assert "Traceback" not in ended.err


def test_the_data_themselves_have_no_distance():
    data = make_data(64)
    floor = Comparison(torch.cat([data, data])).floor()
    assert floor["sliced-wasserstein"] == pytest.approx(0, abs=1e-12)
    assert floor["frechet"] == pytest.approx(0, abs=1e-9)


def test_a_model_that_makes_the_data_is_at_the_floor():
    """A perfect denoiser of one point makes that point with any number of calls."""
    point = torch.tensor([0.3, -0.2])
    data = point + 1e-4 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    model = make_teacher()

    class Exact(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own = torch.nn.Parameter(point.clone())

        def forward(self, x, t):
            return self.own.expand_as(x)

    model.net = Exact()
    model.config = replace(model.config, prediction="x0")
    for one in Comparison(data, calls=(1, 5), solver_names=("ddim", "heun")).of("exact", model):
        assert one.metrics["sliced-wasserstein"] < 1e-3
    assert one.calls == 5


def test_labels_are_told_to_models_that_have_them():
    """The same data under other labels are other samples; a model without classes is told nothing."""
    data, label = make_data(16), torch.arange(16) % 2
    made = []
    for told in (label, 1 - label):
        comparison = Comparison(data, {"label": told}, calls=(2,))
        [one] = comparison.of("labelled", make_teacher(labels=("a", "b")))
        made.append(one.shown)
        [_] = comparison.of("plain", make_teacher())
    assert not torch.equal(made[0], made[1])


def test_features_see_what_pixels_do_not_need_to():
    model, data = make_teacher(SHAPE), make_data(64, SHAPE)
    distance = feature_distance(model)
    assert float(distance(data, data)) == pytest.approx(0, abs=1e-6)
    assert float(distance(data, data + 1)) > 1e-3
    model.net = torch.nn.Identity()
    with pytest.raises(ValueError, match="features need a network that has them"):
        feature_distance(model)


def test_too_little_is_refused():
    for wrong, message in (
        ({"data": make_data(3)}, "at least 4 samples, got 3"),
        ({"calls": ()}, "calls must be positive"),
        ({"calls": (0,)}, "calls must be positive"),
        ({"solver_names": ("ode45",)}, "no fixed number"),
    ):
        with pytest.raises(ValueError, match=message):
            Comparison(**{"data": make_data(), **wrong})


def test_distances_that_cannot_be_drawn_are_left_out():
    values = (float("inf"), -0.01, 0.5)
    found = [
        Measurement("m", "heun", i + 1, {"energy": v}, 1.0, torch.zeros(1, 2)) for i, v in enumerate(values)
    ]
    chart = draw_chart(found, {"energy": -1.0})
    ElementTree.fromstring(chart)
    assert chart.count("<circle") == 1
    assert "nan" not in chart
    assert "inf" not in chart
