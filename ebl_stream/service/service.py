"""The service: documents from doors to journal and worker, progress back to doors."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.service.discovery import ServicePlace, service_key
from ebl_stream.service.journal import Kept, ServiceJournal
from ebl_stream.service.run_index import RunIndex
from ebl_stream.service.worker import MakeCallback, Worker
from ebl_stream.sources.listener import Listener
from ebl_stream.sources.zmq import open_listener
from ebl_stream.transport.documents import unpack
from ebl_stream.transport.wire import is_local

if TYPE_CHECKING:
    from ebl_stream.publish.publishing import Publishing

logger = logging.getLogger(__name__)

QUEUE_BYTES = 2**30
CATCH_UP_S = 30.0
LOOK_EVERY_S = 0.5
NICENESS = 5
"""Of a service that a door started on the RunEngine's machine."""


class Service:
    """Takes documents from a listener until it is stopped.

    The listener's thread writes every document to the journal, and only then is it
    acknowledged; the worker's thread reconstructs.

    Parameters
    ----------
    listener : Listener
    make_callback : callable
        Makes the callback of the worker; its argument is to be called with every
        `Progress`.
    journal : Path
        Folder of the journals.
    owner : str
        The profile's name: runs that a crash cut short are gone on with by it.
    max_queue_bytes : int
        Documents that wait in memory; further ones are read from the journal.
    """

    def __init__(
        self,
        listener: Listener,
        make_callback: MakeCallback,
        journal: Path,
        *,
        owner: str = "",
        max_queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self.listener = listener
        self.problems: Counter[str] = Counter()
        self._journal = ServiceJournal(journal, owner)
        self._index = RunIndex()
        self.worker = Worker(make_callback, self._tell, max_queue_bytes=max_queue_bytes)
        for packed in self._journal.recover():
            self.take(packed)
        self._thread = threading.Thread(
            target=listener.listen,
            args=(self,),
            name="ebl-stream-listener",
            daemon=True,
        )
        self._thread.start()

    def take(self, packed: bytes) -> bool:
        """Write a document to the journal and queue it (the listener's thread).

        Raises
        ------
        DocumentError
            The bytes are no document.
        """
        name, doc = unpack(packed)
        run_uid = self._index.run_uid(name, doc)
        kept = self._keep(run_uid, packed)
        if kept is None and self.listener.acknowledges:
            return False  # it stays with its sender, who tries again
        self.worker.put(run_uid, name, doc, len(packed), kept)
        return True

    def commit(self) -> None:
        """Put on disk what was taken."""
        self._journal.commit()

    def supervise(self) -> None:
        """Look after the threads; call it now and then."""
        self.worker.supervise()

    def idle_s(self) -> float:
        """Return for how long there was nothing to do and nobody spoke."""
        return self.listener.seconds_since_heard() if self.worker.is_idle else 0.0

    def stop(self) -> None:
        """Work off what was received, tell of it, and end."""
        self.listener.stop_taking()
        self.worker.stop()
        self.listener.close()
        self._thread.join()
        self._journal.close()

    def _keep(self, run_uid: str | None, packed: bytes) -> Kept | None:
        try:
            return self._journal.append(run_uid, packed)
        except OSError as error:
            self.problems["journal"] += 1
            if self.problems["journal"] == 1:
                logger.error("the journal cannot be written: %s", error)
            return None

    def _tell(self, run_uid: str, status: dict[str, Any]) -> None:
        if status.get("final"):
            self._journal.ended(run_uid)
            logger.info("run %s: %s", run_uid, status.get("state"))
        self.listener.tell(run_uid, status)


@dataclass(frozen=True)
class Settings:
    """What a service is to do."""

    profile: Profile
    source: str
    """Address to take documents from, see `open_listener`."""
    out: Path
    """Folder of the results; journals go to ``<out>/journal``."""
    tiled: str
    """``embedded``, ``none``, or the address of a Tiled server."""
    idle_exit_s: float | None = None
    """End when nobody spoke for so long: set by a door that started this service."""

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders that frames may be read from besides the profile's.

        Documents name files. Where nobody outside of this machine can send
        documents, and the profile names no folders, any HDF5 file that this user
        may read will do.
        """
        if self.profile.files.roots:
            return ()
        if not is_local(self.source):
            logger.warning(
                "profile %s: files.roots is empty, so no frame is read from any file; "
                "name the folders that the detectors write to",
                self.profile.name,
            )
            return ()
        return (Path("/"),)


def serve(settings: Settings, ready: Callable[[str], object] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, finish what was received, return the exit code.

    Parameters
    ----------
    settings : Settings
    ready : callable, optional
        Called with the address once documents are taken.

    Returns
    -------
    int
        0 after SIGTERM or silence, 130 after Ctrl-C.

    Raises
    ------
    InputError
        The address cannot be used, or this profile has a service for ``out``.
    """
    place = _take_place(settings)
    try:
        listener = open_listener(settings.source)
        if settings.idle_exit_s is not None:
            os.nice(NICENESS)

        def listening() -> None:
            place.announce(listener.address)
            if ready is not None:
                ready(listener.address)

        with _signals() as asked:
            _serve(settings, listener, listening, asked)
        return 130 if asked.interrupted else 0
    finally:
        place.leave()


def _take_place(settings: Settings) -> ServicePlace:
    name, out = settings.profile.name, settings.out
    place = ServicePlace(service_key(settings.profile, out))
    if not place.take():
        found = place.find()
        where = f" at {found.address} (process {found.pid})" if found else ""
        raise InputError(f"profile {name}: there is a service for {out} already{where}")
    return place


def _serve(
    settings: Settings,
    listener: Listener,
    listening: Callable[[], None],
    asked: _Asked,
) -> None:
    # The heavy part of the house: bad input is answered before it is loaded.
    from ebl_stream.publish.publishing import Publishing

    profile, out = settings.profile, settings.out
    publishing = Publishing(settings.tiled, out, profile)
    try:
        publishing.begin()
        make = _make_callback(settings, publishing)
        service = Service(listener, make, out / "journal", owner=profile.name)
        listening()
        while not asked.event.wait(LOOK_EVERY_S):
            service.supervise()
            idle_exit_s = settings.idle_exit_s
            if idle_exit_s is not None and service.idle_s() > idle_exit_s:
                break
        service.stop()
        if publishing.link is not None:
            publishing.link.wait_until_caught_up(CATCH_UP_S)
    finally:
        publishing.close()


def _make_callback(settings: Settings, publishing: Publishing) -> MakeCallback:
    from ebl_stream.reconstruction import Reconstruction

    roots = settings.roots
    return lambda on_progress, is_behind: Reconstruction(
        settings.profile,
        out=settings.out,
        link=publishing.link,
        live=True,
        is_behind=is_behind,
        roots=roots,
        on_progress=on_progress,
    )


class _Asked:
    """Whether somebody asked the service to end."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.interrupted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.event.set()


@contextmanager
def _signals() -> Iterator[_Asked]:
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, asked) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
