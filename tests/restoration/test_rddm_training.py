"""RDDM's training: the published loss, the targets of every objective, the automatic choice of one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.methods.rddm_config import OBJECTIVES
from fewstep.restoration.methods.rddm_training import AOSA, rddm_loss

TENSORS = load_file(Path(__file__).parents[1] / "golden" / "restoration" / "rddm_sampler.safetensors")


class ClosedForm(nn.Module):
    """The functions that stand for two networks in the golden file."""

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        time = t.view(-1, 1, 1, 1)
        residual = 0.3 * x.tanh() - 0.2 * lq + 0.05 * (time / 100).sin()
        return torch.cat([residual, 0.8 * (0.7 * x - 0.1 * lq).tanh() + 0.02 * (time / 50).cos()], dim=1)


def test_loss_equals_published():
    model = RDDM(RDDMConfig(padding=1), network=ClosedForm())
    x0, y = 2 * TENSORS["q.in.x0_01"] - 1, 2 * TENSORS["q.in.y01"] - 1
    t, noise = TENSORS["q.in.t"], TENSORS["q.in.noise"]
    torch.testing.assert_close(model.path.corrupt(x0, t, noise, y), TENSORS["q.out.xt"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rddm_loss(model, x0, y, t, noise), TENSORS["q.out.loss_l1"], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="loss must be one of 'l1', 'l2', got 'huber'"):
        rddm_loss(model, x0, y, t, noise, loss="huber")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_targets_and_conversions_agree(objective):
    """A network that says its target is right at every time, whichever objective it has."""
    prediction, path = OBJECTIVES[objective], RDDMConfig(schedule="converted").path()
    x0, y, eps = torch.randn(3, 4, 3, 5, 5, dtype=torch.float64)
    t = torch.tensor([0.0, 10.0, 500.0, 999.0], dtype=torch.float64)
    x = path.corrupt(x0, t, eps, y)
    out = prediction.target(path, t, x0, eps, y)
    torch.testing.assert_close(prediction.to_x0(path, t, x, out, y), x0, rtol=0, atol=1e-8)
    torch.testing.assert_close(prediction.to_eps(path, t, x, out, y), eps, rtol=0, atol=1e-8)


def test_aosa_decides():
    path = RDDMConfig(schedule="converted").path()
    choice = AOSA(path).double()
    x0, y, eps = 0.3 * torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([300.0, 700.0], dtype=torch.float64)
    x = path.corrupt(x0, t, eps, y)
    choice(y - x0, x, x0, y, t, eps).backward()
    a, b, sigma = (c.view(-1, 1, 1, 1) for c in path.evaluate(t))
    out = y - x0
    by_noise = y - ((x - b * y - sigma * out) / a).clamp(-1, 1)
    expected = 0.5 * (0.5 * (by_noise - out)).abs().mean() + 0.5 * (0.5 * (eps - out)).abs().mean()
    torch.testing.assert_close(choice(out, x, x0, y, t, eps), expected, rtol=0, atol=1e-10)
    assert choice.share.grad is not None
    assert choice.share.grad.item() != 0
    with torch.no_grad():
        for share, objective, loss in (
            (0.52, "pred_res", 0.0),
            (0.48, "pred_noise", (out - eps).abs().mean()),
        ):
            choice.share.fill_(share)
            assert choice.objective == objective
            assert choice(out, x, x0, y, t, eps).item() == pytest.approx(float(loss))
