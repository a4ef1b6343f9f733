"""The page itself: its layout, its looks, and what is connected to what."""

import os
import tempfile
from pathlib import Path

# Read when gradio is imported: no usage statistics, no version check.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from .app import FORMATS, SAME, SIGMAS, App, Pair
from .models import Models

MAX_FILE = "25mb"
EXTENSIONS = [".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"]
MODES = {"faithful": "Faithful: closest to the truth", "detailed": "Detailed: more texture"}
# By name only: gradio turns plain strings into fonts that it fetches from elsewhere.
FONTS = [gr.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")]
STYLE = """
.gradio-container { max-width: 1320px !important; }
#title h1 { margin-bottom: 0; letter-spacing: -.02em; }
#facts { min-height: 1.6em; }
footer { display: none !important; }
"""
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
    with gr.Blocks(title="fewstep: restore", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(LEAD, elem_id="title")
        pairs = gr.State([])
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                task = gr.Dropdown(app.models.tasks, value=first, label="Task", elem_id="task")
                upload = gr.File(
                    file_types=EXTENSIONS,
                    file_count="multiple",
                    label="Photographs",
                    height=150,
                    elem_id="upload",
                )
                about = gr.Markdown(elem_id="about")
                modes, now = _modes(app, first)
                mode = gr.Radio(modes, value=now, label="Mode", elem_id="mode")
                start = gr.Button("Restore", variant="primary", elem_id="restore", interactive=False)
                with gr.Group(visible=now == "detailed") as sampling:
                    most = _most(app, first)
                    steps = gr.Slider(1, most, value=most, step=1, label="Steps")
                    samples = gr.Slider(1, 8, value=1, step=1, label="Samples", elem_id="samples")
                    average = gr.Checkbox(False, label="Average the samples", interactive=False)
                    uncertainty = gr.Checkbox(
                        False, label="Show where they differ", interactive=False, elem_id="uncertain"
                    )
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Group(visible=_takes(app, first, "level")) as noise:
                    sigma_known = gr.Radio(
                        list(SIGMAS), value=SIGMAS[0], label="Noise of the photograph", elem_id="sigma-known"
                    )
                    sigma = gr.Slider(
                        0, 100, value=25, label="Standard deviation", visible=False, elem_id="sigma"
                    )
                with gr.Accordion("Downloaded file", open=False):
                    kind = gr.Dropdown(list(FORMATS), value=SAME, label="Format")
                    keep = gr.Checkbox(True, label="Keep EXIF and colour profile")
            with gr.Column(scale=3):
                editor = gr.ImageEditor(
                    type="pil",
                    image_mode="RGBA",
                    label="Paint over what is to be filled",
                    brush=gr.Brush(colors=["#ffffff"], color_mode="fixed"),
                    sources=(),
                    transforms=(),
                    layers=False,
                    visible=_takes(app, first, "mask"),
                    elem_id="editor",
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
                differ = gr.Image(
                    label="Where the samples differ: dark, hardly; bright, most",
                    format="png",
                    interactive=False,
                    visible=False,
                    elem_id="uncertainty",
                )
                facts = gr.Markdown(elem_id="facts")
                download = gr.DownloadButton(
                    "Download the full quality", interactive=False, elem_id="download"
                )
        choices = [task, mode, steps, samples, average, uncertainty, seed, sigma_known, sigma, kind, keep]
        ready = upload.upload(app.check, upload, about).success(_enabled, None, start)
        ready.success(app.canvas, [upload, task], editor)
        upload.clear(lambda: ("", gr.update(interactive=False), None), None, [about, start, editor])
        task.change(lambda name: _task_chosen(app, name), task, [mode, sampling, steps, noise, editor]).then(
            app.canvas, [upload, task], editor
        )
        mode.change(lambda name: gr.update(visible=name == "detailed"), mode, sampling)
        samples.change(_samples_chosen, [samples, average, uncertainty], [average, uncertainty])
        sigma_known.change(lambda known: gr.update(visible=known == "given"), sigma_known, sigma)
        run = start.click(
            app.restore,
            [upload, editor, *choices],
            [pairs, facts, download, differ],
            show_progress_on=compare,
            concurrency_limit=1,
        )
        run.success(_finished, [pairs, differ], [compare, shown, download, differ])
        shown.input(lambda known, number: known[number - 1], [pairs, shown], compare)
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
    with tempfile.TemporaryDirectory(prefix="fewstep-app-") as folder:
        page = build(App(Models(device, model), Path(folder) / "results"))
        page.queue(max_size=16).launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_FILE,
            footer_links=[],
            run_history=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Soft(primary_hue="indigo", font=FONTS, font_mono=[gr.themes.Font("monospace")]),
            css=STYLE,
        )
        print(f"The page is at http://{host}:{port} (Ctrl+C ends it).", flush=True)
        page.block_thread()


def _takes(app: App, task: str, what: str) -> bool:
    return what in app.models[task].model.takes


def _modes(app: App, task: str) -> tuple[list[tuple[str, str]], str]:
    """What can be chosen, and what is chosen."""
    names = app.models[task].modes
    return [(MODES[name], name) for name in names], names[0]


def _most(app: App, task: str) -> int:
    """Published steps, which more would not improve on."""
    restorer = app.models[task]
    return restorer.model.steps_of("sample") if "detailed" in restorer.modes else 1


def _enabled() -> dict:
    return gr.update(interactive=True)


def _task_chosen(app: App, task: str) -> tuple[dict, dict, dict, dict, dict]:
    modes, now = _modes(app, task)
    most = _most(app, task)
    return (
        gr.update(choices=modes, value=now),
        gr.update(visible=now == "detailed"),
        gr.update(maximum=max(most, 2), value=most),
        gr.update(visible=_takes(app, task, "level")),
        gr.update(visible=_takes(app, task, "mask")),
    )


def _samples_chosen(samples: int, average: bool, uncertainty: bool) -> tuple[dict, dict]:
    several = samples > 1
    return tuple(gr.update(interactive=several, value=on and several) for on in (average, uncertainty))  # type: ignore[return-value]


def _finished(pairs: list[Pair], differ: object) -> tuple[Pair, dict, dict, dict]:
    """Show the first pair, and a choice when there are several."""
    numbers = list(range(1, len(pairs) + 1))
    choice = gr.update(choices=numbers, value=1, visible=len(pairs) > 1)
    return pairs[0], choice, gr.update(interactive=True), gr.update(visible=differ is not None)
