"""Files that another process is still writing, and many files."""

import os
import subprocess
import sys
from pathlib import Path

import event_model
import h5py
import numpy as np
import pytest
from scans import Fly, H, Outcome, W, image_key, images, make_profile, scalar

from ebl_stream.frames import (
    Frame,
)
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.ingest.resources import MAX_OPEN_FILES

WRITER = """
import sys, time, h5py, numpy as np
path, mode, n = sys.argv[1], sys.argv[2], 12
swmr, early = mode != "locked", mode == "early"
data = np.random.default_rng(0).integers(1, 60_000, (n, 8, 12), np.uint16)
with h5py.File(path, "w", libver="latest") as file:
    image = file.create_dataset("image", (0, 8, 12), "u2", maxshape=(None, 8, 12),
                                chunks=(1, 8, 12))
    theta = file.create_dataset("theta", (0,), "f8", maxshape=(None,), chunks=(64,))
    if swmr:
        file.swmr_mode = True
    print("ready", flush=True)
    for k in range(n):
        sys.stdin.readline()
        time.sleep(0.02)
        image.resize(k + 1, 0); theta.resize(k + 1, 0)
        theta[k] = k
        if early:  # the length is told before the pixels
            image.flush(); theta.flush()
            time.sleep(0.05)
        image[k] = data[k]
        image.flush(); theta.flush()
    sys.stdin.readline()
"""


@pytest.fixture
def writer(tmp_path):
    """Another process that writes a frame for every line it is sent."""
    running = []

    def start(mode):
        path = tmp_path / "live.h5"
        command = [sys.executable, "-c", WRITER, str(path), mode]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return path, process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def live_scan(path, assembler, process):
    """Tell of every frame before it is written; return how many came at once."""
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    items, at_once = [], []
    for doc in fly.docs:
        items.extend(assembler(*doc))
    for k in range(12):
        process.stdin.write("\n")
        fly.datum("image", k, k + 1).datum("theta", k, k + 1)
        made = [item for doc in fly.docs[-2:] for item in assembler(*doc)]
        at_once.append(sum(isinstance(item, Frame) for item in made))
        items.extend(made)
    process.communicate("\n")
    items.extend(assembler(*fly.stop()[-1]))
    return Outcome(items), at_once


@pytest.mark.parametrize("mode", ["swmr", "early"])
def test_a_growing_file_is_read_while_another_process_writes_it(writer, mode):
    path, process = writer(mode)
    assembler = Assembler(make_profile(timeout_s=20), roots=[path.parent])
    outcome, at_once = live_scan(path, assembler, process)
    outcome.check_conserved()
    assert at_once == [1] * 12
    np.testing.assert_array_equal(outcome.stack(), images(12))
    np.testing.assert_allclose(outcome.theta(), np.radians(np.arange(12)))


def test_a_file_that_is_locked_until_its_end_is_read_then(writer):
    path, process = writer("locked")
    assembler = Assembler(make_profile(), roots=[path.parent])
    outcome, at_once = live_scan(path, assembler, process)
    outcome.check_conserved()
    assert at_once == [0] * 12
    np.testing.assert_array_equal(outcome.stack(), images(12))


def test_a_writer_that_dies_costs_one_timeout_and_its_frames(writer, caplog):
    path, process = writer("swmr")
    fly = Fly(
        path, {"image": "image", "theta": "theta"}, {"image": (H, W), "theta": ()}
    )
    process.stdin.write("\n")
    fly.datum("image", 0, 1).datum("theta", 0, 1)
    assembler = Assembler(make_profile(timeout_s=1), roots=[path.parent])
    items = [item for doc in fly.docs for item in assembler(*doc)]
    process.kill()
    process.wait()
    fly.docs.clear()
    for k in range(1, 12):
        fly.datum("image", k, k + 1).datum("theta", k, k + 1)
    items += [item for doc in fly.docs for item in assembler(*doc)]
    outcome = Outcome([*items, *assembler.close()])
    outcome.check_conserved()
    assert len(outcome.frames) == 1
    assert len(outcome.rejected) == 11
    # It is the angles that are waited for: images wait for them.
    assert caplog.text.count("after the timeout") == 1
    assert outcome.closed.exit_status == "unknown"


def test_a_file_per_event_does_not_exhaust_the_open_files(tmp_path):
    n, stack = 150, images(150)
    run = event_model.compose_run()
    keys = {"image": image_key((1, H, W), "STREAM:"), "theta": scalar()}
    descriptor = run.compose_descriptor(name="primary", data_keys=keys)
    docs = [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc)]
    events = []
    for k in range(n):
        path = tmp_path / f"{k}.h5"
        with h5py.File(path, "w") as file:
            file["x"] = stack[k : k + 1]
        resource = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://{path}",
            data_key="image",
            parameters={"dataset": "x"},
        )
        datum = resource.compose_stream_datum(
            indices={"start": 0, "stop": 1},
            seq_nums={"start": k + 1, "stop": k + 2},
            descriptor=descriptor.descriptor_doc,
            validate=False,
        )
        docs.append(("stream_resource", resource.stream_resource_doc))
        docs.append(("stream_datum", datum))
        event = descriptor.compose_event(
            data={"theta": k}, timestamps={"theta": 0.0}, validate=False
        )
        events.append(("event", event))
    assembler = Assembler(make_profile(), roots=[tmp_path])
    for doc in docs:
        list(assembler(*doc))
    opened = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    held = [link for link in opened if str(tmp_path) in os.path.realpath(link)]
    assert 0 < len(held) <= MAX_OPEN_FILES
    items = [item for doc in events for item in assembler(*doc)]
    assert [item.index for item in items] == list(range(n))
    np.testing.assert_array_equal([item.image for item in items], stack)
    list(assembler.close())
