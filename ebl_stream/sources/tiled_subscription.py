"""Runs that arrive on a Tiled server, told as documents while they grow.

What is told is read from the catalog, by the code that tells archived runs. The
server's notifications only say when to look: one that is lost, comes twice or late
costs a moment and nothing else. Besides, we look now and then, at a bounded rate; a
server without notifications needs no more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.sources.archive import connect
from ebl_stream.sources.listener import Sink, SocketListener
from ebl_stream.sources.synthesis import Document, RunTeller
from ebl_stream.sources.tiled_hints import Hints
from ebl_stream.sources.told_runs import ToldRuns
from ebl_stream.transport.documents import pack

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
SHARE = 0.25
"""Of its time a server answers us at most."""
AGAIN_AFTER_S = (1.0, 10.0)
"""The first and the longest pause while the server does not answer."""
ANSWER_WITHIN_S = 5.0
MAX_RUNS = 200
"""The newest of a container are looked at."""
MAX_ATTEMPTS = 10
"""To read what is left of a run that has stopped."""


@dataclass
class _Run:
    """A run that is being told."""

    uid: str
    teller: RunTeller
    grew_at: float
    has_stopped: bool = False
    n_failures: int = 0
    again_at: float = 0.0

    def failed(self) -> None:
        """Try again later, and later still."""
        self.n_failures += 1
        pause_s = LOOK_EVERY_S * 2 ** min(self.n_failures, 5)
        self.again_at = time.monotonic() + min(pause_s, AGAIN_AFTER_S[1])

    def stopped(self) -> None:
        """Try at once: a file that was being written may be closed now."""
        self.has_stopped, self.n_failures, self.again_at = True, 0, 0.0


class _ServerError(Exception):
    """What a server answered; Tiled's client would ask again for half a minute."""


class TiledSource(SocketListener):
    """Tells the runs of a container of a Tiled server, until it is closed.

    Runs that have stopped before this service was first started are not told.
    Frames in HDF5 files within ``profile.files.roots`` are named, all others are
    read through the server and travel inside the events.

    Parameters
    ----------
    address : str
        ``tiled:URL`` of the server, or of the container in which runs arrive.
    profile : Profile
        Names the environment variable with the server's key, and the folders that
        frames may be read from.
    out : Path, optional
        Folder in whose journals is remembered what was told.

    Raises
    ------
    InputError
        The address has another form, the server refuses us, or it has no such
        container. A server that does not answer is waited for.
    """

    acknowledges = True

    def __init__(self, address: str, profile: Profile, out: Path | None) -> None:
        super().__init__()
        self.address = address
        self._url = address.removeprefix("tiled:")
        if not self._url.startswith(("http://", "https://")) or "#" in self._url:
            raise InputError(
                f"address {address!r}: expected tiled:http://host:8000, or the address "
                f"of the container in which runs arrive"
            )
        self._profile = profile
        self._roots = tuple(
            Path(root).expanduser().resolve() for root in profile.files.roots
        )
        self._told = ToldRuns(out / "journal" if out else None, self._url)
        self._runs: dict[str, _Run] = {}
        self._wake = threading.Event()
        self._hints = Hints(self._wake, self.problems)
        self._pause_s = AGAIN_AFTER_S[0]
        self._is_down = False
        self._dirty = False
        self._catalog: Any = self._connect() if self._answers() else None

    def tell(self, run_uid: str, status: dict[str, Any]) -> None:
        """Do nothing: a catalog has nobody to answer to."""

    def close(self) -> None:
        """End `listen` soon."""
        super().close()
        self._wake.set()

    def listen(self, sink: Sink) -> None:
        """Hand what arrives to the sink until `close`."""
        try:
            while not self.closing.is_set():
                began = time.monotonic()
                is_up = self._answers() and self._look(sink)
                took = time.monotonic() - began
                self._wake.wait(self._until_next(is_up, took))
                self._wake.clear()
        finally:
            self._hints.close()
            if self._catalog is not None:
                self._catalog.context.http_client.close()

    def _until_next(self, is_up: bool, took_s: float) -> float:
        if is_up:
            self._pause_s = AGAIN_AFTER_S[0]
            # Not woken before: notifications must not raise the rate.
            self.closing.wait(min(took_s * (1 / SHARE - 1), AGAIN_AFTER_S[1]))
            return LOOK_EVERY_S
        self._pause_s = min(2 * self._pause_s, AGAIN_AFTER_S[1])
        self.closing.wait(self._pause_s)
        return 0.0

    # ------------------------------------------------------------------- server

    def _connect(self) -> Any:
        catalog = connect(self._url, self._profile)
        catalog.context.http_client.event_hooks["response"].append(_raise_at_once)
        return catalog

    def _answers(self) -> bool:
        """Ask once, ourselves: Tiled's client goes on trying for half a minute."""
        try:
            httpx.get(self._url, timeout=ANSWER_WITHIN_S)
        except httpx.TransportError as error:
            self._went_down(str(error))
            return False
        except httpx.InvalidURL as error:
            raise InputError(f"{self.address}: {error}") from None
        return True

    def _went_down(self, reason: str) -> None:
        if not self._is_down:
            self._is_down = True
            self.problems["server down"] += 1
            logger.warning("%s does not answer (%s); trying again", self._url, reason)

    def _look(self, sink: Sink) -> bool:
        """Tell what is new; False where the server no longer answers."""
        try:
            if self._catalog is None:
                self._catalog = self._connect()
            self._find_runs(self._catalog)
            for run in list(self._runs.values()):
                self._follow(run, sink)
        except (InputError, httpx.HTTPError) as error:
            self._went_down(" ".join(str(error).split()))
            return False
        except Exception as error:  # the loop must outlive any surprise
            self.note("fault", f"{type(error).__name__}: {error}")
            return False
        if self._is_down:
            self._is_down = False
            logger.warning("%s answers again", self._url)
        return True

    def _find_runs(self, catalog: Any) -> None:
        """Begin to follow runs that are new, and watch for further ones."""
        self._hints.watch(catalog)
        is_first = self._told.is_first
        for uid in catalog.keys().tail(MAX_RUNS):
            if uid in self._runs or uid in self._told:
                continue
            metadata = catalog[uid].metadata
            has_stopped = is_first and metadata.get("stop")
            if metadata.get("start") and not has_stopped:
                teller = RunTeller(self._profile, self._roots)
                self._runs[uid] = _Run(uid, teller, time.monotonic())
            else:
                self._told.add(uid)
        if is_first:
            self._told.save()

    # --------------------------------------------------------------------- runs

    def _follow(self, run: _Run, sink: Sink) -> None:
        """Tell what came of a run; one that cannot be read hinders no other."""
        if not self.taking or self.closing.is_set():
            return
        try:
            node = self._catalog[run.uid]
            self._hints.watch(node)
            if node.metadata.get("stop") and not run.has_stopped:
                run.stopped()
            if time.monotonic() < run.again_at:
                return
            self._hand_over_all(sink, run, self._documents(run, node))
        except (httpx.TransportError, OSError):
            raise
        except Exception as error:  # a catalog can hold anything
            run.failed()
            self.note("unreadable", f"run {run.uid}: {type(error).__name__}: {error}")
        is_silent = time.monotonic() - run.grew_at > self._profile.run.silence_s
        if self._commit(sink) and (run.teller.is_over or is_silent):
            del self._runs[run.uid]
            self._hints.forget(run.uid)
            self._told.add(run.uid)
            self._told.save()

    def _documents(self, run: _Run, node: Any) -> Iterable[Document]:
        """Return what is new; of a run that stopped and cannot be read, its end."""
        if run.has_stopped and run.n_failures >= MAX_ATTEMPTS:
            logger.error("run %s: not all of it can be read", run.uid)
            return run.teller.end(node)
        return run.teller.documents(node)

    def _hand_over_all(
        self, sink: Sink, run: _Run, documents: Iterable[Document]
    ) -> None:
        for name, doc in documents:
            try:
                packed = pack(name, doc)
            except TypeError as error:
                self.note("malformed", f"run {run.uid}: {error}")
                continue
            if not self.hand_over(sink, packed):
                return  # told again at the next look
            self._dirty = True
            run.n_failures = 0
            run.grew_at = self.heard_at = time.monotonic()
            if self.closing.is_set() or not self.taking:
                return

    def _commit(self, sink: Sink) -> bool:
        """Put on disk what was told; only then a run counts as told."""
        try:
            if self._dirty:
                sink.commit()
        except Exception as error:
            self.note("not committed", f"{type(error).__name__}: {error}")
            return False
        self._dirty = False
        return True


def _raise_at_once(response: httpx.Response) -> None:
    if response.status_code >= 500:
        raise _ServerError(f"{response.status_code} for {response.url.path}")
