"""Start the page: `python -m apps.policy --port 7860`."""

import argparse
import signal
import sys

from .page import serve


def main() -> int:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.policy", description="Watch robot policies in the browser."
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="a policy (shipped name, folder or Hub id) instead of all that ship; may be repeated",
    )
    parser.add_argument("--env", default=None, help="environment of policies that do not say theirs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda …")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    # As Ctrl+C: the folder of results is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve(args.model, args.env, args.device, args.host, args.port)
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
