"""Which device and which precision a name means."""

import pytest
import torch

from fewstep.core.devices import pick_device, pick_dtype


def test_bad_devices_are_named():
    with pytest.raises(ValueError, match=r"device.*'warp'"):
        pick_device("warp")
    with pytest.raises(ValueError, match=r"dtype.*'int4'"):
        pick_dtype("int4", torch.device("cpu"))
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("bf16", torch.device("cpu")) == torch.bfloat16
