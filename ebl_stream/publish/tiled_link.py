"""Tell Tiled of runs, in a thread of its own: never waits, never raises.

The folder of a run is the truth; Tiled may be away for as long as it likes. When
it is back it is told what is missing, the latest version of every slab first.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ebl_stream.publish.record import RunRecord
from ebl_stream.publish.tiled_api import Address, NodePath, TiledApi, TiledFault
from ebl_stream.publish.tiled_mirror import RunMirror
from ebl_stream.publish.tiled_server import TiledServer

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
PAUSE_WHEN_REFUSED_S = 30.0
"""What the server's administrator must repair takes longer."""


@dataclass
class _Followed:
    """A run, and when to try again."""

    mirror: RunMirror
    due: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    is_failing: bool = False


class TiledLink:
    """Publish runs to one Tiled server; one link per process serves many runs.

    Parameters
    ----------
    address : TiledServer or str
        A server of ours, or the address of another, see ``TiledApi``.
    api_key : str, optional
        Default: the server's own key.
    container : str
        Path of the container that the runs are put into, made where missing.
    on_told : callable, optional
        Called, in the link's thread, with the record of an ended run that Tiled has.

    Raises
    ------
    InputError
        The address is not one of a server.
    """

    def __init__(
        self,
        address: TiledServer | str,
        *,
        api_key: str | None = None,
        container: str = "processed",
        on_told: Callable[[RunRecord], None] | None = None,
    ) -> None:
        self._server = address if isinstance(address, TiledServer) else None
        self._fixed = Address.parse(address) if isinstance(address, str) else None
        self._api_key = api_key
        self._container: NodePath = tuple(p for p in container.split("/") if p)
        self._on_told = on_told
        self._api: TiledApi | None = None
        self._news = threading.Condition()
        self._runs: dict[str, _Followed] = {}
        self._closing = False
        self._thread = self._start()

    @property
    def uri(self) -> str | None:
        """Address to open in a browser; None before an own server has a port."""
        address = self._address()
        return None if address is None else address.server

    def node_uri(self, processed_uid: str) -> str | None:
        """Return the address of a run, for ``tiled.client.from_uri``."""
        address = self._address()
        if address is None:
            return None
        return address.node_uri((*self._container, processed_uid))

    def follow(self, record: RunRecord) -> None:
        """Publish a run and go on as its record changes."""
        mirror = RunMirror(record, self._container)
        with self._news:
            self._runs[record.processed_uid] = _Followed(mirror)
            self._news.notify_all()

    def changed(self) -> None:
        """Look again at the records."""
        with self._news:
            self._news.notify_all()

    @property
    def caught_up(self) -> bool:
        """Whether Tiled has everything."""
        with self._news:
            return all(run.mirror.is_current for run in self._runs.values())

    def wait_until_caught_up(self, timeout_s: float) -> bool:
        """Wait until Tiled has everything; False if it has not in time."""

        def all_current() -> bool:
            return all(run.mirror.is_current for run in self._runs.values())

        with self._news:
            return self._news.wait_for(all_current, timeout_s)

    def supervise(self) -> None:
        """Start the thread again where it died; call it now and then."""
        if not self._thread.is_alive() and not self._closing:
            logger.critical("the thread that tells Tiled died and is started again")
            self._thread = self._start()

    def close(self, timeout_s: float) -> None:
        """Give Tiled so long to catch up, then stop."""
        self.wait_until_caught_up(timeout_s)
        with self._news:
            self._closing = True
            self._news.notify_all()
            api = self._api
        if api is not None:
            api.close()
        self._thread.join(timeout=1.0)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="tiled-link", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        while True:
            with self._news:
                run = self._next_due()
                while run is None and not self._closing:
                    self._news.wait(self._time_to_wait())
                    run = self._next_due()
                if self._closing or run is None:
                    return
            self._serve(run)

    def _next_due(self) -> _Followed | None:
        now = time.monotonic()
        if self._server is not None and not self._server.is_ready:
            return None
        waiting = [run for run in self._runs.values() if not run.mirror.is_current]
        due = [run for run in waiting if run.due <= now]
        return min(due, key=lambda run: run.due, default=None)

    def _time_to_wait(self) -> float | None:
        waiting = [run for run in self._runs.values() if not run.mirror.is_current]
        if not waiting:
            return None
        first = min(run.due for run in waiting) - time.monotonic()
        return max(first, FIRST_PAUSE_S)

    def _serve(self, run: _Followed) -> None:
        try:
            run.mirror.send(self._connect())
        except TiledFault as fault:
            self._put_off(run, fault.kind, str(fault))
        except Exception as error:  # the thread must outlive any surprise
            logger.debug("publishing failed", exc_info=True)
            self._put_off(run, "refused", f"{type(error).__name__}: {error}")
        else:
            self._done(run)

    def _address(self) -> Address | None:
        if self._server is None:
            return self._fixed
        return Address(self._server.uri) if self._server.uri else None

    def _connect(self) -> TiledApi:
        """Return the connection, a new one where the server has moved."""
        address = self._address()
        if address is None:
            raise TiledFault("unreachable", "the Tiled server has no address yet")
        if self._api is None or self._api.address != address:
            key = self._server.api_key if self._server is not None else None
            self._api = TiledApi(address, self._api_key or key)
        return self._api

    def _done(self, run: _Followed) -> None:
        record = run.mirror.record
        is_over = record.state != "running" and run.mirror.is_current
        if is_over and self._on_told is not None:
            self._on_told(record)
        with self._news:
            if run.is_failing:
                logger.info("Tiled has caught up with %s", run.mirror.record.folder)
            run.is_failing, run.pause_s, run.due = False, FIRST_PAUSE_S, 0.0
            if is_over and run.mirror.is_current:
                # Kept out of the way; a late change would come through follow.
                self._runs.pop(record.processed_uid, None)
            self._news.notify_all()

    def _put_off(self, run: _Followed, kind: str, message: str) -> None:
        slow = kind in ("denied", "refused")
        pause = PAUSE_WHEN_REFUSED_S if slow else run.pause_s
        run.due = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311
        run.pause_s = min(2 * run.pause_s, LONGEST_PAUSE_S)
        if not run.is_failing and not self._closing:
            _log_outage(kind, message, run.mirror.record)
        run.is_failing = True


def _log_outage(kind: str, message: str, record: RunRecord) -> None:
    advice = "it will be sent when Tiled is back"
    if kind == "denied":
        advice = "give a key that may write and register (TILED_API_KEY)"
    elif kind == "refused":
        advice = "it is tried again every half minute"
    logger.warning(
        "Tiled does not take the result (%s); it is safe in %s; %s",
        message,
        record.folder,
        advice,
    )
