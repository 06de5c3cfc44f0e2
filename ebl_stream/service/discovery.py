"""How doors find the service of a profile on this machine; light to import.

A service holds a lock in a private folder of its user for as long as it lives, and
next to it says where it listens. The lock falls with its process, so what a dead
service left behind is never believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.service.run_index import file_safe
from ebl_stream.transport.wire import MAX_IPC_PATH

TRIES, TRY_EVERY_S = 10, 0.03
KEEP_LOGS_S = 7 * 86_400.0


def runtime_folder() -> Path:
    """Return this user's private folder for sockets, made where missing.

    Raises
    ------
    InputError
        Somebody else owns it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    name = "ebl-stream" if base else f"ebl-stream-{os.getuid()}"
    folder = Path(base or tempfile.gettempdir()) / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise InputError(f"no folder for sockets: {folder}: {error.strerror}") from None
    private = stat.S_ISDIR(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
    if status.st_uid != os.getuid() or not private:
        raise InputError(
            f"{folder} must be a folder of yours alone (mode 0700); remove it"
        )
    return folder


def service_key(profile: Any, out: Path) -> str:
    """Return the name of the service of a `Profile` and a folder of results."""
    what = f"{profile.model_dump_json()}\n{Path(out).absolute()}"
    digest = hashlib.sha256(what.encode()).hexdigest()[:12]
    return f"{file_safe(profile.name)[:20]}-{digest}"


@dataclass(frozen=True)
class Announcement:
    """Where a service listens."""

    address: str
    pid: int


class ServicePlace:
    """The place of one service in the runtime folder.

    Parameters
    ----------
    key : str
        From `service_key`.
    """

    def __init__(self, key: str) -> None:
        self._folder = runtime_folder()
        self._key = key
        self._lock: int | None = None

    @property
    def default_address(self) -> str:
        """A local socket for this service alone.

        Raises
        ------
        InputError
            The runtime folder's path is too long for one.
        """
        path = self._folder / f"{self._key}.sock"
        if len(os.fsencode(path)) > MAX_IPC_PATH:
            raise InputError(
                f"the path of a local socket has at most {MAX_IPC_PATH} bytes, {path} "
                "has more: set XDG_RUNTIME_DIR to a folder with a shorter name, for "
                "the scan and for the service"
            )
        return f"ipc://{path}"

    @property
    def log(self) -> Path:
        """Log file of a service that a door started."""
        return self._folder / f"{self._key}.log"

    def take(self) -> bool:
        """Become the service of this place; False where there is one."""
        for _ in range(TRIES):
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            if self._is_locked_by_us(lock):
                self._lock = lock
                self._note.unlink(missing_ok=True)
                self._remove_old_logs()
                return True
            os.close(lock)
            time.sleep(TRY_EVERY_S)  # a door may be looking at this moment
        return False

    def announce(self, address: str) -> None:
        """Say where the service listens, now that it does."""
        text = json.dumps({"address": address, "pid": os.getpid()})
        new = self._note.with_suffix(".new")
        new.write_text(text)
        new.replace(self._note)

    def find(self) -> Announcement | None:
        """Return where the living service of this place listens."""
        if not self.is_taken():
            return None
        try:
            fields = strict_json.loads(self._note.read_text())
            return Announcement(str(fields["address"]), int(fields["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # it starts, or ends, at this moment

    def is_taken(self) -> bool:
        """Whether a service lives here."""
        try:
            lock = os.open(self._lock_path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    def leave(self) -> None:
        """Give the place up; only the log stays."""
        if self._lock is not None:
            self._note.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    @property
    def _note(self) -> Path:
        return self._folder / f"{self._key}.json"

    @property
    def _lock_path(self) -> Path:
        return self._folder / f"{self._key}.lock"

    def _is_locked_by_us(self, lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who left a moment ago may have removed the file that we locked.
            return os.path.samestat(os.fstat(lock), self._lock_path.stat())
        except (BlockingIOError, FileNotFoundError):
            return False

    def _remove_old_logs(self) -> None:
        before = time.time() - KEEP_LOGS_S
        for log in self._folder.glob("*.log"):
            with contextlib.suppress(OSError):
                if log.stat().st_mtime < before:
                    log.unlink()
