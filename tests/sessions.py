"""Whole runs through a session, as tests of the engine need them."""

from __future__ import annotations

import json

import numpy as np
import zarr

from ebl_stream import profile_file as profiles
from ebl_stream.engine import session as sessions
from ebl_stream.engine.rooms import Rooms
from ebl_stream.engine.session import Session
from ebl_stream.frames import Announced, Closed, Frame, Kind, Scan
from ebl_stream.publish.output import RunOutput

I0 = 20_000.0
PLAIN = {
    "preprocess": ["flat_field", {"minus_log": {"clip": 1e-5}}],
    "denoise": None,
    "segment": None,
    "quantify": None,
}


def counts(line_integrals, seed=0):
    """Raw frames of line integrals, with photon noise."""
    rng = np.random.default_rng(seed)
    return rng.poisson(I0 * np.exp(-line_integrals)).astype(np.uint16)


def items(images, theta, indices=None):
    """A run's frames in the order of ``indices``, flats and darks first."""
    shape = images.shape[1:]
    flat = Frame(0, Kind.FLAT, np.nan, np.full(shape, I0, np.float32))
    yield Announced(Kind.FLAT, 0, 1)
    yield flat
    for k in range(len(theta)) if indices is None else indices:
        yield Announced(Kind.PROJECTION, k, k + 1)
        yield Frame(k, Kind.PROJECTION, theta[k], images[k])
    yield Closed("success", "", len(theta), 0)


class Outcome:
    """What a session left behind."""

    def __init__(self, result, output):
        self.result = result
        self.output = output
        self.metadata = json.loads((output.folder / "metadata.json").read_text())

    def array(self, name="recon"):
        return zarr.open_array(self.output.path(name), mode="r")[:]


def run(
    folder,
    images,
    theta,
    indices=None,
    *,
    memory=None,
    hooks=(),
    accumulators=None,
    is_behind=None,
    **overrides,
):
    """Run frames through a fresh session.

    ``memory`` replaces what the machine says is free; ``hooks`` are called with the
    session and each item, before it is taken. ``is_behind`` makes it a live run.
    """
    profile = profiles.load("demo", PLAIN | overrides)
    output = RunOutput(folder, f"run-{len(list(folder.iterdir()))}")
    scan = Scan("raw", {}, len(theta))
    rooms = Rooms.furnish(profile)
    session = Session(
        scan,
        profile,
        rooms,
        output,
        is_behind=is_behind,
        accumulators=accumulators,
    )
    known, result = (sessions.free_memory, sessions.n_threads), None
    if memory is not None:
        sessions.free_memory = lambda: int(memory)
        sessions.n_threads = lambda: 2
    try:
        for item in items(images, theta, indices):
            for hook in hooks:
                hook(session, item)
            result = session.take(item) or result
    finally:
        sessions.free_memory, sessions.n_threads = known
        session.close()
    return Outcome(result, output)
