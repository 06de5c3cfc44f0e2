"""Frames over EPICS pvAccess: a monitor of an NTNDArray."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from ebl_stream.errors import InputError
from ebl_stream.frames import Kind
from ebl_stream.ingest.feed import FedFrame, FeedError, FrameBuffer
from ebl_stream.ingest.ntndarray import attribute, decode
from ebl_stream.profile import Feed

log = logging.getLogger(__name__)

SCHEME = "pva://"


class PvaFeed:
    """Hear every frame of a process variable, from now until `close`.

    The connection comes back by itself when the server does. Frames that were posted
    in between are lost, and their ids are missing.

    Parameters
    ----------
    settings : Feed
        Of the profile.
    conf : dict, optional
        EPICS client settings; the environment's (``EPICS_PVA_ADDR_LIST``, ...) by
        default.

    Raises
    ------
    InputError
        The address is none of pvAccess.
    ModuleNotFoundError
        p4p is not installed (the extra ``pva``).
    """

    def __init__(self, settings: Feed, *, conf: dict[str, str] | None = None) -> None:
        from p4p.client.thread import Context

        self.pv = pv_name(settings.address or "")
        self.buffer = FrameBuffer(settings.max_bytes)
        self._settings = settings
        self._kinds = _kinds(settings)
        self._was_connected = False
        self._context: Any = Context("pva", conf=conf, useenv=conf is None, nt=False)
        # Not `pipeline=true`: p4p 4.3 then leaves what its server queued in a slow
        # moment unsent until the next frame is posted, which after a scan may be never.
        self._subscription = self._context.monitor(
            self.pv,
            self._heard,
            request=f"record[queueSize={settings.queue_size}]",
            notify_disconnect=True,
        )

    def close(self) -> None:
        """End the subscription."""
        self._subscription.close()
        self._context.close()

    def _heard(self, update: Any) -> None:
        # Whatever is raised here would end the subscription for good.
        try:
            if isinstance(update, Exception):
                self._interrupted(update)
            else:
                self._take(update)
        except Exception as error:
            self.buffer.note("malformed")
            if self.buffer.counts["malformed"] == 1:
                log.warning("%s: an update that is no image: %r", self.pv, error)

    def _interrupted(self, why: Exception) -> None:
        self.buffer.disturbed(time.time())
        if self._was_connected:
            self.buffer.note("interruptions")
            log.warning("%s: connection lost (%s)", self.pv, type(why).__name__)
        self._was_connected = False

    def _take(self, update: Any) -> None:
        now = time.time()
        if not self._was_connected:
            self._was_connected = True
            self.buffer.disturbed(now)
            log.info("%s: connected", self.pv)
        # Before the first frame, and where only an alarm changed, there is no image.
        if update.value is None or not update.changed("value"):
            self.buffer.note("empty")
            return
        stamp = update.timeStamp
        self.buffer.receive(
            FedFrame(
                unique_id=int(update.uniqueId),
                stamp=stamp.secondsPastEpoch + stamp.nanoseconds * 1e-9,
                received=now,
                kind=self._kind(update),
                n_bytes=update.value.nbytes,
                decode=partial(decode, update),
            )
        )

    def _kind(self, update: Any) -> Kind | None:
        name = self._settings.kind_attribute
        if name is None:
            return None
        said = attribute(update, name)
        return self._kinds.get((said or "").lower(), Kind.INVALID)


def pv_name(address: str) -> str:
    """Return the process variable of an address ``pva://PV``.

    Raises
    ------
    InputError
        It is none.
    """
    name = address.removeprefix(SCHEME).strip()
    if not address.startswith(SCHEME) or not name or any(c.isspace() for c in name):
        raise InputError(
            f"feed.address {address!r}: expected pva://PV, "
            "such as pva://2bmSP2:Pva1:Image"
        )
    return name


def _kinds(settings: Feed) -> dict[str, Kind]:
    said = {
        Kind.PROJECTION: settings.projections,
        Kind.FLAT: settings.flats,
        Kind.DARK: settings.darks,
    }
    return {word.lower(): kind for kind, words in said.items() for word in words}


def probe(address: str, timeout_s: float = 3.0) -> str | None:
    """Say what the process variable holds now; None: it does not answer.

    Raises
    ------
    InputError
        The address is none of pvAccess, or what answers is no NTNDArray.
    ModuleNotFoundError
        p4p is not installed.
    """
    from p4p.client.thread import Context

    pv = pv_name(address)
    with Context("pva", nt=False) as context:
        try:
            value: Any = context.get(pv, timeout=timeout_s)
        except TimeoutError:
            return None
    if not value.getID().startswith("epics:nt/NTNDArray:"):
        raise InputError(f"{pv} is no image (NTNDArray) but {value.getID() or 'plain'}")
    if value.value is None:
        return "answers, no frame yet"
    sizes = " x ".join(str(axis.size) for axis in value.dimension)
    codec = value.codec.name or "none"
    try:
        dtype = str(decode(value).dtype)
    except FeedError as error:
        raise InputError(f"{pv}: {error}") from None
    return f"answers: {sizes} {dtype}, codec {codec}, unique id {value.uniqueId}"
