"""Put a distilled student of the shipped digits into the core's package, with its card.

    python -m tools.ship_student STUDENT digits-onestep --machine "2 CPU cores, shared"

STUDENT is the folder that `fewstep distill digits … -o STUDENT` left. Its samples are measured against those
of the teacher by the classifier of `tests.bench.digit_features`.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from tests.bench import digit_features

from fewstep.core.cards import CardFacts
from fewstep.core.models import DiffusionModel
from fewstep.core.objectives.recipe import RECIPE, DistillRecipe
from fewstep.core.sampling import Sampling
from fewstep.core.training import read_log

PACKAGE = Path(__file__).parents[1] / "shared/src/fewstep/core/checkpoints"
COUNT = 1000


@torch.inference_mode()
def measured(model: DiffusionModel, sampling: Sampling) -> dict[str, float]:
    """The digit metrics of 1,000 samples, a hundred of every label."""
    labels = torch.arange(COUNT) % 10
    return digit_features.metrics(model.generate(COUNT, label=labels, sampling=sampling).clamp(-1, 1))


def facts(folder: Path, student: DiffusionModel, machine: str) -> CardFacts:
    """What the card says."""
    teacher, recipe = DiffusionModel.from_pretrained("digits"), DistillRecipe.load(folder / RECIPE)
    last = [line for line in read_log(folder / "run") if line["kind"] == "train"][-1]
    ours, theirs = measured(student, student.sampling), measured(teacher, Sampling("ode", 18))
    options = " ".join(f"--option {name}={value}" for name, value in recipe.options.items())
    command = f"fewstep distill digits --method {recipe.method} {options} --data digits.npz"
    return CardFacts(
        title=folder.name,
        summary=(
            f"Handwritten digits in {student.sampling.steps} network call: distilled from the checkpoint "
            f"“digits” by {recipe.method}."
        ),
        data="scikit-learn's digits (UCI Optical Recognition of Handwritten Digits), 1,497 of 1,797 pictures",
        data_licence="CC BY 4.0",
        command=(
            f"{command} --updates {recipe.updates} --batch-size {recipe.batch_size} "
            f"--learning-rate {recipe.learning_rate:g} --validate-every {recipe.validate_every}"
        ),
        steps=int(last["step"]),
        minutes=round(float(last["minutes"]), 1),
        machine=machine,
        metrics={"digits": {name: (ours[name], theirs[name]) for name in ours}},
        baseline="Teacher, 35 calls",
        limits=(
            "Steps count the updates of student, fake score and judge; the weights are those whose samples "
            "came nearest to the tenth of the pictures that was held out. For demonstrations and tests."
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", type=Path)
    parser.add_argument("name", help="of the checkpoint")
    parser.add_argument("--machine", required=True)
    arguments = parser.parse_args()
    student = DiffusionModel.from_pretrained(arguments.student)
    told = replace(facts(arguments.student, student, arguments.machine), title=arguments.name)
    target = PACKAGE / arguments.name
    student.save_pretrained(target, dtype=torch.float16, model_card_kwargs={"facts": told})
    shutil.copyfile(arguments.student / RECIPE, target / RECIPE)
    print(target)


if __name__ == "__main__":
    main()
