"""Where the command begins: an installation without its packages is told so."""

from __future__ import annotations

import sys

from ebl_stream.cli.extras import advice


def main() -> None:
    """Run the command line, or say what must be installed for it."""
    try:
        from ebl_stream.cli.commands import main as run
    except ModuleNotFoundError as error:
        words = advice(error)
        if words is None:
            raise
        print(f"ebl-stream: {words}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
