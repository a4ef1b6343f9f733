"""The page itself: its layout, its looks, and what is connected to what."""

from collections.abc import Sequence

from .. import house
from ..house import gr
from .app import MAX_SEED, MAX_SESSIONS, MAX_STEPS, SIDES, App
from .demonstrations import Demonstrations
from .models import Models

STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; letter-spacing: -.02em; }
.now img { width: 100%; max-width: 512px; border-radius: 6px; display: block; }
.now progress { width: 100%; max-width: 512px; height: 6px; display: block; margin: 8px 0 4px; border: 0;
    border-radius: 3px; overflow: hidden; appearance: none; background: var(--border-color-primary); }
.now progress::-webkit-progress-bar { background: var(--border-color-primary); }
.now progress::-webkit-progress-value { background: var(--color-accent); }
.now progress::-moz-progress-bar { background: var(--color-accent); }
#watch-film { max-width: 512px; align-self: flex-start; }
@media (max-width: 640px) { .pictures { order: -1; } }
#table img { cursor: crosshair; touch-action: none; user-select: none; }
#compare-table :is(table, tr) { border-collapse: collapse; border: 0; }
#compare-table :is(th, td) { padding: 5px 22px 5px 0; text-align: left; border: 0;
    border-bottom: 1px solid var(--border-color-primary); }
footer { display: none !important; }
"""
LEAD = """# Watch a policy act
A robot policy decides on several actions at once; its plan is drawn from dark red, now, to yellow, last,
where actions are positions. Everything happens on the machine that runs this page;
nothing is sent elsewhere."""
TICK = 0.1
# Where the mouse is pressed on the table, as shares of the picture; a short click lasts a few ticks.
MOUSE = """() => {
    const hand = { down: false, until: 0, at: '' };
    window.fewstepHand = hand;
    const put = event => {
        const table = document.querySelector('#table img');
        if (!table) return;
        const box = table.getBoundingClientRect();
        hand.at = (event.clientX - box.left) / box.width + ',' + (event.clientY - box.top) / box.height;
        hand.until = performance.now() + 300;
    };
    document.addEventListener('pointerdown', event => {
        if (!event.target.closest('#table img')) return;
        event.preventDefault();
        hand.down = true;
        put(event);
    });
    document.addEventListener('pointermove', event => { if (hand.down) put(event); });
    for (const end of ['pointerup', 'pointercancel'])
        document.addEventListener(end, () => { hand.down = false; });
}"""
HELD = """(session, held, on) => {
    const hand = window.fewstepHand;
    return [session, hand && (hand.down || performance.now() < hand.until) ? hand.at : '', on];
}"""


def build(app: App) -> gr.Blocks:
    """Lay out the page and connect it.

    Args:
        app: what its buttons do.

    Returns:
        The page; `serve` starts it.
    """
    first = app.models.environments[0]
    with gr.Blocks(title="fewstep: policies", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(LEAD, elem_id="title")
        environment = gr.Dropdown(
            app.models.environments, value=first, label="Environment", elem_id="environment"
        )
        with gr.Tab("Watch"):
            _watch_tab(app, environment)
        with gr.Tab("Compare calls"):
            _compare_tab(app, environment)
        with gr.Tab("Take over"):
            _take_over_tab(app)
        page.load(None, None, None, js=MOUSE)
    return page


def _watch_tab(app: App, environment: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            name, calls = _choice(app, app.models.environments[0], "watch")
            seed = _seed("watch-seed")
            side = gr.Dropdown(list(SIDES), value=SIDES[1], label="Side of the picture")
            most = _most("watch-most")
            start = gr.Button("Run an episode", variant="primary", elem_id="watch-start")
        with gr.Column(scale=2, elem_classes="pictures"):
            now = gr.HTML(elem_id="watch-now", elem_classes="now")
            film = gr.Video(visible=False, autoplay=True, loop=True, show_label=False, elem_id="watch-film")
            line = gr.Markdown(elem_id="watch-facts")
            download = gr.DownloadButton("Download the film", interactive=False, elem_id="watch-download")
    environment.change(lambda chosen: _names(app, chosen), environment, name)
    start.click(
        app.watch,
        [name, calls, seed, side, most],
        [now, film, line, download],
        show_progress="hidden",
        concurrency_limit=1,
        concurrency_id="run",
    )


def _compare_tab(app: App, environment: gr.Dropdown) -> None:
    first = app.compared(app.models.environments[0])
    chosen = gr.CheckboxGroup(first, value=first[:3], label="Compare", elem_id="compare-chosen")
    with gr.Row():
        seed, most = _seed("compare-seed"), _most("compare-most")
    start = gr.Button("Run them", variant="primary", elem_id="compare-start")
    now = gr.HTML(elem_id="compare-now", elem_classes="now")
    film = gr.Video(visible=False, autoplay=True, loop=True, show_label=False, elem_id="compare-film")
    table = gr.HTML(elem_id="compare-table")
    download = gr.DownloadButton("Download the film", interactive=False, elem_id="compare-download")

    def offered(environment: str) -> dict:
        entries = app.compared(environment)
        return gr.update(choices=entries, value=entries[:3])

    environment.change(offered, environment, chosen)
    start.click(
        app.compare,
        [chosen, environment, seed, most],
        [now, film, table, download],
        show_progress="hidden",
        concurrency_limit=1,
        concurrency_id="run",
    )


def _take_over_tab(app: App) -> None:
    tables = [name for name in app.models.offered if app.models[name].spec.picture_span is not None]
    if not tables:
        gr.Markdown("None of the policies is for Push-T, where the mouse can act.")
        return
    session = gr.State(
        None, time_to_live=1800, delete_callback=lambda last: None if last is None else app.leave(last)
    )
    kept = gr.State(Demonstrations, time_to_live=1800)
    held = gr.Textbox("", visible=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            name = gr.Dropdown(tables, value=tables[0], label="Policy", elem_id="hand-policy")
            one = app.models[tables[0]]
            calls = gr.Dropdown(list(one.calls), value=one.own_calls, label="Network calls")
            # Below those of tests: what is shown here may be learned from.
            seed = _seed("hand-seed", 0)
            goes_on = gr.Checkbox(True, label="The policy acts while the mouse is up", elem_id="goes-on")
            start = gr.Button("Begin an episode", variant="primary", elem_id="hand-start")
            gr.Markdown(
                "Press the mouse on the table and drag: the disc follows. Let go: the policy goes on. "
                "`fewstep policy finetune` learns from the episodes that you keep."
            )
            keep = gr.Button("Keep it as a demonstration", elem_id="hand-keep")
            demonstrations = gr.DownloadButton(
                "Download the demonstrations", interactive=False, elem_id="hand-demonstrations"
            )
            save = gr.Button("Make a film of it", elem_id="hand-save")
            download = gr.DownloadButton("Download the film", interactive=False, elem_id="hand-download")
        with gr.Column(scale=2, elem_classes="pictures"):
            now = gr.HTML("The table appears here.", elem_id="table", elem_classes="now")
            line = gr.Markdown(elem_id="hand-facts")
    clock = gr.Timer(TICK, active=False)
    name.change(lambda chosen: _calls(app, chosen), name, calls)
    begun = start.click(
        app.begin, [session, name, calls, seed], [session, now, line], concurrency_limit=MAX_SESSIONS
    )
    begun.success(lambda: gr.Timer(active=True), None, clock)
    clock.tick(
        app.tick,
        [session, held, goes_on],
        [now, line, clock],
        js=HELD,
        show_progress="hidden",
        concurrency_limit=4,
    )
    save.click(app.film, session, download, concurrency_limit=1)
    keep.click(app.keep, [session, kept], [kept, demonstrations], concurrency_limit=1)


def _choice(app: App, environment: str, what: str) -> tuple[gr.Dropdown, gr.Dropdown]:
    """A policy and how many calls it gets."""
    names = app.models.names(environment)
    one = app.models[names[0]]
    name = gr.Dropdown(names, value=names[0], label="Policy", elem_id=f"{what}-policy")
    calls = gr.Dropdown(list(one.calls), value=one.own_calls, label="Network calls", elem_id=f"{what}-calls")
    name.change(lambda chosen: _calls(app, chosen), name, calls)
    return name, calls


def _names(app: App, environment: str) -> dict:
    names = app.models.names(environment)
    return gr.update(choices=names, value=names[0])


def _calls(app: App, name: str) -> dict:
    one = app.models[name]
    return gr.update(choices=list(one.calls), value=one.own_calls)


def _seed(element: str, first: int = 100_000) -> gr.Number:
    return gr.Number(first, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id=element)


def _most(element: str) -> gr.Number:
    return gr.Number(300, label="Steps at most", precision=0, minimum=1, maximum=MAX_STEPS, elem_id=element)


def serve(wanted: Sequence[str], env: str | None, device: str, host: str, port: int) -> None:
    """Load the policies and serve the page until interrupted.

    Args:
        wanted: names, folders or Hub ids; none: all that ship.
        env: environment of policies that do not say theirs.
        device: "auto", "cpu", "cuda" …
        host: address to listen at.
        port: port to listen at.

    Raises:
        OSError: the port is in use.
        ValueError: a policy, its environment or the device is not there.
        ImportError: a package of the extra [envs] is not installed.
    """
    models = Models(wanted, env, device)
    house.serve(
        lambda results: build(App(models, results)), host, port, style=STYLE, max_file="1mb", waiting=64
    )
