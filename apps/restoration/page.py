"""The page itself: its layout, its looks, and what is connected to what."""

from typing import Any

from .. import house
from ..house import gr
from .app import FORMATS, PAINT, SAME, SIGMAS, UNPAINTED, App
from .models import Models
from .shown import Shown

MAX_FILE = "25mb"
EXTENSIONS = [".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"]
MODES = {"faithful": "Faithful: one call, closest to the truth", "detailed": "Detailed: a few calls"}
STYLE = """
.gradio-container { max-width: 1320px !important; }
#title h1 { margin-bottom: 0; letter-spacing: -.02em; }
#facts { min-height: 1.6em; }
footer { display: none !important; }
"""
ALONE = "With two samples or more."
UNFIT = "This cannot be restored: choose another."
LEAD = """# Restore a photograph
Enlarges, cleans or fills photographs with a few steps of diffusion. Everything happens on the machine that
runs this page; nothing is sent elsewhere."""


def build(app: App) -> gr.Blocks:
    """Lay out the page and connect it.

    Args:
        app: what its buttons do.

    Returns:
        The page; `serve` starts it.
    """
    first = app.models.tasks[0][1]
    able = app.able(first)
    with gr.Blocks(title="fewstep: restore", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(LEAD, elem_id="title")
        made = gr.State([])
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                task = gr.Dropdown(
                    app.models.tasks,
                    value=first,
                    label="Task",
                    info=app.models.about(first),
                    filterable=False,
                    elem_id="task",
                )
                upload = gr.File(
                    file_types=EXTENSIONS,
                    file_count="multiple",
                    label="Photographs",
                    height=170,
                    elem_id="upload",
                )
                about = gr.Markdown(elem_id="about")
                mode = gr.Radio(**_modes(app, first), label="Mode", elem_id="mode")
                with gr.Group(visible=able.modes[0] == "detailed") as sampling:
                    steps = gr.Slider(1, **_steps(app, first), step=1, label="Steps", elem_id="steps")
                    with gr.Group(visible=able.draws) as drawing:
                        samples = gr.Slider(1, 8, value=1, step=1, label="Samples", elem_id="samples")
                        average = gr.Checkbox(
                            False, label="Average the samples", info=ALONE, interactive=False
                        )
                        uncertainty = gr.Checkbox(
                            False,
                            label="Show where they differ",
                            info=ALONE,
                            interactive=False,
                            elem_id="uncertain",
                        )
                        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Group(visible=able.level) as noise:
                    sigma_known = gr.Radio(
                        **_sigmas(app, first), label="Noise of the photograph", elem_id="sigma-known"
                    )
                    sigma = gr.Slider(
                        0,
                        100,
                        value=25,
                        label="Standard deviation, on the scale 0 … 255",
                        visible=False,
                        elem_id="sigma",
                    )
                start = gr.Button("Restore", variant="primary", elem_id="restore", interactive=False)
                with gr.Accordion("Downloaded file", open=False):
                    kind = gr.Dropdown(list(FORMATS), value=SAME, label="Format", filterable=False)
                    keep = gr.Checkbox(True, label="Keep EXIF and colour profile")
            with gr.Column(scale=3):
                with gr.Column(visible=able.mask) as filling:
                    editor = gr.ImageEditor(
                        type="pil",
                        image_mode="RGBA",
                        label="Paint over what is to be filled",
                        placeholder="Choose a photograph and paint on it",
                        brush=gr.Brush(colors=["#{:02x}{:02x}{:02x}".format(*PAINT)], color_mode="fixed"),
                        sources=(),
                        transforms=(),
                        layers=False,
                        buttons=["fullscreen"],
                        elem_id="editor",
                    )
                    given = gr.State()
                    with gr.Row(equal_height=True):
                        painted = gr.Markdown(elem_id="painted")
                        mask = gr.UploadButton(
                            "Upload a mask (white is filled)",
                            file_types=EXTENSIONS,
                            size="sm",
                            interactive=False,
                            elem_id="mask",
                        )
                compare = gr.ImageSlider(
                    label="Before and after",
                    format="png",
                    interactive=False,
                    height=560,
                    max_height=560,
                    buttons=["fullscreen"],
                    elem_id="compare",
                )
                shown = gr.Radio([], label="Shown", visible=False, elem_id="shown")
                facts = gr.Markdown(elem_id="facts")
                download = gr.DownloadButton(
                    "Download the full quality", interactive=False, elem_id="download"
                )
                differ = gr.Image(
                    label="Where the samples differ: dark, hardly; bright, most",
                    format="png",
                    interactive=False,
                    visible=False,
                    buttons=["download", "fullscreen"],
                    elem_id="uncertainty",
                )
        choices = [task, mode, steps, samples, average, uncertainty, seed, sigma_known, sigma, kind, keep]
        results = [start, made, compare, shown, facts, download, differ]

        controls = [task, mode, sampling, steps, drawing, noise, sigma_known, filling]
        # Until what is chosen has been looked at there is nothing to press.
        for event in (
            upload.change(_cleared, None, results),
            task.change(lambda name: (*_cleared(), *_task_chosen(app, name)), task, [*results, *controls]),
        ):
            looked = event.then(
                lambda *now: _looked_at(app, *now),
                [upload, task],
                [about, editor, given, painted, start, mask],
            )
            looked.failure(lambda: UNFIT, None, about)
        editor.change(app.painted, [editor, given], painted, show_progress="hidden")
        mask.upload(app.masked, [upload, mask], [editor, given, painted])
        mode.change(lambda name: gr.update(visible=name == "detailed"), mode, sampling)
        samples.change(_samples_chosen, [samples, average, uncertainty], [average, uncertainty])
        sigma_known.change(lambda known: gr.update(visible=known == "given"), sigma_known, sigma)
        run = start.click(_cleared, None, results).then(
            app.restore,
            [upload, editor, given, *choices],
            [made, facts, download],
            show_progress_on=compare,
            concurrency_limit=1,
        )
        run.success(_finished, made, [compare, shown, download, differ])
        run.then(lambda files: gr.update(interactive=bool(files)), upload, start)
        shown.input(lambda known, index: _chosen(known[index]), [made, shown], [compare, differ])
    return page


def serve(model: str | None, device: str, host: str, port: int) -> None:
    """Load the models and serve the page until interrupted.

    Args:
        model: checkpoint name, folder or Hub id; None: all that ship.
        device: "auto", "cpu", "cuda" …
        host: address to listen at.
        port: port to listen at.

    Raises:
        OSError: the port is in use.
        ValueError: the model or the device is not there.
    """
    models = Models(device, model)
    house.serve(
        lambda results: build(App(models, results)), host, port, style=STYLE, max_file=MAX_FILE, waiting=16
    )


def _modes(app: App, task: str) -> dict[str, Any]:
    """What can be chosen, what is chosen, and whether there is a choice."""
    names = app.able(task).modes
    return {
        "choices": [(MODES[name], name) for name in names],
        "value": names[0],
        "visible": len(names) > 1,
    }


def _steps(app: App, task: str) -> dict[str, Any]:
    able = app.able(task)
    return {"maximum": max(able.steps, 2), "value": able.steps, "visible": able.fewer}


def _sigmas(app: App, task: str) -> dict[str, Any]:
    known = SIGMAS[1:] if app.able(task).needs_level else SIGMAS
    return {"choices": list(known), "value": known[0]}


def _cleared() -> tuple[dict, list, None, dict, str, dict, dict]:
    """The page without a result and with nothing to press."""
    grey, hidden = gr.update(interactive=False), gr.update(visible=False)
    return grey, [], None, hidden, "", gr.update(value=None, interactive=False), hidden


def _looked_at(app: App, uploads: list[str] | None, task: str) -> tuple[str, Any, None, str, dict, dict]:
    """What is said of the photographs, the canvas, no mask of a file, what is painted, and the buttons."""
    words, there = app.check(uploads, task), gr.update(interactive=bool(uploads))
    if uploads and app.able(task).mask:
        return words, app.canvas(uploads), None, UNPAINTED, there, there
    return words, None, None, "", there, there


def _task_chosen(app: App, task: str) -> tuple[dict, ...]:
    able = app.able(task)
    return (
        gr.update(info=app.models.about(task)),
        gr.update(**_modes(app, task)),
        gr.update(visible=able.modes[0] == "detailed"),
        gr.update(**_steps(app, task)),
        gr.update(visible=able.draws),
        gr.update(visible=able.level),
        gr.update(**_sigmas(app, task)),
        gr.update(visible=able.mask),
    )


def _samples_chosen(samples: int, average: bool, uncertainty: bool) -> tuple[dict, ...]:
    several = samples > 1
    return tuple(
        gr.update(interactive=several, value=on and several, info=None if several else ALONE)
        for on in (average, uncertainty)
    )


def _finished(made: list[Shown]) -> tuple[tuple, dict, dict, dict]:
    """Show the first comparison, and a choice when there are several."""
    names = [(each.name, index) for index, each in enumerate(made)]
    pair, differ = _chosen(made[0])
    choice = gr.update(choices=names, value=0, visible=len(made) > 1)
    return pair, choice, gr.update(interactive=True), differ


def _chosen(each: Shown) -> tuple[tuple, dict]:
    return (each.before, each.after), gr.update(value=each.differences, visible=each.differences is not None)
