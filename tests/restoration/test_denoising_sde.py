"""IR-SDE's denoiser against the published start times and ODE."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.restoration.methods.denoising_path import DenoisingODE, DenoisingPath
from fewstep.restoration.methods.denoising_sde import DenoisingSDE, DenoisingSDEConfig
from fewstep.restoration.methods.irsde_config import IRSDEConfig

SDE = load_file(Path(__file__).parents[1] / "golden" / "restoration" / "irsde_sde.safetensors")


def test_denoiser_starts_where_the_noise_is():
    path = DenoisingPath()
    _, _, sigma = path.evaluate(torch.arange(101))
    assert (sigma - SDE["dn.sigma_bars"]).abs().max() < 1e-6
    found = [path.time_of_level(level / 255) for level in (15, 25, 50)]
    assert found == SDE["dn.t_opt"].tolist()
    assert [path.time_of_level(level / 255) for level in (0, 75, 300)] == [0, 100, 100]


def test_denoiser_follows_the_published_ode():
    """x − drift, drift = −½ sigma_t² e^(−2 Theta) score dt, each image from its own start time on."""

    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x) + 0.1 * torch.sin(t.view(-1, 1, 1, 1))

    model = DenoisingSDE(DenoisingSDEConfig(), Net())
    lq = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double() - 0.5
    got = model.restore(lq, level=torch.tensor([15.0, 50.0]))
    thetas, cumulated = DenoisingPath().inner.theta.double(), SDE["dn.thetas_cumsum"].double()
    dt, most = float(SDE["dn.dt"]), 75 / 255
    for k, start in ((0, 14), (1, 38)):
        x = (lq[k : k + 1] + 1) / 2
        for t in range(start, 0, -1):
            decay = math.exp(-2 * float(cumulated[t]) * dt)
            score = -Net()(x, torch.tensor([float(t)])) / (most * math.sqrt(1 - decay))
            x = x + 0.5 * 2 * most**2 * float(thetas[t]) * decay * score * dt
        assert (got[k : k + 1] - (2 * x - 1)).abs().max() < 1e-5
    clean = model.restore(lq, level=0.0)
    assert torch.equal(clean, lq)
    one = model.restore(lq[:1], level=15.0, mode="mean")
    x = (lq[:1] + 1) / 2
    sigma = DenoisingPath().coefficients(14.0)[2]
    assert (one - (2 * (x - sigma * Net()(x, torch.tensor([14.0]))) - 1)).abs().max() < 1e-6
    assert model.restore(lq, level=30.0, solver="dpmpp-2m", steps=4).shape == lq.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenoisingSDEConfig(padding=8), "scale and padding must be 1, got 1 and 8"),
        (
            lambda: DenoisingSDEConfig(solver="ir-sde"),
            "solver must be one of 'denoising-ode', .*, got 'ir-sde'",
        ),
        (lambda: DenoisingSDEConfig(calls=101), "calls must lie in 1 … 100, the times of the path, got 101"),
        (lambda: DenoisingSDEConfig(schedule="sqrt"), "schedule must be one of"),
        (lambda: DenoisingODE().compile(IRSDEConfig().path(), (2.0, 1.0)), "denoising-ode needs a Denoising"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("level", [None, -1.0, math.nan, math.inf])
def test_bad_levels(level):
    with pytest.raises(ValueError, match="level must be "):
        DenoisingSDE(DenoisingSDEConfig(), nn.Identity()).restore(torch.zeros(2, 3, 4, 4), level=level)
