"""DisBack: score distillation along a recorded way back to the teacher."""

import torch
from torch import Tensor

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.backtrack import TeacherPath, record_degradation
from fewstep.core.objectives.score.base import ScoreDistillation
from fewstep.core.objectives.score.building import (
    STUDENT_SAMPLING,
    assembled,
    fake_score,
    generation,
    settings,
)
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.training import Moment


def disback(
    material: Material,
    stages: int = 3,
    record_updates: int = 300,
    record_batch: int = 128,
    back_until: float = 0.3,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Distribution matching to teachers that lead from the untrained student back to the true one.

    The way is recorded here, by `record_updates` updates of a copy of the teacher. The fake score begins as
    the last of its stages, which already knows the student's samples.
    """
    teacher = material.taught()
    device = next(material.student.parameters()).device
    maker = generation(material)

    def make(generator: torch.Generator) -> tuple[Tensor, SampleBatch]:
        labels = {}
        if material.null_label is not None:
            drawn = torch.randint(material.null_label, (record_batch,), generator=generator, device=device)
            labels = {"label": drawn}
        batch = SampleBatch(torch.zeros(record_batch, *material.shape, device=device), conditions=labels)
        student = batch.flow_map(material.student, material.path, material.prediction)
        return maker(student, batch, generator, Moment()).x, batch

    generator = torch.Generator(device).manual_seed(0)
    recorded = record_degradation(teacher, make, record_updates, stages, generator)
    fake = fake_score(material, fake_updates, fake_learning_rate, 0.9)
    fake.net.load_state_dict(recorded[0].state_dict())
    flows = [*(FlowMap(net, teacher.path, teacher.prediction) for net in recorded), teacher]
    matching = ScoreMatching(TeacherPath.spread_over(flows, back_until), fake.prediction)
    return assembled(material, [matching], fake)


METHODS = {
    "disback": Method(
        "Zhang et al. 2024",
        "distribution matching that backtracks from the student's own score to the teacher's",
        disback,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    )
}
