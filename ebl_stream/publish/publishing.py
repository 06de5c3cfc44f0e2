"""Tiled for one command: the link, and the embedded server where it is asked for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import httpx

from ebl_stream.profile import Profile
from ebl_stream.publish.attempts import Attempts, note_told
from ebl_stream.publish.space import GB
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer

logger = logging.getLogger(__name__)

START_S = 60.0
"""How long the embedded server may take to start."""
CATCH_UP_S = 30.0
"""How long Tiled may take to hear of the last slab."""
UNREACHABLE_S = 5.0
"""The same for a server that does not answer at all."""


class Publishing:
    """Tiled for one command: nothing is started before there is a result.

    Parameters
    ----------
    where : str
        ``embedded``, ``none``, or the address of a Tiled server.
    out : Path
        Folder of the results, which the embedded server serves.
    profile : Profile
        Names the container and the environment variable with the key.
    """

    def __init__(self, where: str, out: Path, profile: Profile) -> None:
        self.server = TiledServer(out) if where == "embedded" else None
        self.link: TiledLink | None = None
        if where != "none":
            self.link = TiledLink(
                self.server or where,
                api_key=os.environ.get(profile.publish.api_key_env),
                container=profile.publish.path,
                on_told=note_told,
            )
        keep_free = round(profile.retention.min_free_gb * GB)
        self.attempts = Attempts(out, self.link, keep_free)
        self._where = where
        self._began = False

    def begin(self) -> None:
        """Start the embedded server; call it again at will."""
        if self.server is not None and not self._began:
            self._began = True
            self.server.start()

    def node_uri(self, processed_uid: str) -> str | None:
        """Return where Tiled serves a run, after a bounded wait until it does.

        None where nothing is to be published, and where Tiled did not take it; a
        warning says so.
        """
        if self.link is None:
            return None
        if self.link.wait_until_caught_up(self._patience_s()):
            return self.link.node_uri(processed_uid)
        logger.warning("the result is not in Tiled; it is safe in its folder")
        return None

    def _patience_s(self) -> float:
        """Return how long it is worth waiting for Tiled."""
        if self.server is not None:
            may_start = self.server.api_key is not None
            return CATCH_UP_S if may_start and self.server.wait_ready(START_S) else 0.0
        try:
            httpx.get(self._where, timeout=UNREACHABLE_S)
        except (httpx.HTTPError, httpx.InvalidURL):
            return UNREACHABLE_S
        return CATCH_UP_S

    def close(self) -> None:
        """Stop telling Tiled, and the embedded server."""
        if self.link is not None:
            self.link.close(0)
        if self.server is not None:
            self.server.stop()
