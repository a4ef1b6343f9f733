"""Checkpoints with objects beside the weights: what they say is read, what they ask for is not done."""

import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.core.weights import CheckpointError
from fewstep.policy.converters.inert_pickle import Call, Named, read_inert
from fewstep.policy.converters.torch_archive import TorchArchive, plain_settings

VALUES = {
    "numbers": [0, 255, 65_535, -7, 2**40, -(2**80), 1.5],
    "texts": ("", "ü", "x" * 300),
    "nothing": None,
    "both": [True, False],
    "pairs": {(1, "a"): {}, (): ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))},
}


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def changed(source: Path, target: Path, entry: str, content: bytes, how: int = zipfile.ZIP_STORED) -> Path:
    """A copy of an archive in which one entry holds something else."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w", how) as after:
        for name in before.namelist():
            after.writestr(name, content if name.endswith(entry) else before.read(name))
    return target


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_those_of_pickle(protocol: int) -> None:
    assert read_inert(pickle.dumps(VALUES, protocol)) == VALUES


def test_shared_parts_stay_shared() -> None:
    part: list[Any] = []
    first, second = read_inert(pickle.dumps((part, part), 2))
    first.append(3)
    assert second == [3]


def test_nothing_is_called_or_imported(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    note = read_inert(pickle.dumps(Hostile(mark), 2))
    assert isinstance(note, Call)
    assert not mark.exists()
    # A module that exists and that nobody has imported.
    assert "this" not in sys.modules
    assert read_inert(b"cthis\nd\n.") == Named("this", "d")
    assert "this" not in sys.modules


def test_tensors_are_those_that_were_saved(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    base = torch.arange(24.0).reshape(4, 6)
    group = OrderedDict(
        whole=base,
        part=base[1:3, ::2],
        transposed=base.T,
        scalar=torch.tensor(3),
        none=torch.zeros(0, 5),
        half=torch.ones(2, dtype=torch.bfloat16),
        parameter=torch.nn.Parameter(torch.ones(2)),
        flags=torch.tensor([True, False]),
    )
    content = {"evil": Hostile(mark), "state_dicts": {"model": group}, "epoch": 3}
    archive = TorchArchive(saved(tmp_path / "file.ckpt", content))
    found = archive.tensors(archive.content["state_dicts"]["model"])
    assert found.keys() == group.keys()
    for name, value in group.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value.detach()), name
    assert archive.tensors(archive.content["evil"]) == {}
    assert not mark.exists()


def test_a_real_object_beside_the_weights_stays_unmade(tmp_path: Path) -> None:
    """torch itself runs this file when it is told to trust it, so the file is as bad as it looks."""
    mark = tmp_path / "was-run"
    file = saved(tmp_path / "bad.ckpt", {"cfg": Hostile(mark), "state_dicts": {}})
    archive = TorchArchive(file)
    assert plain_settings(archive.content["cfg"]) is None
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()


def test_configurations_that_would_not_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    assert plain_settings(loop) == {"a": 1, "self": None}
    wide: list[Any] = [1]
    for _ in range(60):  # 2^60 entries if each part were copied
        wide = [wide, wide]
    assert plain_settings({"x": wide})["x"][0]
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(CheckpointError, match="nested too deeply"):
        plain_settings(deep)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02",  # no end
        b"0.",  # takes from an empty stack
        b"e.",
        b"R.",
        b"]K\x01K\x02s.",  # a list with a key
        b"j\x00\x00\x00\x00.",  # what was never put aside
        b"}]K\x01s.",  # a list as a key
        b"(K\x01d.",  # half a pair
        b"\x82\x01.",  # an extension, which names a global by number
        b"(ios\nsystem\n.",  # INST
        b"not a pickle",
        b"",
    ],
)
def test_what_no_pickler_wrote(pickled: bytes) -> None:
    with pytest.raises(ValueError, match="the pickle in it is not understood"):
        read_inert(pickled)


def test_damaged_archives(tmp_path: Path) -> None:
    """One sentence that names the file, and how to save the weights alone where that helps."""
    whole = saved(tmp_path / "whole", {"model": {"w": torch.arange(6.0).reshape(2, 3)}})
    with zipfile.ZipFile(whole) as archive:
        pickled = archive.read("whole/data.pkl")
    numbers = changed(whole, tmp_path / "short", "data/0", struct.pack("<2f", 1, 2))
    squeezed = changed(whole, tmp_path / "squeezed", "data/0", bytes(24), zipfile.ZIP_DEFLATED)
    absent = tmp_path / "absent"
    with zipfile.ZipFile(absent, "w") as archive:
        archive.writestr("absent/data.pkl", pickled)
    for file, words in ((numbers, "damaged"), (absent, "damaged")):
        found = TorchArchive(file)
        with pytest.raises(CheckpointError, match=words) as caught:
            found.tensors(found.content["model"])
        assert str(file) in str(caught.value)
    for file, words in (
        (squeezed, "compressed"),
        (changed(whole, tmp_path / "odd", "data.pkl", b"\x82\x01."), r"EXT1.*weights\.pth"),
        (changed(whole, tmp_path / "big", "byteorder", b"big"), "order of bytes"),
        (tmp_path / "none", "is not a file written by torch.save"),
    ):
        with pytest.raises(CheckpointError, match=words):
            TorchArchive(file)
