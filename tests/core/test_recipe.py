"""DistillRecipe and the options of methods: what is written is what is read, and nonsense is refused."""

import inspect
import json
import math
from dataclasses import replace

import pytest
from tests.core.distill_cases import REGRESSION

from fewstep.core.objectives import methods
from fewstep.core.objectives.method_options import checked_options, options_of, parsed_options
from fewstep.core.objectives.recipe import DistillRecipe


def test_a_recipe_comes_back_from_its_file(tmp_path):
    recipe = DistillRecipe(
        "cd", {"norm": "l1", "times": [0.5, 0.25]}, steps=2, updates=7, betas=(0.0, 0.99), ema="power:16.97"
    )
    recipe.save(tmp_path / "recipe.json")
    assert DistillRecipe.load(tmp_path / "recipe.json") == recipe
    assert json.loads((tmp_path / "recipe.json").read_text())["betas"] == [0.0, 0.99]


def test_options_with_tuples_are_those_of_the_file():
    assert DistillRecipe("cd", {"times": (0.5,)}) == DistillRecipe("cd", {"times": [0.5]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"method": "cd", "updtes": 3}', "updtes"),
        ('{"updates": 0}', "updates must be a whole number from 1, got 0"),
        ("[1]", "must be a JSON object"),
        ("{", "is not JSON"),
        ('{"betas": "ab"}', "betas"),
        ('{"learning_rate": "fast"}', "learning_rate"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        DistillRecipe.load(tmp_path / "recipe.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        DistillRecipe.load(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be None or a whole number from 1, got 0"),
        ({"updates": True}, "updates"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"max_minutes": -1.0}, "max_minutes"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup": 1.0}, "warmup must lie in"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"guidance": math.inf}, "guidance"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw, radam"),
        ({"schedule": "step"}, "schedule"),
        ({"precision": "fp8"}, "precision"),
        ({"metric": "fid"}, "metric must be one of sliced-wasserstein, energy"),
        ({"ema": 1.0}, "ema must be None"),
        ({"ema": "half:2"}, "ema must be None"),
        ({"options": {"net": object()}}, "options must be what JSON can hold"),
        ({"method": ""}, "method must be a name"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DistillRecipe(**values)


def test_a_method_has_its_own_settings_and_the_user_the_last_word():
    recipe = DistillRecipe.of(REGRESSION, "regression", updates=5)
    assert (recipe.method, recipe.learning_rate, recipe.updates) == ("regression", 0.01, 5)
    with pytest.raises(ValueError, match="rate, which DistillRecipe does not know"):
        DistillRecipe.of(replace(REGRESSION, settings={"rate": 1}), "regression")


def test_a_longer_run_is_the_same_recipe_and_another_rate_is_not():
    recipe = DistillRecipe("cd", updates=5)
    assert recipe.changes(recipe.with_values(updates=9, max_minutes=2.0)) == {}
    assert recipe.changes(recipe.with_values(learning_rate=0.5)) == {"learning_rate": (1e-4, 0.5)}


@pytest.mark.parametrize("name", methods.names())
def test_the_settings_of_every_method_are_fields_of_a_recipe(name):
    method = methods.get(name)
    recipe = DistillRecipe.of(method, name)
    assert recipe.method == name
    parameters = list(inspect.signature(method.make).parameters.values())[1:]
    assert [option.default for option in parameters].count(inspect.Parameter.empty) == 0
    assert list(options_of(method)) == [parameter.name for parameter in parameters]


def test_options_are_parsed_by_their_types():
    texts = ["factor=2", "norm=l1", "times=0.5, 0.25", "count=3"]
    assert parsed_options(REGRESSION, texts) == {
        "factor": 2.0, "norm": "l1", "times": (0.5, 0.25), "count": 3,
    }  # fmt: skip
    assert parsed_options(REGRESSION, ["count=none", "times="]) == {"count": None, "times": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("factor", "must be name=value, got 'factor'"),
        ("=1", "must be name=value"),
        ("speed=1", r"no option 'speed'; its options: factor \(a number\), norm \(one of l1, l2\)"),
        ("factor=fast", "option factor must be a number, got 'fast'"),
        ("factor=true", "option factor must be a number"),
        ("norm=l3", "option norm must be one of l1, l2, got 'l3'"),
        ("count=1.5", "option count must be a whole number or none"),
        ("times=1,x", "option times must be a numbers? separated by commas|option times"),
    ],
)
def test_options_that_do_not_fit_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parsed_options(REGRESSION, [text])


def test_options_of_a_recipe_keep_their_types():
    assert checked_options(REGRESSION, {"factor": 2, "times": [0.5]}) == {"factor": 2.0, "times": (0.5,)}
    for wrong in ({"factor": "2"}, {"factor": True}, {"norm": 1}, {"count": 1.0}, {"times": 0.5}):
        with pytest.raises(ValueError, match="must be"):
            checked_options(REGRESSION, wrong)
