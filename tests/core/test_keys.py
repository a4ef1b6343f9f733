"""Renaming the keys of official checkpoints."""

import pytest

from fewstep.core.keys import rename, strip_prefixes


def test_wrapper_prefixes_go_as_often_as_they_are_there():
    state = {"module._orig_mod.model.a.w": 1, "module._orig_mod.model.b": 2}
    assert strip_prefixes(state) == {"a.w": 1, "b": 2}


def test_a_prefix_that_not_all_keys_have_stays():
    state = {"module.a": 1, "b": 2}
    assert strip_prefixes(state) == state


def test_a_prefix_of_the_target_stays():
    """A network whose own names begin with 'model.' keeps them."""
    state = {"module.model.a": 1, "module.model.b": 2}
    assert strip_prefixes(state, target=["model.a", "model.b", "head"]) == {"model.a": 1, "model.b": 2}
    assert strip_prefixes(state) == {"a": 1, "b": 2}


def test_a_key_that_is_nothing_but_a_prefix_stays():
    assert strip_prefixes({"module.": 1}) == {"module.": 1}
    assert strip_prefixes({}) == {}


def test_rules_apply_in_order_with_groups():
    state = {"input_blocks.3.0.in_layers.2.weight": 1}
    rules = [(r"^input_blocks\.(\d+)\.0\.", r"down.\1."), (r"in_layers\.2", "conv1")]
    assert rename(state, rules).state == {"down.3.conv1.weight": 1}


def test_report_names_everything_that_does_not_fit():
    made = rename(
        {"a": 1, "step": 2, "c": 3}, [("^a$", "x"), ("^step$", None), ("never", "y")], target=["x", "z"]
    )
    assert made.state == {"x": 1, "c": 3}
    assert made.dropped == ("step",)
    assert made.idle_rules == ("never",)
    assert made.missing == ("z",)
    assert made.unexpected == ("c",)
    assert not made.fits
    assert rename({"a": 1}, [("a", "x")], target=["x"]).fits


def test_two_keys_with_one_name_are_an_error():
    with pytest.raises(ValueError, match="'a1' and 'a2' would both be named 'a'"):
        rename({"a1": 1, "a2": 2}, [(r"\d$", "")])
