"""What the command line says on stderr, and the exit codes."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from ebl_stream.cli.extras import advice
from ebl_stream.cli.plain_text import PlainFormatter, printable, without_keys
from ebl_stream.errors import InputError

MAX_ERROR_LINES = 4


class HeldLog(logging.handlers.MemoryHandler):
    """Keeps warnings back until it is sure that the command does not end with 2.

    Bad input is answered with one message; what the house noticed on the way to
    it would only bury that.
    """

    def __init__(self, level: int) -> None:
        super().__init__(1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        target = logging.StreamHandler()
        target.setFormatter(PlainFormatter("%(levelname)s: %(message)s"))
        self.setTarget(target)
        self.setLevel(level)
        self._is_open = False

    def flush(self) -> None:
        """Show what is kept, once that is allowed; the end of the process asks, too."""
        if self._is_open:
            super().flush()

    def let_through(self) -> None:
        """Show what was kept back, and from now on everything at once."""
        self._is_open = True
        self.capacity = 1
        self.flush()


def log_to_stderr(debug: bool) -> HeldLog:
    """Send warnings of ours and errors of others to stderr; all with ``debug``."""
    held = HeldLog(logging.DEBUG if debug else logging.WARNING)
    root = logging.getLogger()
    root.addHandler(held)
    root.setLevel(logging.INFO if debug else logging.ERROR)
    logging.getLogger("ebl_stream").setLevel(
        logging.DEBUG if debug else logging.WARNING
    )
    logging.captureWarnings(True)
    if debug:
        held.let_through()
    return held


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Keep stdout for the result, whatever a library prints."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def answer_errors(command: Callable[[], Any], debug: bool) -> int:
    """Run a command; return its exit code, having said what went wrong."""
    try:
        return int(command() or 0)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130
    except BrokenPipeError:
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "ebl-stream"
        complain(f"{error.format_message()}\nTry '{where} --help'.")
        return 2
    except (InputError, click.ClickException) as error:
        complain(str(error) or type(error).__name__)
        return 2
    except Exception as error:
        if debug:
            raise
        if words := advice(error):
            complain(words)
            return 2
        what = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        complain(f"internal fault: {what} (--debug shows the traceback)")
        return 1


def complain(message: str) -> None:
    """Print an error on stderr: at most four lines, nothing that steers a terminal."""
    lines = [line for line in message.splitlines() if line.strip()]
    shown = "\n".join(lines[:MAX_ERROR_LINES])
    safe = without_keys(printable(shown))
    with contextlib.suppress(OSError):
        click.echo(f"ebl-stream: {safe}", err=True)
