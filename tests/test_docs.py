"""What README and docs say is so: commands, code, keys, links, words."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import h5py
import numpy as np
import pytest
import yaml
from pydantic import BaseModel
from tiled.client import from_uri

from ebl_stream import profile, stages
from ebl_stream import profile_file as profiles
from ebl_stream.cli.commands import cli
from ebl_stream.frames import Kind
from ebl_stream.profile import ROOMS, Profile
from ebl_stream.publish.record import read_record
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer
from ebl_stream.result import Progress, Result

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
N_ANGLES, N_ROWS, N_COLUMNS = 60, 4, 48


def blocks(language: str, *pages: Path) -> list[tuple[str, str]]:
    """Return (page, text) of every block of a language; "" are commands."""
    return [
        (page.name, text)
        for page in pages or PAGES
        for found, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def block(page: str, containing: str) -> str:
    """Return the one Python block of a page that contains some text."""
    (found,) = [
        text for _, text in blocks("python", ROOT / "docs" / page) if containing in text
    ]
    return found


def commands() -> Iterator[str]:
    """Yield what is typed: lines of plain blocks, and `ebl-stream ...` in text."""
    for _, text in blocks(""):
        yield from (line for line in text.splitlines() if line.startswith("ebl-stream"))
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        yield from re.findall(r"`(ebl-stream [a-z][^`]*)`", prose)


# --------------------------------------------------------------------- commands


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_are_understood(line: str) -> None:
    # Optional parts in brackets: the synopsis of a command.
    words = shlex.split(re.sub(r"[][]|\.\.\.", "", line), comments=True)[1:]
    command = cli.commands[words[0]]
    values = {
        "NAME|FILE": "demo",
        "A:B": "0:2",
        "KEY=VALUE": "refresh.every=0.5",
        "URI,": "none",
    }
    given = [values.get(word, word) for word in words[1:]]
    command.make_context(words[0], given)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.M)
    }
    assert {"demo", "test"} <= named <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_options_of_replay_are_all_documented() -> None:
    text = (ROOT / "docs" / "replay.md").read_text()
    for option in cli.commands["replay"].params:
        if isinstance(option, click.Option):
            assert f"`{option.opts[0]}" in text or f"[{option.opts[0]}" in text


# ----------------------------------------------------------------------- Python


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_compiles_and_imports_what_exists(page: str, text: str) -> None:
    tree = ast.parse(text, page)
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    module = ast.Module(body=[*imports], type_ignores=[])
    exec(compile(module, page, "exec"), {})


def write_scan(path: Path) -> None:
    """Write a disc off the axis as APS Data Exchange: 0.02 per px, radius 12 px."""
    theta = np.arange(N_ANGLES) * np.pi / N_ANGLES
    away = (
        np.arange(N_COLUMNS) - 24.25 - (5 * np.cos(theta) + 3 * np.sin(theta))[:, None]
    )
    transmission = np.exp(-0.04 * np.sqrt(np.maximum(0, 144 - away**2)))
    with h5py.File(path, "w") as file:
        image = (N_ROWS, N_COLUMNS)
        frames = np.repeat(transmission[:, None, :], N_ROWS, axis=1)
        file["exchange/data"] = (100 + 10_000 * frames).astype(np.float32)
        file["exchange/data_white"] = np.full((3, *image), 10_100, np.float32)
        file["exchange/data_dark"] = np.full((3, *image), 100, np.float32)
        file["exchange/theta"] = np.rad2deg(theta)


def test_the_snippets_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "tooth.h5")
    space: dict[str, Any] = {}
    exec(block("replay.md", "Reconstruction("), space)
    result = space["result"]
    assert capsys.readouterr().out.startswith("complete ")
    exec(block("replay.md", "open_array"), space)
    assert space["volume"].shape == result.shape == (N_ROWS, N_COLUMNS, N_COLUMNS)

    server = TiledServer(tmp_path / "ebl_stream_out")
    server.start()
    try:
        assert server.wait_ready(60)
        link = TiledLink(server, api_key=None)
        link.follow(read_record(Path(result.volume).parent))
        assert link.wait_until_caught_up(60)
        link.close(0)
        look = block("live.md", "original_run_uid").replace(
            'from_uri("http://127.0.0.1:8000", api_key="...")', "client"
        )
        look = look.replace('run["recon"][64]', 'plane = run["recon"][2]')
        client = from_uri(server.uri or "", api_key=server.api_key)
        space = {"client": client, "raw_uid": result.run_uid}
        exec(look, space)
        assert space["plane"].shape == (N_COLUMNS, N_COLUMNS)
        exec(block("feedback.md", 'run["quality"]'), space)
        assert space["rows"]["version"].max() > 1
        told = {"resolution_px", "coverage", "n_used", "split_noise"}
        assert told <= set(space["rows"].columns)
        slabs = space["run"]["recon"].metadata["slabs"]
        assert slabs[-1]["version"] == space["rows"]["version"].max()
    finally:
        server.stop()


def test_the_advice_to_the_plan_stops_for_good_reasons_only() -> None:
    good = {
        "coverage": 0.5,
        "resolution_px": 3.0,
        "rotation_center_source": "measured",
        "ledger": {"residue": 0},
    }
    fields = {field.name for field in dataclasses.fields(Progress)}
    assert good.keys() <= fields
    source = block("feedback.md", "def good_enough").split("\n\n\n")[1]
    bad: list[dict[str, Any]] = [
        {"coverage": 0.2},
        {"resolution_px": 5.0},
        {"resolution_px": None},
        {"rotation_center_source": "assumed"},
        {"ledger": {"residue": 1}},
    ]
    for status, answer in [(good, True), (None, False)] + [
        (good | change, False) for change in bad
    ]:
        door = ModuleType("live")
        door.status = status  # type: ignore[attr-defined]
        space: dict[str, Any] = {"live": door}
        exec(source, space)
        assert space["good_enough"]() is answer


def test_a_stage_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the page's package as pip would leave it, and build the stage."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "filters.py").write_text(block("stages.md", "class Median"))
    ((_, toml),) = blocks("toml", ROOT / "docs" / "stages.md")
    groups = tomllib.loads(toml)["project"]["entry-points"]
    info = tmp_path / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my_package\nVersion: 1\n"
    )
    (info / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n{name} = {value}"
            for group, entries in groups.items()
            for name, value in entries.items()
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    ((_, text),) = blocks("yaml", ROOT / "docs" / "stages.md")
    stage = stages.build("denoise", yaml.safe_load(text)["denoise"])
    assert stages.describe(stage) == {"median": {"size": 5}}
    volume = np.zeros((2, 9, 9), np.float32)
    volume[0, 4, 4] = 1
    assert stage(volume, volume).max() == 0
    with pytest.raises(profiles.InputError, match="size must be 2 or more"):
        stages.build("denoise", {"median": {"size": 1}})
    sys.modules.pop("my_package.filters", None)
    sys.modules.pop("my_package", None)


# --------------------------------------------------------------------- profiles


def as_yaml(value: Any) -> str:
    """Write a default as the page does."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the strings below a model's fields say."""
    source = Path(profile.__file__).read_text(encoding="utf-8")
    (body,) = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == model.__name__
    ]
    said = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            words = ast.literal_eval(text.value)
            said[ast.unparse(field.target)] = " ".join(words.split()).replace("``", "`")
    return said


def expected_rows() -> Iterator[str]:
    """Yield the rows that the profile reference must have."""
    default = profiles.load("default")
    top = meanings(Profile)
    for name in Profile.model_fields:
        section = getattr(default, name)
        if isinstance(section, BaseModel):
            for key, words in meanings(type(section)).items():
                shown = as_yaml(getattr(section, key))
                yield f"| `{name}.{key}` | `{shown}` | {words} |"
    for room in ROOMS:
        yield f"| `{room}` | `{as_yaml(getattr(default, room))}` | {top[room]} |"
    for room in ROOMS:
        for name, entry in stages.available(room).items():
            if entry.value.startswith("ebl_stream."):
                yield stage_row(room, name, entry.load())


def stage_row(room: str, name: str, stage: Any) -> str:
    fields = dataclasses.fields(stage)
    settings = ", ".join(f"`{f.name}{default(f)}`" for f in fields) or "—"
    does = stage.__doc__.strip().splitlines()[0].replace("``", "`")
    return f"| {room} | `{name}` | {settings} | {does} |"


def default(field: dataclasses.Field[Any]) -> str:
    """Return what stands behind a setting's name; nothing where it must be given."""
    return "" if field.default is dataclasses.MISSING else f": {field.default}"


def test_the_profile_reference_is_the_model() -> None:
    text = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    headings = {"| key | default | meaning |"}
    headings.add("| room | stage | settings and defaults | what it does |")
    assert [row for row in rows if row not in headings] == list(expected_rows())


def test_every_profile_loads(tmp_path: Path) -> None:
    shipped = {path.stem for path in (ROOT / "profiles").glob("*.yaml")}
    assert shipped == set(profiles.shipped())
    for name in shipped:
        profiles.load(name)
    text = (ROOT / "docs" / "profiles.md").read_text()
    assert all(f"`{name}`" in text for name in shipped)
    for page, example in blocks("yaml"):
        path = tmp_path / f"{page}.yaml"
        path.write_text(example)
        profiles.load(str(path))


# ------------------------------------------------------------- links and words


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_resolve(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target
    if page.parent.name == "docs":
        linked_from = (ROOT / "README.md").read_text()
        assert f"docs/{page.name}" in linked_from


def test_the_architecture_names_the_modules_that_there_are() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.+?) \| .+? \|(.*)\|$", text, re.M)
    package = ROOT / "ebl_stream"
    named = {name for first, _ in table for name in re.findall(r"`(\w+)`", first)}
    there = {path.parent.name for path in package.glob("*/__init__.py")}
    there |= {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert named == there | {"callbacks"}
    for first, modules in table:
        (folder, *_) = re.findall(r"`(\w+)`", first)
        home = ROOT / folder if folder == "callbacks" else package / folder
        for module in re.findall(r"`(\w+)`", modules):
            assert (home / f"{module}.py").is_file(), f"{folder}/{module}"


def test_the_glossary_speaks_as_the_code_does() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    code = "\n".join(
        path.read_text(encoding="utf-8").lower()
        for folder in ("ebl_stream", "callbacks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    )
    words = re.findall(r"^\| \*\*(.+?)\*\*", text, re.M)
    assert len(words) > 20
    for word in (part for entry in words for part in entry.lower().split(", ")):
        assert re.search(rf"\b{word.replace(' ', '[ _]')}", code), word
    for kind in Kind:
        assert f"{kind.name.lower()} {kind.value}" in text


def test_the_json_of_replay_is_documented() -> None:
    text = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    section = text.split("## What `--json` prints")[1]
    first = re.findall(r"^\| (`.+?) \|", section, re.M)
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named == {field.name for field in dataclasses.fields(Result)} | {"tiled_uri"}
