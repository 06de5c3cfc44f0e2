"""Which runs of a server were told, remembered from one service to the next."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from ebl_stream import strict_json

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 5000


class ToldRuns:
    """A set of uids in a small file.

    Parameters
    ----------
    folder : Path, optional
        None: remembered as long as this object lives.
    url : str
        Of the container that the runs are in.
    """

    def __init__(self, folder: Path | None, url: str) -> None:
        digest = hashlib.sha256(url.encode()).hexdigest()[:12]
        self._path = folder / f"tiled-{digest}.json" if folder else None
        self._uids: dict[str, None] = {}
        self.is_first = True
        """Whether nothing was remembered: a service that is started the first time."""
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def __contains__(self, uid: str) -> bool:
        return uid in self._uids

    def add(self, uid: str) -> None:
        """Remember a run; the oldest are forgotten first."""
        self._uids[uid] = None
        while len(self._uids) > MAX_REMEMBERED:
            del self._uids[next(iter(self._uids))]

    def save(self) -> None:
        """Write the file anew; where the disk is full, we only forget."""
        self.is_first = False
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(list(self._uids)))
            new.replace(self._path)
        except OSError as error:
            logger.warning("which runs were told is not on disk: %s", error)

    def _read(self, path: Path) -> None:
        try:
            uids = strict_json.loads(path.read_text())
            self._uids = {uid: None for uid in uids if isinstance(uid, str)}
            self.is_first = False
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read (%s): begun anew", path, error)
