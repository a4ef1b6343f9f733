"""Weight files of all kinds; files that must not be loaded."""

import os
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from fewstep.core.weights import CheckpointError, load_state_dict_file


@pytest.mark.parametrize(
    "writer", ["safetensors", "safetensors named .pt", "torch", "legacy torch", "nested"]
)
def test_state_dict_files_of_all_kinds(tmp_path, writer):
    state = OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2, dtype=torch.bfloat16))
    path = tmp_path / ("w.safetensors" if writer == "safetensors" else "w.pt")
    if writer.startswith("safetensors"):
        save_file(state, path)
    elif writer == "legacy torch":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(
            {"step": 3, "params_ema": state, "params": {"a": torch.zeros(1)}}
            if writer == "nested"
            else state,
            path,
        )
    loaded = load_state_dict_file(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    if writer == "nested":
        assert load_state_dict_file(path, key="params")["a"].shape == (1,)
        with pytest.raises(
            CheckpointError, match=r"key must .* entry of .*w\.pt \(step, params_ema, params\)"
        ):
            load_state_dict_file(path, key="weights")


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True, "plain pickle"])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, legacy):
    content = {"a": torch.zeros(1), "bomb": Bomb(tmp_path / "ran")}
    path = tmp_path / "evil.pt"
    if legacy == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_state_dict_file(path)
    assert not (tmp_path / "ran").exists()
    if legacy != "plain pickle":
        with pytest.raises(CheckpointError, match="could run code; it is refused"):
            load_state_dict_file(path)


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "text", "cut torch", "cut safetensors", "no tensors", "list"]
)
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / ("w.safetensors" if "safetensors" in damage else "w.pt")
    state = {"a": torch.zeros(1000)}
    if damage == "empty":
        path.touch()
    elif damage == "text":
        path.write_text("these are not weights, just words")
    elif damage == "cut torch":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "cut safetensors":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "no tensors":
        torch.save({"epoch": 3}, path)
    elif damage == "list":
        torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match=path.name):
        load_state_dict_file(path)
