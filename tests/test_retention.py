"""Short of space the volume goes first; nothing is deleted but as the profile says."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import H, W, stepped
from tiled.client import from_uri

from ebl_stream.cli import check
from ebl_stream.cli.browse import forget_removed
from ebl_stream.cli.check import parse_shape
from ebl_stream.cli.commands import cli
from ebl_stream.errors import InputError
from ebl_stream.profile import Retention
from ebl_stream.profile_file import load
from ebl_stream.publish import retention, space
from ebl_stream.publish.output import ArraySpec, RunOutput
from ebl_stream.publish.publishing import Publishing
from ebl_stream.publish.record import read_record
from ebl_stream.publish.retention import DAY_S, Stored, clean, due, survey
from ebl_stream.publish.space import (
    GB,
    GIVES_WAY,
    Space,
    array_bytes,
    fit,
    group_of,
)
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.transport.documents import pack
from ebl_stream.transport.journal import JournalWriter

NAMES = ("recon", "denoised", "labels", "preview", "plane_z")
N = 128
SHAPE = (32, N, N)
SPECS = [
    ArraySpec("recon", SHAPE, "<f4", "1/px"),
    ArraySpec("denoised", SHAPE, "<f4", "1/px"),
    ArraySpec("labels", SHAPE, "|u1", "label"),
    ArraySpec("preview", (8, 32, 32), "<f4", "1/px", slab_rows=8),
]
MB = 2**20


# ------------------------------------------------------------ which arrays fit: proven

n_bytes = st.integers(0, 10**13)
some_sizes = st.dictionaries(
    st.sampled_from(NAMES[1:]), st.integers(1, 10**12), max_size=4
)


@given(
    st.integers(1, 10**12), some_sizes, st.integers(0, 10**12), st.integers(0, 10**13)
)
def test_what_is_kept_fits_and_nothing_is_given_up_in_vain(volume, rest, spare, free):
    sizes = {"recon": volume, **rest}
    if volume + spare > free:
        with pytest.raises(OSError, match=r"the volume alone needs .* GB are free"):
            fit(sizes, spare, free)
        return
    found = fit(sizes, spare, free)
    assert "recon" in found.kept
    assert {*found.kept, *found.skipped} == sizes.keys()
    assert sum(sizes[name] for name in found.kept) + spare <= free
    # In the order of GIVES_WAY, whole groups, and the last one was needed.
    groups = [GIVES_WAY.index(group_of(name)) for name in found.skipped]
    left = [GIVES_WAY.index(group_of(name)) for name in found.kept if name != "recon"]
    assert not left or not groups or max(groups) < min(left)
    if groups:
        last = [n for n in found.skipped if GIVES_WAY.index(group_of(n)) == max(groups)]
        back = sum(sizes[name] for name in (*found.kept, *last))
        assert back + spare > free


@given(
    some_sizes, st.integers(0, 10**12), st.integers(0, 10**13), st.integers(0, 10**13)
)
def test_more_space_never_means_less(rest, spare, free, more):
    sizes = {"recon": 1, **rest}
    if 1 + spare > free:
        return
    assert set(fit(sizes, spare, free).kept) <= set(fit(sizes, spare, free + more).kept)
    assert fit(sizes, spare, None).skipped == ()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_other_arrays_never_take_the_volumes_space(data):
    """Whatever is written in whatever order, and others write too: the volume fits."""
    n_slabs, slab = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 50))
    others = data.draw(st.dictionaries(st.sampled_from(NAMES[1:]), st.integers(1, 99)))
    limit = data.draw(st.integers(0, 40))
    disk = limit + 2 * n_slabs * slab + data.draw(st.integers(0, 400))
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(space, "free_bytes", lambda folder: disk)
    try:
        watch = Space(Path("run"), limit)
        slabs = dict.fromkeys(range(n_slabs), slab)
        chosen = watch.choose({"recon": n_slabs * slab, **others}, slabs)
        owed = dict(slabs)
        steps = st.sampled_from([*(n for n in chosen.kept if n != "recon"), "recon"])
        for name in data.draw(st.lists(steps, max_size=40)):
            if name == "recon" and owed:
                z, size = owed.popitem()
                assert watch.allows("recon", size)
                disk -= size
                watch.written(z)
            elif name != "recon" and watch.allows(name, others[name]):
                disk -= others[name]
            assert disk >= limit + sum(owed.values())
    finally:
        monkeypatch.undo()


# ------------------------------------------------------------ on a disk that is small


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def noise(spec: ArraySpec, rows: int = 16, seed: int = 0) -> np.ndarray:
    """A slab that cannot be compressed."""
    rng = np.random.default_rng(seed)
    shape = (spec.slab_rows or rows, *spec.shape[1:])
    n_bytes = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
    values = np.frombuffer(rng.bytes(n_bytes), spec.dtype).reshape(shape)
    return np.nan_to_num(values)


def write_all(output: RunOutput, version: int) -> None:
    stamp = {"version": version, "n_used": version, "coverage": 1.0}
    for spec in SPECS:
        for z in range(0, spec.shape[0], spec.slab_rows or 16):
            output.write(spec.name, z, noise(spec, seed=version), **stamp)


def on_disk(output: RunOutput) -> dict:
    return json.loads((output.folder / "metadata.json").read_text())


@pytest.mark.parametrize(
    "skipped", [[], ["denoised"], ["denoised", "labels"], [*NAMES[1:4]]], ids=len
)
def test_arrays_give_way_in_their_order(disk, caplog, monkeypatch, skipped):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # slabs that are replaced at once
    # A little more than what is kept takes, and less than with the next one.
    need = 10_000 + array_bytes(SPECS[0], (16, N, N)) * 3 // 2
    for spec in SPECS[1:]:
        if spec.name not in skipped:
            need += array_bytes(spec, (spec.slab_rows or 16, *spec.shape[1:]))
    (disk / "others").write_bytes(b"\1" * ((space.free_bytes(disk) or 0) - need - 9000))
    output = RunOutput(disk, "run", min_free_bytes=10_000)
    with caplog.at_level(logging.WARNING):
        output.create(SPECS, {"start": {}}, slab_rows=16)
    told = on_disk(output)
    assert told["storage"]["skipped"] == skipped
    assert sorted(told["arrays"]) == sorted(
        spec.name for spec in SPECS if spec.name not in skipped
    )
    lines = [r.getMessage() for r in caplog.records if "space is short" in r.message]
    assert len(lines) == bool(skipped)
    assert all(name in lines[0] for name in skipped)
    for version in (1, 2, 3):
        write_all(output, version)
    output.finish("complete", {})
    output.close()
    assert not any(on_disk(output)["storage"]["slabs_left_out"].values())
    for spec in SPECS:
        if spec.name not in skipped:
            expected = noise(spec, spec.shape[0] if spec.slab_rows else 16, seed=3)
            found = zarr.open_array(output.path(spec.name), mode="r")[: len(expected)]
            np.testing.assert_array_equal(found, expected)


def test_where_the_volume_does_not_fit_nothing_is_left_behind(disk):
    (disk / "others").write_bytes(b"\1" * (4 * MB))
    output = RunOutput(disk, "run")
    with pytest.raises(OSError, match=r"cannot create the result .* volume alone"):
        output.create(SPECS, {}, slab_rows=16)
    assert [path.name for path in disk.iterdir()] == ["others"]


def test_when_space_falls_the_volume_goes_on_and_the_rest_comes_back(disk, caplog):
    output = RunOutput(disk, "run", min_free_bytes=100_000)
    output.create(SPECS[:1] + SPECS[2:], {}, slab_rows=16)
    stamp = {"n_used": 1, "coverage": 1.0}
    with caplog.at_level(logging.WARNING):
        # Another one fills the disk, but for the volume, and no more than that.
        free = space.free_bytes(disk) or 0
        (disk / "others").write_bytes(b"\1" * (free - 3 * MB - 300_000))
        for version in (1, 2):
            for z in (0, 16):
                output.write("labels", z, noise(SPECS[2]), version=version, **stamp)
                output.write("recon", z, noise(SPECS[0]), version=version, **stamp)
        output.update({})
        left_out = {"labels": 4}
        assert on_disk(output)["storage"]["slabs_left_out"] == left_out
        versions = [slab["version"] for slab in on_disk(output)["slabs"]["recon"]]
        assert versions == [2, 2]
        (disk / "others").unlink()
        for z in (0, 16):
            output.write("labels", z, noise(SPECS[2]), version=2, **stamp)
    output.finish("complete", {})
    output.close()
    content = on_disk(output)
    assert [slab["version"] for slab in content["slabs"]["labels"]] == [2, 2]
    assert content["storage"]["slabs_left_out"] == left_out
    said = [r.getMessage().split("space ")[1] for r in caplog.records]
    assert said[0] == "is short: only the volume is written"
    assert said[-1] == "is back"
    assert len(said) <= 4  # said when it changes, not at every slab
    labels = zarr.open_array(output.path("labels"), mode="r")
    np.testing.assert_array_equal(labels[:16], noise(SPECS[2]))


def test_without_a_small_disk_the_same_by_what_statvfs_says(tmp_path, monkeypatch):
    free = 10**9
    monkeypatch.setattr(space, "free_bytes", lambda folder: free)
    output = RunOutput(tmp_path, "run", min_free_bytes=10**6)
    output.create(SPECS, {}, slab_rows=16)
    write_all(output, 1)
    free = 10**6 + 1000
    write_all(output, 2)
    output.finish("complete", {})
    output.close()
    slabs = read_record(output.folder).slabs
    assert [slab.version for slab in slabs("recon")] == [2, 2]
    for name in ("denoised", "labels", "preview"):
        assert {slab.version for slab in slabs(name)} == {1}


def test_a_disk_that_does_not_say_is_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(space, "free_bytes", lambda folder: None)
    output = RunOutput(tmp_path, "run", min_free_bytes=10**15)
    output.create(SPECS, {}, slab_rows=16)
    write_all(output, 1)
    assert on_disk(output)["storage"]["skipped"] == []
    output.close()


# --------------------------------------------------------------- through the corridor


def scan_documents(n: int = 40) -> list:
    theta = np.arange(n) * 180.0 / n
    frames = np.full((n, H, W), 5000, np.uint16)
    return stepped(frames, theta, start={"n_projections": n})


def feed(callback: Reconstruction) -> None:
    for name, doc in scan_documents():
        callback(name, doc)


def profile(**changes):
    plain = {
        "preprocess": ["flat_field", "minus_log"],
        "geometry.rotation_center": W / 2,
    }
    return load("demo", plain | {"publish.tiled": "none"} | changes)


def test_a_full_disk_ends_the_result_and_never_the_scan(tmp_path):
    told = []
    live = Reconstruction(
        profile(**{"retention.min_free_gb": 1e6}),
        out=tmp_path / "out",
        live=True,
        on_progress=told.append,
    )
    feed(live)  # the RunEngine's side of it: nothing is raised
    live.close()
    assert told[-1].state != "complete"
    assert told[-1].volume is None
    assert "retention.min_free_gb" in told[-1].message
    assert not [p for p in (tmp_path / "out").glob("*") if not p.name.startswith(".")]
    replayed = Reconstruction(
        profile(**{"retention.min_free_gb": 1e6}), out=tmp_path / "out"
    )
    with pytest.raises(InputError, match=r"1e\+06 GB of it are to stay free"):
        feed(replayed)


def test_a_run_is_begun_anew_when_the_disk_has_what_is_to_stay_free(
    tmp_path, monkeypatch
):
    attempts = Publishing(
        "none", tmp_path, profile(**{"retention.min_free_gb": 3.0})
    ).attempts
    for free, has_room in ((2.9, False), (3.1, True)):
        monkeypatch.setattr(
            "ebl_stream.publish.attempts.free_bytes", lambda _, n=free: n * 1e9
        )
        assert attempts.has_room() is has_room


def test_the_denoised_volume_is_skipped_and_metadata_say_so(tmp_path, monkeypatch):
    shape = (H, W, W)
    volume = array_bytes(ArraySpec("recon", shape, "<f4", ""), shape)
    labels = array_bytes(ArraySpec("labels", shape, "|u1", ""), shape)
    room = 2 * volume + labels  # the volume, one that replaces it, labels
    monkeypatch.setattr(space, "free_bytes", lambda folder: room)
    callback = Reconstruction(
        profile(**{"retention.min_free_gb": 0, "preview.every": 0}),
        out=tmp_path / "out",
    )
    feed(callback)
    callback.close()
    (result,) = callback.results.values()
    assert result.state == "complete"
    record = read_record(Path(result.volume).parent)
    assert [spec.name for spec in record.arrays] == ["recon", "labels"]
    assert record.metadata()["storage"]["skipped"] == ["denoised"]
    assert record.slabs("labels")


def test_old_results_go_by_themselves_only_where_the_profile_says(tmp_path):
    policy = {"retention.keep_runs": 0, "retention.keep_days": 1}
    for automatic, live, stays in [
        (False, True, True),
        (True, False, True),
        (True, True, False),
    ]:
        out = tmp_path / f"{automatic}-{live}"
        folder = make_result(out, "old", days=2)
        changes = policy | {"retention.automatic": automatic}
        callback = Reconstruction(profile(**changes), out=out, live=live)
        feed(callback)
        callback.close()
        for _ in range(100):
            if folder.exists() == stays:
                break
            time.sleep(0.05)
        assert folder.exists() == stays
        assert len(callback.results) == 1
        assert len(list(out.glob("recon-*"))) == 1


def test_check_says_before_the_scan_what_would_be_left_out(tmp_path, monkeypatch):
    size = parse_shape("100,100,1000", "any")  # 0.4 GB, denoised 0.4, labels 0.1
    limits = profile(**{"retention.min_free_gb": 1.0, "denoise": "wiener"})
    for free_gb, verdict, words in [
        (2.0, "ok", "1.9 GB needed, 2 GB free"),
        (1.6, "note", "1.6 GB free: without denoised"),
        (1.45, "note", "without denoised, labels"),
        (1.3, "stop", "the volume alone needs 1.4 GB, 1.3 GB are free"),
    ]:
        monkeypatch.setattr(check, "free_bytes", lambda folder, n=free_gb: int(n * GB))
        found = check._check_disk(limits, size, tmp_path)
        assert found.verdict == verdict
        assert words in found.words


# ------------------------------------------------------------------ what may be removed

stored = st.builds(
    Stored,
    path=st.integers(0, 10**6).map(lambda k: Path(f"r{k}")),
    kind=st.sampled_from(["result", "journal"]),
    run_uid=st.none(),
    changed=st.floats(-100, 100).map(lambda days: -days * DAY_S),
    is_open=st.booleans(),
    is_kept=st.booleans(),
    is_superseded=st.booleans(),
)
shelves = st.lists(stored, max_size=12, unique_by=lambda one: one.path)
days = st.none() | st.floats(0, 100)
policies = st.builds(
    Retention,
    keep_days=days,
    keep_runs=st.none() | st.integers(0, 8),
    journal_days=days,
)


@settings(max_examples=500)
@given(shelves, policies)
def test_nothing_goes_that_must_stay(shelf, policy):
    gone = due(shelf, policy, 0)
    for one in gone:
        assert not one.is_open
        assert not one.is_kept
        if one.kind == "journal":
            assert policy.journal_days is not None
            assert one.age_days(0) > policy.journal_days
        else:
            assert (policy.keep_days, policy.keep_runs) != (None, None)
            assert policy.keep_days is None or one.age_days(0) > policy.keep_days
    ended = [
        one
        for one in shelf
        if one.kind == "result" and not one.is_open and not one.is_superseded
    ]
    newest = sorted(ended, key=lambda one: one.changed, reverse=True)
    if policy.keep_runs is not None:
        times = [one.changed for one in newest[: policy.keep_runs]]
        older = [one for one in gone if one in ended]
        assert all(one.changed <= min(times) for one in older if times)
        assert len(ended) - len(older) >= min(policy.keep_runs, len(ended))
    # A second time there is nothing left to do.
    rest = [one for one in shelf if one not in gone]
    assert due(rest, policy, 0) == []


def test_what_was_superseded_takes_no_place_among_the_newest():
    def result(days_ago: float, superseded: bool) -> Stored:
        changed = -days_ago * DAY_S
        path = Path(f"{days_ago}")
        return Stored(path, "result", "raw", changed, False, False, superseded)

    shelf = [result(1, True), result(2, True), result(3, False), result(4, False)]
    assert due(shelf, Retention(keep_runs=1), 0) == [shelf[0], shelf[1], shelf[3]]
    assert due(shelf, Retention(keep_runs=1, keep_days=1.5), 0) == [shelf[1], shelf[3]]


@given(shelves)
def test_the_default_removes_nothing(shelf):
    assert due(shelf, Retention(), 0) == []
    assert load("default").retention == Retention()


@given(shelves, policies, st.floats(0, 50), st.integers(0, 5))
def test_a_more_generous_policy_removes_no_more(shelf, policy, more_days, more_runs):
    def plus(limit, more):
        return None if limit is None else limit + more

    generous = Retention(
        keep_days=plus(policy.keep_days, more_days),
        keep_runs=plus(policy.keep_runs, more_runs),
        journal_days=plus(policy.journal_days, more_days),
    )
    gone = {one.path for one in due(shelf, policy, 0)}
    assert {one.path for one in due(shelf, generous, 0)} <= gone


# -------------------------------------------------------------------- what is removed


def make_result(out: Path, uid: str, *, days: float = 0, raw: str = "raw") -> Path:
    output = RunOutput(out, uid)
    metadata = {"start": {"uid": uid, "original_run_uid": raw}}
    output.create(SPECS[:1], metadata, slab_rows=16)
    stamp = {"version": 1, "n_used": 1, "coverage": 1.0}
    output.write("recon", 0, noise(SPECS[0]), **stamp)
    output.finish("complete", {})
    output.close()
    age(output.folder / "metadata.json", days)
    return output.folder


def make_journal(out: Path, raw: str, *, days: float = 0) -> Path:
    path = out / "journal" / f"20250101-000000-{raw}.ebldocs"
    writer = JournalWriter(path)
    writer.append(pack("start", {"uid": raw, "time": 0.0}), 0.0)
    writer.close()
    age(path, days)
    return path


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    os.utime(path, (then, then))


ALL = Retention(keep_runs=0, journal_days=0)


def test_results_and_journals_go_and_everything_else_stays(tmp_path):
    old = make_result(tmp_path, "old", days=3)
    marked = make_result(tmp_path, "marked", days=9, raw="precious")
    (marked / "keep").touch()
    kept_journal = make_journal(tmp_path, "precious", days=9)
    plain_journal = make_journal(tmp_path, "raw", days=9)
    by_hand = make_journal(tmp_path, "by-hand", days=9)
    Path(f"{by_hand}.keep").touch()
    under_way = make_journal(tmp_path, "under-way", days=9)
    Path(f"{under_way}.open").touch()
    strangers = []
    for name, text in [
        ("a", "{}"),
        ("b", "no json"),
        ("c", '{"format": 1}'),
        ("d", "[]"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.json").write_text(text)
        strangers.append(tmp_path / name)
    foreign = tmp_path / "journal" / "notes.ebldocs"
    foreign.write_text("mine")
    elsewhere = make_result(tmp_path / "elsewhere", "linked", days=9)
    (tmp_path / "linked").symlink_to(elsewhere)
    gone = clean(tmp_path, ALL)
    assert {one.path for one in gone} == {old, plain_journal}
    assert not old.exists()
    assert not plain_journal.exists()
    stay = [marked, kept_journal, by_hand, under_way, foreign, elsewhere, *strangers]
    assert all(path.exists() for path in stay)
    assert (elsewhere / "recon" / "c").is_dir()
    assert (tmp_path / "linked").is_symlink()
    assert clean(tmp_path, ALL) == []


HOLDS = """
import sys, time
from pathlib import Path
from ebl_stream.publish.output import ArraySpec, RunOutput
output = RunOutput(Path(sys.argv[1]), "under-way")
output.create([ArraySpec("recon", (4, 8, 8), "<f4", "1/px")], {}, slab_rows=4)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_run_that_is_written_stays_and_one_that_was_killed_may_go(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    age(tmp_path / "under-way" / "metadata.json", 5)
    assert [one.is_open for one in survey(tmp_path)] == [True]
    assert clean(tmp_path, ALL) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [one.path.name for one in clean(tmp_path, ALL)] == ["under-way"]
    assert list(tmp_path.iterdir()) == []


def test_a_mark_that_comes_late_counts(tmp_path):
    folder = make_result(tmp_path, "run")
    (one,) = survey(tmp_path)
    (folder / "keep").touch()
    assert not retention.remove(one)
    assert (folder / "recon").is_dir()


def test_a_clean_up_that_was_killed_is_finished_by_the_next(tmp_path, monkeypatch):
    folder = make_result(tmp_path, "run")

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(retention.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(tmp_path, ALL)
    monkeypatch.undo()
    assert not folder.exists()  # at no moment does half a result look whole
    assert [path.name for path in tmp_path.iterdir()] == [".going-run"]
    assert survey(tmp_path) == []
    clean(tmp_path, Retention())
    assert list(tmp_path.iterdir()) == []


def invoke(*words: object) -> dict:
    done = CliRunner().invoke(
        cli, ["clean", *map(str, words), "--json"], standalone_mode=False
    )
    assert done.exception is None, done.output
    return json.loads(done.output)


def test_a_dry_run_shows_what_goes_and_how_much_it_frees(tmp_path):
    results = [make_result(tmp_path, f"r{k}", days=k) for k in range(4)]
    words = ["--out", tmp_path, "--set", "retention.keep_runs=2"]
    dry = invoke(*words, "--dry-run")
    assert [Path(item["path"]).name for item in dry["removed"]] == ["r2", "r3"]
    assert all(folder.exists() for folder in results)
    used = subprocess.run(["du", "-s", "-B1", results[2]], capture_output=True)
    size = int(used.stdout.split()[0])
    assert dry["removed"][0]["gb"] == pytest.approx(size / GB, rel=0.01)
    wet = invoke(*words)
    assert [item["path"] for item in wet["removed"]] == [
        item["path"] for item in dry["removed"]
    ]
    assert wet["freed_gb"] == dry["freed_gb"] == pytest.approx(2 * size / GB, rel=0.01)
    assert [folder.exists() for folder in results] == [True, True, False, False]
    assert invoke("--out", tmp_path)["removed"] == []
    done = CliRunner().invoke(
        cli, ["clean", "--out", str(tmp_path)], standalone_mode=False
    )
    assert "the profile removes nothing" in done.output


def test_tiled_forgets_what_is_gone(tmp_path):
    server = TiledServer(tmp_path)
    server.start()
    try:
        assert server.wait_ready(60)
        forget_removed(server, tmp_path)  # there is nothing yet
        link = TiledLink(server)
        for uid in ("stays", "goes"):
            link.follow(read_record(make_result(tmp_path, uid)))
        assert link.wait_until_caught_up(60)
        link.close(0)
        client = from_uri(server.uri or "", api_key=server.api_key)
        client["processed"].create_container("a-strangers")
        (tmp_path / "stays" / "keep").touch()
        assert [one.path.name for one in clean(tmp_path, ALL)] == ["goes"]
        forget_removed(server, tmp_path)
        assert set(client["processed"]) == {"stays", "a-strangers"}
        assert client["processed"]["stays"]["recon"][0].shape == (N, N)
    finally:
        server.stop()


def test_clean_answers_a_folder_that_is_not_there(tmp_path):
    done = CliRunner().invoke(
        cli, ["clean", "--out", str(tmp_path / "no")], standalone_mode=False
    )
    assert isinstance(done.exception, InputError)
