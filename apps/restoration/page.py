"""The page itself: its layout, its looks, and what is connected to what."""

import os
import tempfile
from pathlib import Path

# Read when gradio is imported: no usage statistics, no version check.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from fewstep.restoration import Restorer

from .app import FORMATS, SAME, App, Pair

MAX_FILE = "25mb"
EXTENSIONS = [".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"]
MODES = [("Faithful: closest to the truth", "faithful"), ("Detailed: more texture", "detailed")]
STEPS = {"faithful": 1, "detailed": 4}
# By name only: gradio turns plain strings into fonts that it fetches from elsewhere.
FONTS = [gr.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")]
STYLE = """
.gradio-container { max-width: 1320px !important; }
#title h1 { margin-bottom: 0; letter-spacing: -.02em; }
#facts { min-height: 1.6em; }
footer { display: none !important; }
"""
LEAD = """# Restore a photograph
Enlarges a photograph four times with a few steps of diffusion. Everything happens on the machine that
runs this page; nothing is sent elsewhere."""


def build(app: App) -> gr.Blocks:
    """Lay out the page and connect it.

    Args:
        app: what its buttons do.

    Returns:
        The page; `serve` starts it.
    """
    with gr.Blocks(title="fewstep: restore", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(LEAD, elem_id="title")
        pairs = gr.State([])
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                upload = gr.File(file_types=EXTENSIONS, label="Photograph", height=150, elem_id="upload")
                about = gr.Markdown(elem_id="about")
                mode = gr.Radio(MODES, value="faithful", label="Mode", elem_id="mode")
                start = gr.Button("Restore", variant="primary", elem_id="restore", interactive=False)
                with gr.Group(visible=False) as sampling:
                    steps = gr.Slider(1, 4, value=1, step=1, label="Steps")
                    samples = gr.Slider(1, 8, value=1, step=1, label="Samples", elem_id="samples")
                    average = gr.Checkbox(False, label="Average the samples", interactive=False)
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Accordion("Downloaded file", open=False):
                    kind = gr.Dropdown(list(FORMATS), value=SAME, label="Format")
                    keep = gr.Checkbox(True, label="Keep EXIF and colour profile")
            with gr.Column(scale=3):
                compare = gr.ImageSlider(
                    label="Before (bicubic) and after",
                    format="png",
                    interactive=False,
                    height=560,
                    max_height=560,
                    buttons=["fullscreen"],
                    elem_id="compare",
                )
                shown = gr.Radio([], label="Sample", visible=False, elem_id="shown")
                facts = gr.Markdown(elem_id="facts")
                download = gr.DownloadButton(
                    "Download the full-quality file", interactive=False, elem_id="download"
                )
        settings = [upload, mode, steps, samples, average, seed, kind, keep]
        upload.upload(app.check, upload, about).success(_enabled, None, start)
        upload.clear(lambda: ("", gr.update(interactive=False)), None, [about, start])
        mode.change(_mode_chosen, mode, [sampling, steps])
        samples.change(_samples_chosen, [samples, average], average)
        run = start.click(
            app.restore, settings, [pairs, facts, download], show_progress_on=compare, concurrency_limit=1
        )
        run.success(_finished, pairs, [compare, shown, download])
        shown.input(lambda known, number: known[number - 1], [pairs, shown], compare)
    return page


def serve(model: str, device: str, host: str, port: int) -> None:
    """Load the model and serve the page until interrupted.

    Args:
        model: checkpoint name, folder or Hub id.
        device: "auto", "cpu", "cuda" …
        host: address to listen at.
        port: port to listen at.

    Raises:
        OSError: the port is in use.
        ValueError: the model or the device is not there.
    """
    with tempfile.TemporaryDirectory(prefix="fewstep-app-") as folder:
        page = build(App(Restorer.from_pretrained(model, device=device), Path(folder) / "results"))
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


def _enabled() -> dict:
    return gr.update(interactive=True)


def _mode_chosen(mode: str) -> tuple[dict, dict]:
    return gr.update(visible=mode == "detailed"), gr.update(value=STEPS[mode])


def _samples_chosen(samples: int, average: bool) -> dict:
    return gr.update(interactive=samples > 1, value=average and samples > 1)


def _finished(pairs: list[Pair]) -> tuple[Pair, dict, dict]:
    """Show the first sample, and a choice when there are several."""
    numbers = list(range(1, len(pairs) + 1))
    choice = gr.update(choices=numbers, value=1, visible=len(pairs) > 1)
    return pairs[0], choice, gr.update(interactive=True)
