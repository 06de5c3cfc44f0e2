"""The document callback: the same for a live scan, a record and a file."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from ebl_stream import failpoints, strict_json
from ebl_stream.engine.grids import MakeAccumulator
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.errors import InputError
from ebl_stream.frames import Closed, Item, Scan
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.ingest.elsewhere import FindRun
from ebl_stream.ingest.pva import PvaFeed
from ebl_stream.ingest.recent_runs import RecentRuns
from ebl_stream.ingest.router import RunSorter
from ebl_stream.profile import Profile
from ebl_stream.publish.output import RunOutput
from ebl_stream.publish.retention import clean
from ebl_stream.publish.space import GB
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.result import Progress, Result

log = logging.getLogger(__name__)

DISK_REFUSED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
)
"""What ends a run, and may be over soon."""

IDLE_TICK_S = 1.0
KEPT_RESULTS = 64
"""Of a service, which has told of them at once."""

FEED_TICK_S = 0.02
"""While frames come that no document announces."""


class Reconstruction:
    """Reconstruct every tomography run among the documents.

    Parameters
    ----------
    profile : Profile
    out : Path
        Folder of the results, one sub-folder per processed run.
    link : TiledLink, optional
        Who tells Tiled.
    rows : (int, int), optional
        Half-open range of stored detector rows; all by default.
    live : bool
        Never raise, remember the last center, and subscribe to the profile's feed.
    is_behind : callable, optional
        Whether documents wait to be taken; then previews leave slabs out.
    roots : sequence of Path
        Folders that frames may be read from, besides the profile's.
    on_progress : callable, optional
        Called with every `Progress`.
    find_run : callable, optional
        Returns the documents of a run that is no longer remembered, by its uid (None:
        not known): its flats and darks may be wanted.

    Raises
    ------
    InputError
        The profile asks for unknown stages, or for a feed that cannot be.
    ModuleNotFoundError
        The profile has a feed, and its client is not installed.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        out: Path,
        link: TiledLink | None = None,
        rows: tuple[int, int] | None = None,
        live: bool = False,
        is_behind: Callable[[], bool] | None = None,
        roots: Sequence[Path] = (),
        on_progress: Callable[[Progress], None] | None = None,
        find_run: FindRun | None = None,
    ) -> None:
        self.results: dict[str, Result] = {}
        self.put_off: set[str] = set()
        """Live: uids of runs that the disk or the GPU ended; they can be begun anew."""
        self.profile = profile
        self.rooms = Rooms.furnish(profile)
        self.out = out
        self.link = link
        self.rows = rows
        self.live = live
        self._documents_wait = is_behind
        self._frames_flow = False
        self.accumulators = _accumulators(profile)
        self.roots = tuple(roots)
        self.on_progress = on_progress
        self.recent = (
            RecentRuns(profile.streams) if profile.start.references_run else None
        )
        self._find_run = find_run
        self.centers = CenterMemory(out, profile.name) if live else None
        if live:
            self.rooms.warm_up()
        # From now on, not from the first run on: what it missed would be missing.
        self.feed = PvaFeed(profile.feed) if live and profile.feed.address else None
        self.fed: dict[str, Run] = {}
        self._sorter = RunSorter(
            lambda start: Run(self, start["uid"]),
            stop_grace_s=profile.run.stop_grace_s,
            silence_s=profile.run.silence_s,
        )

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take one document."""
        self._sorter(name, doc)
        self._poll()

    def heard(self, run_uid: str) -> None:
        """Note that a run's sender lives: a scan may pause for hours."""
        self._sorter.is_alive(run_uid)

    def tick(self) -> None:
        """Let time pass: take frames, close runs that stopped early or fell silent."""
        self._poll()
        self._sorter.tick()

    @property
    def is_behind(self) -> Callable[[], bool] | None:
        """Whether documents wait, or frames came over the feed at every poll."""
        wait = self._documents_wait
        return None if wait is None else lambda: self._frames_flow or wait()

    @property
    def tick_s(self) -> float:
        """How often `tick` wants to be called, at least."""
        return FEED_TICK_S if self.fed else IDLE_TICK_S

    def find_run(self, run_uid: str) -> Iterable[tuple[str, dict[str, Any]]] | None:
        """Return the documents of another run that has flats and darks."""
        found = self.recent.find(run_uid) if self.recent is not None else None
        if found is None and self._find_run is not None:
            return self._find_run(run_uid)
        return found

    def abandon(self) -> None:
        """End without finishing anything: somebody else begins the runs anew."""
        if self.feed is not None:
            self.feed.close()

    def close(self) -> None:
        """End the source: runs that never stopped are finished as partial."""
        self._sorter.close()
        if self.feed is not None:
            self.feed.close()

    def _poll(self) -> None:
        flow = False
        for run_uid, run in list(self.fed.items()):
            if run.poll():
                flow = True
                self._sorter.heard(run_uid)
        self._frames_flow = flow


class Run:
    """One run on its way: documents -> items -> session."""

    def __init__(self, house: Reconstruction, run_uid: str) -> None:
        self._house = house
        self._run_uid = run_uid
        feed = house.feed.buffer if house.feed is not None else None
        self._assembler = Assembler(
            house.profile,
            rows=house.rows,
            roots=house.roots,
            feed=feed,
            find_run=house.find_run,
        )
        if feed is not None:
            house.fed[run_uid] = self
        self._n_taken = 0
        self._session: Session | None = None
        self._failed = False

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take one document of this run."""
        if self._house.recent is not None:
            self._house.recent.note(self._run_uid, name, doc)
        self._guard(lambda: self._take_all(self._assembler(name, doc)))
        if name == "stop":
            self._house.fed.pop(self._run_uid, None)

    def poll(self) -> bool:
        """Take the frames that came over the feed; say whether there were any."""
        n_before = self._n_taken
        self._guard(lambda: self._take_all(self._assembler.poll()))
        return self._n_taken > n_before

    def _guard(self, work: Callable[[], None]) -> None:
        """Do the work; what goes wrong ends this run, never the scan or the others."""
        if self._failed:
            return
        try:
            work()
        except Exception as error:
            self._failed = True
            self._give_up(error)
            if not self._house.live:
                raise

    def _take_all(self, items: Any) -> None:
        for item in items:
            self._n_taken += 1
            self._take(item)

    def _take(self, item: Scan | Item) -> None:
        if isinstance(item, Scan):
            self._session = self._open(item)
            return
        if self._session is None:
            return
        if isinstance(item, Closed) and item.is_references_only:
            log.info("run %s: flats and darks for other runs", self._run_uid)
            self._session.close()
            self._session = None
            return
        result = self._session.take(item)
        if result is not None:
            self._finish(self._session, result)

    def _open(self, scan: Scan) -> Session:
        house, policy = self._house, self._house.profile.retention
        if house.live and policy.automatic:
            # Beside the scan: gigabytes take their time to go.
            old = threading.Thread(target=clean, args=(house.out, policy), daemon=True)
            old.start()
        output = RunOutput(
            house.out,
            f"recon-{uuid.uuid4()}",
            house.link,
            min_free_bytes=round(policy.min_free_gb * GB),
        )
        return Session(
            scan,
            house.profile,
            house.rooms,
            output,
            previous_center=house.centers.recall() if house.centers else None,
            is_behind=house.is_behind,
            accumulators=house.accumulators,
            on_progress=house.on_progress,
        )

    def _finish(self, session: Session, result: Result) -> None:
        house = self._house
        house.results[result.run_uid] = result
        while house.live and len(house.results) > KEPT_RESULTS:
            del house.results[next(iter(house.results))]
        if house.centers and result.rotation_center_source == "measured":
            house.centers.remember(result.rotation_center)
        session.close()
        self._session = None

    def _give_up(self, error: Exception) -> None:
        session, self._session = self._session, None
        self._house.fed.pop(self._run_uid, None)
        expected = isinstance(error, InputError | OSError)
        if self._house.live:
            log.error("this run ended: %s", error, exc_info=not expected)
        if self._house.live and _disk_refused(error):
            self._put_off(session, f"{error}; the run goes on when the disk takes it")
        elif self._house.live and self._house.accumulators is not None and not expected:
            # Imported only where a GPU is used: CuPy takes its time.
            from ebl_stream.gpu.choice import give_up

            give_up(f"{type(error).__name__}: {error}")
            self._put_off(session, f"{error}; the run is begun anew on the CPU")
        elif session is not None:
            try:
                session.fail(str(error))
            except OSError as refused:  # the disk that ended the run
                log.error(
                    "run %s: its failure is not on disk: %s", self._run_uid, refused
                )
            finally:
                session.close()
        elif self._house.on_progress is not None:
            self._house.on_progress(Progress.never_began(self._run_uid, str(error)))

    def _put_off(self, session: Session | None, message: str) -> None:
        house = self._house
        house.put_off.add(self._run_uid)
        if session is None:
            return
        if house.on_progress is not None:
            house.on_progress(session.progress("running", message))
        session.close()


def _disk_refused(error: BaseException | None) -> bool:
    """Whether an error came of a disk that may take more later."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_REFUSED:
            return True
        error = error.__cause__ or error.__context__
    return False


class CenterMemory:
    """The last measured center per profile, the prior of the next scan."""

    def __init__(self, out: Path, profile_name: str) -> None:
        self._path = out / ".centers" / f"{profile_name}.json"

    def recall(self) -> float | None:
        """Return the last center, px, or None."""
        try:
            value = strict_json.loads(self._path.read_text())["rotation_center"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return float(value) if isinstance(value, int | float) else None

    def remember(self, rotation_center: float) -> None:
        """Keep a measured center for the next scan."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(".json.part")
            draft.write_text(json.dumps({"rotation_center": rotation_center}))
            failpoints.hit("center.drafted")
            os.replace(draft, self._path)
        except OSError as error:
            log.warning("last rotation center not kept: %s", error)


def _accumulators(profile: Profile) -> MakeAccumulator | None:
    """Return the GPU's accumulators where the profile asks for them; else None."""
    if profile.compute.device == "cpu":
        return None
    # Imported only where it is wanted: CuPy takes its time.
    from ebl_stream.gpu.choice import accumulator_factory, best_device

    device, words = best_device()
    if device is None:
        log.warning("%s; the CPU accumulates", words)
        return None
    log.info("%s", words)
    return cast(MakeAccumulator, accumulator_factory(device))
