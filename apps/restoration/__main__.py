"""Start the page: `python -m apps.restoration --port 7860`."""

import sys

from ..house import command, options
from .page import serve


def main() -> int:
    """Read the options and serve."""
    parser = options("restoration", "Restore photographs in the browser.")
    parser.add_argument(
        "--model",
        default=None,
        help="one checkpoint (shipped name, folder or Hub id) instead of all that ship",
    )
    return command(parser, lambda args: serve(args.model, args.device, args.host, args.port))


if __name__ == "__main__":
    sys.exit(main())
