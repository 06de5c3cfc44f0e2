"""The service: documents from doors to journal and worker, progress back to doors."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ebl_stream import failpoints
from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.service.discovery import ServicePlace, service_key
from ebl_stream.service.journal import UNSORTED, OpenRun, ServiceJournal
from ebl_stream.service.priority import step_back
from ebl_stream.service.run_index import RunIndex
from ebl_stream.service.signals import Asked, asked_by_signals
from ebl_stream.service.worker import MakeCallback, Worker
from ebl_stream.sources import open_listener
from ebl_stream.sources.listener import Listener
from ebl_stream.sources.past_runs import journaled_run
from ebl_stream.transport.documents import DocumentError, unpack
from ebl_stream.transport.wire import is_local

if TYPE_CHECKING:
    from ebl_stream.publish.publishing import Publishing

logger = logging.getLogger(__name__)

QUEUE_BYTES = 2**30
CATCH_UP_S = 8.0
"""How long Tiled may take at the end; what it lacks then is told at the next start."""
MAX_DEATHS = 3
"""A run in whose midst the worker died so often is given up."""
RETRY_S, MAX_RETRY_S = 5.0, 60.0
"""How soon a run that the disk ended is tried again; doubles."""
LOOK_EVERY_S = 0.5


class Attempts(Protocol):
    """What earlier attempts at a run left behind."""

    def result(self, run_uid: str, begun: float) -> dict[str, Any] | None:
        """Return what came of a run, if it was written to the end."""
        ...

    def supersede(self, run_uid: str, begun: float, why: str) -> None:
        """Mark what earlier attempts left: it does not count any more."""
        ...

    def has_room(self) -> bool:
        """Whether the disk takes results."""
        ...


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
    attempts : Attempts, optional
        Who knows the results of runs that are gone on with.
    """

    def __init__(
        self,
        listener: Listener,
        make_callback: MakeCallback,
        journal: Path,
        *,
        owner: str = "",
        max_queue_bytes: int = QUEUE_BYTES,
        attempts: Attempts | None = None,
    ) -> None:
        self.listener = listener
        self.problems: Counter[str] = Counter()
        self._journal = ServiceJournal(journal, owner)
        self._index = RunIndex()
        self._attempts = attempts
        self._taking = threading.Lock()
        self._deaths: Counter[str] = Counter()
        self._retry_at = 0.0
        self._retry_s = RETRY_S
        self._leaving = False
        self._ended_before = ended = self._journal.results()
        self.worker = Worker(
            make_callback, self._tell, max_queue_bytes=max_queue_bytes, ended=ended
        )
        for run_uid, status in ended.items():
            listener.tell(run_uid, status)
        for packed in self._journal.just_ended():
            with contextlib.suppress(DocumentError):
                self._index.run_uid(*unpack(packed))
        for run_uid, why in self._journal.recover().items():
            self.worker.fail(run_uid, why)
        self._resume_all("the service died within the run; it was begun anew")
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
        with self._taking:
            run_uid = self._index.run_uid(name, doc)
            if run_uid in self._ended_before and not self._journal.is_written(run_uid):
                return True  # its door was not told before the service ended
            try:
                kept = self._journal.append(run_uid, packed)
                if kept is None:
                    return True  # from before a crash: its sender did not know
            except OSError as error:
                self._note_full(error)
                if self.listener.acknowledges:
                    return False  # it stays with its sender, who tries again
                kept = None
            self.worker.put(run_uid, name, doc, len(packed), kept)
        return True

    def commit(self) -> None:
        """Put on disk what was taken."""
        self._journal.commit()

    def heard(self, run_uids: Iterable[str]) -> None:
        """Note runs whose door lives: a scan may pause for hours."""
        self.worker.heard(run_uids)

    def supervise(self) -> None:
        """Look after the threads; call it now and then.

        Raises
        ------
        RuntimeError
            The listener's thread died: who starts the service again loses nothing.
        """
        if not self.worker.is_alive:
            self._replace_worker()
        elif self.worker.put_off and time.monotonic() >= self._retry_at:
            self._try_again()
        if not self._thread.is_alive():
            raise RuntimeError("the listener's thread died; start the service again")

    def idle_s(self) -> float:
        """Return for how long there was nothing to do and nobody spoke."""
        return self.listener.seconds_since_heard() if self.worker.is_idle else 0.0

    def stop(self, *, for_good: bool = False) -> None:
        """Work off what was received, tell of it, and end.

        Runs that did not stop are gone on with by the next service, unless it is
        ``for_good``: then they are over.
        """
        self._leaving = not for_good
        if not self.worker.is_alive:
            self._replace_worker()
        self.listener.stop_taking()
        self.worker.stop()
        self.listener.close()
        self._thread.join()
        self._journal.close()

    def _note_full(self, error: OSError) -> None:
        self.problems["journal"] += 1
        if self.problems["journal"] == 1:
            logger.error("the journal cannot be written: %s", error)

    def _replace_worker(self) -> None:
        run_uid = self.worker.at_work or ""
        self._deaths[run_uid] += 1
        logger.critical("the worker died at run %s; its runs begin anew", run_uid)
        self._begin_anew("the worker died within the run; it was begun anew")

    def _try_again(self) -> None:
        self._retry_at = time.monotonic() + self._retry_s
        if self._attempts is not None and not self._attempts.has_room():
            return
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
        self._begin_anew("the disk took nothing more; the run was begun anew")

    def _begin_anew(self, why: str) -> None:
        with self._taking:
            self.worker.begin_anew()
            self._resume_all(why)

    def _resume_all(self, why: str) -> None:
        for run in self._journal.open_runs:
            if self._deaths[run.run_uid] > MAX_DEATHS:
                self.worker.fail(run.run_uid, "the worker died again and again")
            else:
                self._resume(run, why)

    def _resume(self, run: OpenRun, why: str) -> None:
        """Put all documents of a run before the worker again."""
        if self._attempts is not None and run.run_uid != UNSORTED:
            known = self._attempts.result(run.run_uid, run.begun)
            if run.has_stopped and known is not None:
                self.worker.has_ended(run.run_uid)
                self._tell(run.run_uid, {**known, "final": True})
                return
            self._attempts.supersede(run.run_uid, run.begun, why)
        for packed, kept in self._journal.documents(run):
            try:
                name, doc = unpack(packed)
            except DocumentError as error:
                logger.error("%s: a document is lost: %s", run.journal, error)
                continue
            run_uid = self._index.run_uid(name, doc)
            self.worker.put(run_uid, name, doc, len(packed), kept)
            failpoints.hit("resume.queued")

    def _tell(self, run_uid: str, status: dict[str, Any]) -> None:
        if self._leaving and not self._journal.has_stopped(run_uid):
            message = "the service ended; it goes on with the run when started again"
            status = {**status, "state": "running", "message": message, "final": False}
        if status.get("final"):
            self._journal.ended(run_uid, status)
            logger.info("run %s: %s", run_uid, status.get("state"))
        self.listener.tell(run_uid, status)
        failpoints.hit("run.told")


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
        if settings.idle_exit_s is not None:
            step_back()
        listener = open_listener(settings.source, settings.profile, settings.out)

        def listening() -> None:
            place.announce(listener.address)
            if ready is not None:
                ready(listener.address)

        with asked_by_signals() as asked:
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
    asked: Asked,
) -> None:
    # The heavy part of the house: bad input is answered before it is loaded.
    from ebl_stream.publish.publishing import Publishing

    profile, out = settings.profile, settings.out
    publishing = Publishing(settings.tiled, out, profile)
    try:
        publishing.begin()
        make = _make_callback(settings, publishing)
        service = Service(
            listener,
            make,
            out / "journal",
            owner=profile.name,
            attempts=publishing.attempts,
        )
        publishing.attempts.tell_again()
        listening()
        nobody_speaks = _supervise(service, publishing, settings.idle_exit_s, asked)
        service.stop(for_good=nobody_speaks)
        if publishing.link is not None:
            publishing.link.wait_until_caught_up(CATCH_UP_S)
    finally:
        publishing.close()


def _supervise(
    service: Service,
    publishing: Publishing,
    idle_exit_s: float | None,
    asked: Asked,
) -> bool:
    """Look after everything until somebody asks to end, or (True) nobody speaks."""
    while not asked.event.wait(LOOK_EVERY_S):
        service.supervise()
        if publishing.link is not None:
            publishing.link.supervise()
        if idle_exit_s is not None and service.idle_s() > idle_exit_s:
            return True
    return False


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
        find_run=journaled_run(settings.out / "journal"),
    )
