"""The published GAN losses (FastGen): the judge's and the student's, and their gradients."""

from pathlib import Path as File

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.core import paths
from fewstep.core.objectives.adversarial.features import PlainFeatures
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.training import Moment

FILE = File(__file__).parents[1] / "golden" / "distill" / "score_and_flow_losses.safetensors"


class Itself(nn.Module):
    """The features as logits, times a weight of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, features, t):
        return self.weight * features[0]


@pytest.fixture
def golden():
    return {name: tensor for name, tensor in load_file(FILE).items() if ".gan." in name}


def test_every_golden_of_the_family_is_used(golden):
    assert sorted(golden) == ["in.gan.fake_logits", "in.gan.real_logits", "out.gan.disc", "out.gan.gen"]


def test_judge_and_student_pay_what_fastgen_says(golden):
    real, made = golden["in.gan.real_logits"], golden["in.gan.fake_logits"]
    head = AdversarialHead(paths.EDM(), Itself(), PlainFeatures())
    networks, generator = head.modules(), torch.Generator().manual_seed(0)
    judged = head.judge_loss(networks, real, made, SampleBatch(real), generator, Moment())
    torch.testing.assert_close(judged["loss"], golden["out.gan.disc"][0], rtol=1e-12, atol=0)
    asked = made.clone().requires_grad_()
    paid = head.student_loss(networks, asked, SampleBatch(real), generator, Moment()).mean()
    torch.testing.assert_close(paid, golden["out.gan.gen"][0], rtol=1e-12, atol=0)
    # d softplus(−l)/dl = −sigmoid(−l), over the batch.
    (gradient,) = torch.autograd.grad(paid, asked)
    torch.testing.assert_close(gradient, -torch.sigmoid(-made) / len(made), rtol=1e-12, atol=0)
    judged["loss"].backward()
    slope = (made * made.sigmoid() - real * (-real).sigmoid()).mean()
    torch.testing.assert_close(head.module.weight.grad, slope, rtol=1e-12, atol=1e-15)
