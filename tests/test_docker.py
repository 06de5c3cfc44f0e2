"""docker/: the images' and compose's files against each other and against the code.

What they do when they are run for real is in ``test_docker_stack.py``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from compose_files import (
    DOCKER,
    GIVEN,
    ROOT,
    VARIABLE,
    after,
    compose_text,
    every,
    instructions,
    interpolated,
    mounts,
    port_of,
    services,
)
from compose_spec import PyOptions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ebl_stream import profile_file as profiles
from ebl_stream.cli.commands import cli
from ebl_stream.profile import Profile

DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]
BIN = Path(sys.executable).parent


# ----------------------------------------------------------------------- images


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_linter_has_nothing_to_say(dockerfile: str) -> None:
    command = [BIN / "hadolint", DOCKER / dockerfile]
    said = subprocess.run(command, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path through; the last line that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        places = (path, *map(str, Path(path).parents))
        if not line.startswith("#") and any(fnmatch(p, pattern) for p in places):
            sent = line.startswith("!")
    return sent


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_everything_that_is_copied_is_there(dockerfile: str) -> None:
    copied = {
        source
        for value in every(dockerfile, "COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    }
    for source in copied:
        assert (ROOT / source).exists(), source
        assert is_sent(source), source
    # All that pip needs, and nothing of the repository's life.
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = config["tool"]["setuptools"]["package-dir"].values()
    assert {*folders, "pyproject.toml", config["project"]["readme"]} <= copied
    assert not any(map(is_sent, [".git/config", ".venv/bin/python", "tests/x.py"]))


def test_every_image_is_pinned() -> None:
    images = [value.split()[0] for name in DOCKERFILES for value in every(name, "FROM")]
    images += [
        service["image"] for service in services().values() if "build" not in service
    ]
    assert len(images) == 5
    for image in images:
        assert re.search(r":\d+\.\d+\.?\d*-\w+", image), image


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_it_does_not_run_as_root_and_can_write_where_it_must(dockerfile: str) -> None:
    steps = instructions(dockerfile)
    last_user = [i for i, (name, _) in enumerate(steps) if name == "USER"][-1]
    user = steps[last_user][1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert not {name for name, _ in steps[last_user:]} & {"RUN", "COPY"}
    # A new volume takes over the owner of the folder that it is mounted on.
    (made,) = [value for value in every(dockerfile, "RUN") if "--owner" in value]
    owner, *folders = shlex.split(made.partition("--owner ")[2])
    number = re.search(rf"--uid (\d+) .*{owner}", made)
    assert (number[1] if number else owner) == user.split(":")[0]
    for name, service in services().items():
        if service["image"].startswith("ebl-stream") and (
            name == "ebl-stream" or dockerfile == "Dockerfile"
        ):
            assert service["read_only"]
            assert "/tmp" in service["tmpfs"]
            for place, (_, writable) in mounts(service).items():
                assert not writable or place in folders, place


def environment_of(dockerfile: str) -> dict[str, str]:
    words = [word for value in every(dockerfile, "ENV") for word in shlex.split(value)]
    return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_caches_are_kept_in_a_volume(dockerfile: str) -> None:
    image = environment_of(dockerfile)
    kept = mounts(services()["ebl-stream"])
    assert kept[image["NUMBA_CACHE_DIR"]] == ("kernels", True)
    if "CUPY_CACHE_DIR" in image:
        assert Path(image["CUPY_CACHE_DIR"]).is_relative_to(image["NUMBA_CACHE_DIR"])
    assert image["HOME"] == "/tmp"


def pins() -> dict[str, Requirement]:
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(str(pin.specifier).startswith("==") for pin in found)
    return {canonicalize_name(pin.name): pin for pin in found}


def test_the_pins_are_of_what_the_image_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = [run for run in every("Dockerfile", "RUN") if "pip install" in run]
    extras = re.search(r'"\.\[([\w,]+)\]"', install)
    assert extras
    assert "--constraint docker/constraints.txt" in install
    wanted = list(project["dependencies"])
    for extra in extras[1].split(","):
        wanted += project["optional-dependencies"][extra]
    known = pins()
    for line in wanted:
        needed = Requirement(line)
        if canonicalize_name(needed.name) != project["name"]:
            (pinned,) = known[canonicalize_name(needed.name)].specifier
            assert needed.specifier.contains(pinned.version), line


def test_the_gpu_image_has_cupy_and_tomocupy_of_one_cuda() -> None:
    content = yaml.safe_load((DOCKER / "environment.gpu.yml").read_text())
    assert content["channels"] == ["conda-forge", "nodefaults"]
    entries = [re.match(r"([\w-]+)=(\d.*)", line) for line in content["dependencies"]]
    pinned = {match[1]: match[2] for match in entries if match}
    assert pinned.keys() == {"python", "cuda-version", "cupy", "tomocupy"}
    image = environment_of("Dockerfile.gpu")
    assert image["CONDA_OVERRIDE_CUDA"] == pinned["cuda-version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (cupy,) = [Requirement(r) for r in extras["gpu"] if r.startswith("cupy")]
    assert cupy.specifier.contains(f"{pinned['cupy']}.0")


# ---------------------------------------------------------------------- compose


def validate(text: str) -> None:
    options = PyOptions()
    options.apply_merge = True
    options.from_yaml(text).validate()


def test_compose_files_follow_the_specification() -> None:
    text = interpolated(compose_text())
    validate(text)
    validate(interpolated((DOCKER / "compose.gpu.yaml").read_text()))
    for right, wrong in [
        ("stop_grace_period:", "stop_grace_perod:"),
        ("condition: service_started", "condition: started"),
        ("internal: true", "internl: true"),
        (":8000:8000", ":8000:http"),
    ]:
        assert right in text
        with pytest.raises(ValueError, match=r".+"):
            validate(text.replace(right, wrong))


def test_what_compose_refers_to_is_there() -> None:
    content = yaml.safe_load(interpolated(compose_text()))
    named = set(content["volumes"])
    for service in content["services"].values():
        for source, _ in mounts(service).values() if "volumes" in service else ():
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            elif not source.startswith("/"):
                assert source in named, source
        assert set(service.get("depends_on", ())) <= content["services"].keys()
        for build in [service["build"]] if "build" in service else []:
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
        assert service["healthcheck"]["test"][0] == "CMD"


def test_every_variable_is_asked_for_and_explained() -> None:
    asked = {match[1] for match in VARIABLE.finditer(compose_text())}
    example = (DOCKER / "env.example").read_text()
    offered = dict(re.findall(r"^(\w+)=(.*)$", example, re.M))
    assert asked == offered.keys()
    # What has no default is a secret, or must be filled in: compose says so.
    for name, kind, _ in VARIABLE.findall(compose_text()):
        assert kind == ("?" if name in GIVEN else "-"), name
    for name, kind, default in VARIABLE.findall(compose_text()):
        assert kind == "?" or offered[name] == default, name
    with pytest.raises(AssertionError, match="TILED_API_KEY"):
        interpolated(compose_text(), {"RAW": "/data", "POSTGRES_PASSWORD": "x"})
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_databases_are_out_of_reach() -> None:
    content = yaml.safe_load(interpolated(compose_text()))
    assert content["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "redis"):
        assert content["services"][name]["networks"] == ["inside"]
        assert "ports" not in content["services"][name]
    for name in ("ebl-stream", "tiled"):
        (published,) = content["services"][name]["ports"]
        assert published.startswith("127.0.0.1:")


def test_one_port_for_documents_one_for_tiled() -> None:
    house, tiled = services()["ebl-stream"], services()["tiled"]
    documents = port_of(after(house["command"], "--source"))
    assert [int(value) for value in every("Dockerfile", "EXPOSE")] == [documents]
    assert [int(value) for value in every("Dockerfile.gpu", "EXPOSE")] == [documents]
    assert house["ports"] == [f"127.0.0.1:{documents}:{documents}"]
    assert str(documents) in house["healthcheck"]["test"][-1]
    assert f"zmq://127.0.0.1:{documents}" in (ROOT / "README.md").read_text()
    port = int(after(tiled["command"], "--port"))
    assert after(house["command"], "--tiled") == f"http://tiled:{port}"
    assert tiled["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"127.0.0.1:{port}/" in tiled["healthcheck"]["test"][-1]


def test_results_are_at_one_path_in_both_containers() -> None:
    """Tiled is told the path that the service knows."""
    house, tiled = services()["ebl-stream"], services()["tiled"]
    out = after(house["command"], "--out")
    assert mounts(house)[out] == ("processed", True)
    assert mounts(tiled)[out] == ("processed", False)
    assert tiled["environment"]["TILED_RESULTS"] == out
    uploads = tiled["environment"]["TILED_UPLOADS"]
    assert mounts(tiled)[uploads] == ("uploads", True)


def test_the_service_starts_and_works_without_tiled() -> None:
    waits_for = services()["ebl-stream"]["depends_on"]
    assert waits_for == {"tiled": {"condition": "service_started"}}


def test_the_key_goes_where_the_code_looks_for_it() -> None:
    house, tiled = services()["ebl-stream"], services()["tiled"]
    assert list(house["environment"]) == [Profile().publish.api_key_env]
    used = {m[1] for m in VARIABLE.finditer((DOCKER / "tiled.yml").read_text())}
    assert used == tiled["environment"].keys()
    key = house["environment"]["TILED_API_KEY"]
    assert key == tiled["environment"]["TILED_API_KEY"] == GIVEN["TILED_API_KEY"]


def test_the_commands_are_understood() -> None:
    command = list(services()["ebl-stream"]["command"])
    assert every("Dockerfile", "ENTRYPOINT") == ['["ebl-stream"]']
    name = after(command, "--profile").removeprefix("/profiles/")
    beamline = DOCKER / "profiles" / name
    serve = cli.commands[command[0]]
    context = serve.make_context(command[0], command[1:])
    assert context.params["source"] == "zmq://0.0.0.0:5578"
    loaded = profiles.load(str(beamline))
    raw = [
        p
        for p, (source, _) in mounts(services()["ebl-stream"]).items()
        if source == GIVEN["RAW"]
    ]
    assert list(loaded.files.roots) == raw
    assert list(loaded.files.path_map.values()) == raw


def test_the_gpu_file_changes_the_image_and_asks_for_a_gpu() -> None:
    (name,) = services("compose.gpu.yaml")
    change = services("compose.gpu.yaml")[name]
    assert name == "ebl-stream"
    assert change["image"] != services()[name]["image"]
    assert (DOCKER / change["build"]["context"] / "docker/Dockerfile.gpu").is_file()
    (device,) = change["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
