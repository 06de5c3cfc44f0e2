"""What is to be in the volumes: a plain reading of the documents that arrived.

Nothing of the code under test is used here, but for the one batch reconstruction
that all volumes are compared with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from telling import CENTER, DARK, FLAT, Document, Image, Teller

from ebl_stream.stages.reconstruct import Fourier

REFERS = {
    "start": (),
    "descriptor": ("run_start",),
    "stream_resource": ("run_start",),
    "event": ("descriptor",),
    "stream_datum": ("descriptor", "stream_resource"),
    "stop": ("run_start",),
}


@dataclass
class Expected:
    """One run, from the documents of it that could be understood."""

    start: dict[str, Any]
    teller: Teller
    streams: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Data key by resource."""
    image: dict[int, Image] = field(default_factory=dict)
    theta: dict[int, float] = field(default_factory=dict)
    used: dict[int, tuple[Image, float]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    counted: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """Event numbers by stream and by who told them."""
    uids: set[str] = field(default_factory=set)
    repeats: Counter[str] = field(default_factory=Counter)
    like: Image | None = None
    """The first frame: others have to look like it."""
    stop: dict[str, Any] | None = None
    is_over: bool = False

    def take(self, name: str, doc: dict[str, Any]) -> None:
        again = doc["uid"] in self.uids
        self.uids.add(doc["uid"])
        match name:
            case "descriptor":
                self.streams[doc["uid"]] = doc["name"]
            case "stream_resource":
                self.keys[doc["uid"]] = doc["data_key"]
            case "stop":
                self.stop = self.stop or doc
            case "event":
                self._event(doc, again)
            case "stream_datum":
                self._datum(doc, again)

    def _event(self, doc: dict[str, Any], again: bool) -> None:
        stream, seq = self.streams[doc["descriptor"]], doc["seq_num"]
        self._count(stream, "", seq, again, carries_image=stream == "primary")
        if again or stream != "primary":
            return
        self.image[seq] = doc["data"]["image"]
        if "theta" in doc["data"]:
            self.theta[seq] = doc["data"]["theta"]
        self._judge(seq)

    def _datum(self, doc: dict[str, Any], again: bool) -> None:
        key = self.keys[doc["stream_resource"]]
        places = range(doc["indices"]["start"], doc["indices"]["stop"])
        for seq, place in enumerate(places, doc["seq_nums"]["start"]):
            self._count("primary", key, seq, again, carries_image=key == "image")
            if again:
                continue
            if key == "image":
                self.image[seq] = self.teller.images[place]
            else:
                self.theta[seq] = self.teller.angles[place]
            self._judge(seq)

    def _count(
        self, stream: str, teller: str, seq: int, again: bool, *, carries_image: bool
    ) -> None:
        seen = self.counted.setdefault((stream, teller), set())
        if carries_image and (again or seq in seen):
            self.repeats["duplicate" if again else "superseded"] += 1
        seen.add(seq)

    def _judge(self, seq: int) -> None:
        """An image that can be used takes the place of the one before it."""
        if seq not in self.image or seq not in self.theta:
            return
        image, theta = self.image[seq], self.theta[seq]
        if self.like is None:
            self.like = image
        reason = None
        if (image.shape, image.dtype) != (self.like.shape, self.like.dtype):
            reason = "wrong_shape"
        elif not math.isfinite(theta):
            reason = "no_angle"
        elif not np.isfinite(image).any():
            reason = "non_finite"
        elif not image.any():
            reason = "blank"
        if reason is None:
            self.used[seq - 1] = image, theta
        else:
            self.refused[seq - 1] = reason

    # ---------------------------------------------------------------- the end

    @property
    def is_complete(self) -> bool:
        """Whether everything that the stop counts has come."""
        if self.stop is None:
            return False
        for stream, n in self.stop["num_events"].items():
            in_file = self.teller.folder is not None and stream == "primary"
            for teller in ("image", "theta") if in_file else ("",):
                if len(self.counted.get((stream, teller), ())) < n:
                    return False
        return True

    def end(self) -> None:
        self.is_over = True
        for seq in self.image.keys() - self.theta.keys():
            self.refused[seq - 1] = "no_angle"
        for seq in self.theta.keys() - self.image.keys():
            self.refused[seq - 1] = "no_image"
        for index in self.used:
            self.refused.pop(index, None)

    @property
    def missing(self) -> set[int]:
        told = {seq - 1 for seq in self.image.keys() | self.theta.keys()}
        owed = max([self.start.get("n_projections", 0), *(k + 1 for k in told)])
        counts = self.stop["num_events"] if self.stop else {}
        return set(range(max(owed, counts.get("primary", 0)))) - told

    def n_of(self, stream: str) -> int:
        return len(self.counted.get((stream, ""), ()))

    @property
    def volume(self) -> NDArray[np.float32]:
        """All that is used, reconstructed at once."""
        dark = DARK if self.n_of("darks") else 0.0
        images, theta = zip(*self.used.values(), strict=True)
        transmission = (np.stack(images) - dark) / (FLAT - dark)
        values = -np.log(np.clip(transmission, 1e-5, None))
        batch = Fourier(padding="zero")
        return batch(values.astype(np.float32), np.array(theta), CENTER)


class Expectations:
    """Every run among the documents that arrived, in whatever order."""

    def __init__(self) -> None:
        self.runs: dict[str, Expected] = {}
        self.tellers: dict[str, Teller] = {}
        self._run_of: dict[str, str] = {}
        self._waiting: list[Document] = []

    def take(self, name: str, doc: dict[str, Any]) -> None:
        """Take a document in, and what waited for it."""
        self._waiting.append((name, doc))
        while (found := self._next()) is not None:
            self._waiting.remove(found)
            self._place(*found)
        self.end(run for run in self.runs.values() if run.is_complete)

    def end(self, runs: Iterable[Expected]) -> None:
        for run in list(runs):
            if not run.is_over:
                run.end()

    def give_up(self) -> None:
        """Silence: what is under way ends, and what waits waits no more."""
        self._waiting.clear()
        self.end(self.runs.values())

    def stop_waiting(self) -> None:
        """The grace is over for runs that stopped before all was there."""
        self.end(run for run in self.runs.values() if run.stop is not None)

    def _next(self) -> Document | None:
        for name, doc in self._waiting:
            if all(doc[key] in self._run_of for key in REFERS[name]):
                return name, doc
        return None

    def _place(self, name: str, doc: dict[str, Any]) -> None:
        refers = REFERS[name]
        uid = self._run_of[doc[refers[0]]] if refers else doc["uid"]
        self._run_of.setdefault(doc["uid"], uid)
        if name == "start":
            self.runs.setdefault(uid, Expected(doc, self.tellers[uid]))
        elif not self.runs[uid].is_over:
            self.runs[uid].take(name, doc)
