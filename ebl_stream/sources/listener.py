"""Sources that push: they hand documents to a sink, and acknowledge what it took."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from ebl_stream.transport.documents import DocumentError

logger = logging.getLogger(__name__)

COMMIT_EVERY_S = 0.05
IDLE_POLL_MS = 20


class Sink(Protocol):
    """Who takes the documents that a source hears."""

    def take(self, packed: bytes) -> bool:
        """Take one; False: cannot keep it now, let it be sent again later.

        Raises
        ------
        DocumentError
            The bytes are no document.
        """
        ...

    def commit(self) -> None:
        """Make durable what was taken; only then is it acknowledged."""
        ...

    def heard(self, run_uids: Iterable[str]) -> None:
        """Note runs whose sender lives, though it has nothing to send."""
        ...


class Listener(Protocol):
    """A source that pushes, and acknowledges where its transport can.

    Kafka fits: `commit` the sink, then the offsets.
    """

    address: str
    """Where it listens, final."""
    acknowledges: bool
    """Whether what the sink does not take comes again."""
    problems: Counter[str]
    """Messages that were refused, by kind."""

    def listen(self, sink: Sink) -> None:
        """Hand every document to the sink until `close` (one thread)."""
        ...

    def tell(self, run_uid: str, status: dict[str, Any]) -> None:
        """Send how a run gets on to who asked about it (any thread)."""
        ...

    def seconds_since_heard(self) -> float:
        """Return for how long nobody spoke."""
        ...

    def stop_taking(self) -> None:
        """Leave further documents with their senders; go on telling."""
        ...

    def close(self) -> None:
        """End `listen` soon."""
        ...


class SocketListener:
    """What both sources share: the loop, the end, the count of what was refused."""

    acknowledges = False

    def __init__(self) -> None:
        self.problems: Counter[str] = Counter()
        self.closing = threading.Event()
        self.taking = True
        self.heard_at = time.monotonic()

    def seconds_since_heard(self) -> float:
        """Return for how long nobody spoke."""
        return time.monotonic() - self.heard_at

    def stop_taking(self) -> None:
        """Leave further documents with their senders; go on telling."""
        self.taking = False

    def close(self) -> None:
        """End `listen` soon."""
        self.closing.set()

    def note(self, kind: str, message: str) -> None:
        """Count what was refused; log the first of its kind."""
        self.problems[kind] += 1
        if self.problems[kind] == 1:
            logger.warning(
                "refused a message (%s): %s; further ones are only counted",
                kind,
                message,
            )

    def hand_over(self, sink: Sink, packed: bytes) -> bool:
        """Give a document to the sink; what is no document counts as taken."""
        try:
            return sink.take(packed)
        except DocumentError as error:
            self.note("malformed", str(error))
        except Exception as error:  # the loop must outlive any surprise
            self.note("fault", f"{type(error).__name__}: {error}")
        return True
