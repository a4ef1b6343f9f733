"""Tiles of networks that fold and reduce: their places are multiples of the padding, at every border."""

import numpy as np
import pytest
import torch
from skimage import data

from fewstep.restoration import Restorer
from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.tiles import Tiling


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    """A network that folds by 2 and reduces once, with random weights and a short reach."""
    torch.manual_seed(0)
    config = RDDMConfig(
        network="small-unet",
        network_options={"widths": (8, 8), "blocks": 1},
        objective="pred_x0",
        solver="ddim",
        sum_scale=0.01,
        sampling_steps=2,
        padding=4,
        tasks=("denoise",),
    )
    model = RDDM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Restorer(model, device="cpu")


@pytest.mark.parametrize(("height", "width"), [(101, 90), (64, 131), (130, 130)])
@pytest.mark.parametrize("mode", ["faithful", "detailed"])
def test_tiled_equals_whole(restorer, height, width, mode):
    image = data.astronaut()[:height, :width]
    whole = restorer(image, mode=mode, tile=0).pixels.astype(int)
    tiled = restorer(image, mode=mode, tile=16).pixels.astype(int)
    assert np.abs(whole - image).mean() > 1, "the network does something"
    # Values next to a half may round the other way: float32 sums of another order.
    assert np.abs(tiled - whole).max() <= 1


def test_places_and_sides_are_multiples():
    tiling = Tiling.choose((101, 90), tile=18, pad=5, reach=5, multiple=4)
    assert (tiling.tile, tiling.pad, tiling.halo) == (20, 8, 5)
    covered = tiling.extended((101, 90))
    assert covered == (104, 92)
    for window in tiling.blender(covered).windowing.layout(covered):
        assert all(place % 4 == 0 for place in (*window.start, *window.shape))
