"""`fewstep distill`, `fewstep pairs` and `fewstep compare`: their options; the work is imported when needed.

This module stands outside `fewstep.core`, whose import brings PyTorch along, so that help comes at once.
"""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
MaxMinutes = Annotated[
    float | None,
    typer.Option("--max-minutes", min=0.01, help="Minutes of training, over all parts of the run."),
]


def distill(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Shipped name, folder (ours or diffusers') or Hub id.", show_default=False
        ),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="Of the list that --list prints.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Real samples: .npy, .npz (x0, label), .safetensors or images."),
    ] = None,
    pairs: Annotated[str | None, typer.Option("--pairs", help="Folder that `fewstep pairs` made.")] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Network calls of the student.", show_default="the method's"),
    ] = None,
    updates: Annotated[
        int | None, typer.Option("--updates", min=1, help="Of the student.", show_default="the method's")
    ] = None,
    max_minutes: MaxMinutes = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Of the method, name=value; may be repeated.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Scale of guidance that the teacher is asked with.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Samples of a batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Of the optimiser.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="no or bf16.")] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="That keeps the best: sliced-wasserstein or energy.")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option("--validate-every", min=1, help="Updates between two validations.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, help="Validations without a better one that end it.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="JSON file, such as the recipe.json of another student.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of data, noise and new weights.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    listing: Annotated[bool, typer.Option("--list", help="Print the methods and exit.")] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder of the student.", show_default="MODEL-METHOD"),
    ] = None,
) -> None:
    """Train a model that needs few network calls; Ctrl-C saves and stops, the same command goes on."""
    from fewstep.core.cli.distill import Request, list_methods, run

    if listing:
        raise typer.Exit(list_methods(as_json))
    if model is None:
        raise typer.BadParameter("name a model to distil, or --list", param_hint="MODEL")
    values = {
        "steps": steps,
        "updates": updates,
        "max_minutes": max_minutes,
        "guidance": guidance,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
        "metric": metric,
        "validate_every": validate_every,
        "patience": patience,
        "seed": seed,
    }
    chosen = tuple(option or ())
    request = Request(model, method, data, pairs, recipe, chosen, values, device, as_json, output)
    raise typer.Exit(run(request))


def pairs(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Shipped name, folder or Hub id.")],
    output: Annotated[
        str, typer.Option("-o", "--output", help="Folder of the pairs; pairs that are there are kept.")
    ],
    count: Annotated[int, typer.Option("--count", min=1, help="Number of pairs.")] = 50_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first pair's noise.")] = 0,
    solver: Annotated[
        str | None, typer.Option("--solver", help="Solver.", show_default="ode45; heun with --steps")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of a solver that takes them.")] = None,
    guidance: Annotated[float, typer.Option("--guidance", help="Classifier-free guidance; 1: none.")] = 1.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples that are solved together.")] = 256,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw samples of a model and keep them with the seeds of their noise, for reflow and its kin."""
    from fewstep.core.cli.pairs import Request, run

    request = Request(model, output, count, seed, solver, steps, guidance, batch, device, as_json)
    raise typer.Exit(run(request))


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Shipped names, folders or Hub ids.")
    ],
    data: Annotated[str, typer.Option("--data", help="Real samples: .npy, .npz (x0, label) or images.")],
    calls: Annotated[str, typer.Option("--calls", help="Numbers of network calls.")] = "1,2,4,8,18",
    solvers: Annotated[
        str,
        typer.Option(
            "--solvers", help="Of models with a solver, such as heun,dpmpp-2m.", show_default="theirs"
        ),
    ] = "",
    samples: Annotated[int, typer.Option("--samples", min=4, help="At most so many are compared.")] = 1024,
    features: Annotated[
        str | None, typer.Option("--features", help="Checkpoint in whose features to compare as well.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the first noise.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    as_json: AsJson = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder of a report: HTML, SVG and JSON.", show_default="none"),
    ] = None,
) -> None:
    """Measure quality against network calls, for a set of checkpoints and samplers."""
    from fewstep.core.cli.compare import Request, run

    request = Request(tuple(models), data, calls, solvers, samples, features, seed, device, as_json, output)
    raise typer.Exit(run(request))
