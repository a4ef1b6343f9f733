"""What all pages share: fonts, the server's settings, options of the command line.

Pages take `gr` from here, not from gradio: what is set below, no usage statistics and no version check,
counts only if it is set before gradio is imported.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Read when gradio is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr


def options(domain: str, what: str) -> argparse.ArgumentParser:
    """A parser with the options of every page.

    Args:
        domain: name of the app's folder.
        what: the page does, one sentence.
    """
    parser = argparse.ArgumentParser(prog=f"python -m apps.{domain}", description=what)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda …")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, default=7860)
    return parser


def command(parser: argparse.ArgumentParser, start: Callable[[argparse.Namespace], None]) -> int:
    """Read the options and serve until interrupted; what is wrong is said in one line.

    Args:
        parser: of the options.
        start: serves, given the options.

    Returns:
        The exit code.
    """
    args = parser.parse_args()
    # As Ctrl+C: the folder of results is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        start(args)
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def serve(
    build: Callable[[Path], gr.Blocks], host: str, port: int, *, style: str, max_file: str, waiting: int
) -> None:
    """Serve a page until interrupted.

    Args:
        build: makes the page, given a folder for results, which is removed at the end.
        host: address to listen at.
        port: port to listen at.
        style: CSS of the page.
        max_file: largest upload, such as "25mb".
        waiting: requests that may wait.

    Raises:
        OSError: the port is in use.
    """
    # By name only: gradio turns plain strings into fonts that it fetches from elsewhere.
    fonts = [gr.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")]
    with tempfile.TemporaryDirectory(prefix="fewstep-app-") as folder:
        page = build(Path(folder) / "results")
        page.queue(max_size=waiting).launch(
            server_name=host,
            server_port=port,
            max_file_size=max_file,
            footer_links=[],
            run_history=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Soft(primary_hue="indigo", font=fonts, font_mono=[gr.themes.Font("monospace")]),
            css=style,
        )
        print(f"The page is at http://{host}:{port} (Ctrl+C ends it).", flush=True)
        page.block_thread()
