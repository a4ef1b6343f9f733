"""Start the page: `python -m apps.policy --port 7860`."""

import sys

from ..house import command, options
from .page import serve


def main() -> int:
    """Read the options and serve."""
    parser = options("policy", "Watch robot policies in the browser.")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="a policy (shipped name, folder or Hub id) instead of all that ship; may be repeated",
    )
    parser.add_argument("--env", default=None, help="environment of policies that do not say theirs")
    return command(parser, lambda args: serve(args.model, args.env, args.device, args.host, args.port))


if __name__ == "__main__":
    sys.exit(main())
