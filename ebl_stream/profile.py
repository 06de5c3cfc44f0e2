"""A beamline's profile: validated data, never code.

A profile is YAML, layered on ``profiles/default.yaml``: a key that it does not
name keeps the default's value. The model below is the reference of every key.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ebl_stream.errors import InputError

MAX_PROFILE_BYTES = 65_536

StageEntry: TypeAlias = str | dict[str, dict[str, Any] | None]
"""A stage's name, or ``{name: {setting: value}}``."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Keys(_Section):
    """Data keys of the event descriptors."""

    image: str | None = None
    """Data key of the detector image; null: the only key with an image shape."""
    theta: str | None = None
    """Data key of the angle; null: ``start.motors``, then a key named like one."""
    theta_unit: Literal["auto", "deg", "rad"] = "auto"
    """``auto``: the descriptor's units, else degrees."""
    image_key: str | None = None
    """Data key of each frame's kind (0 projection, 1 flat, 2 dark, 3 invalid)."""
    unique_id: str | None = None
    """Data key of the detector's frame counter, by which a feed's frames are joined."""


class Streams(_Section):
    """Which Bluesky stream holds what; the first name that a run has is taken."""

    projections: tuple[str, ...] = ("primary", "projections", "tomo")
    """Streams with projections."""
    flats: tuple[str, ...] = ("flats", "flat", "white")
    """Streams with flats."""
    darks: tuple[str, ...] = ("darks", "dark")
    """Streams with darks."""


class StartKeys(_Section):
    """Keys of the start document, the first one present counts."""

    n_projections: tuple[str, ...] = ("n_projections", "num_projections", "num_points")
    """How many projections the plan promises."""
    rotation_center: tuple[str, ...] = ("rotation_center",)
    """Rotation center, px, column of the stored frame."""
    voxel_size_um: tuple[str, ...] = ("voxel_size_um", "pixel_size_um")
    """Edge of a voxel, µm; published with the volume."""


class Datasets(_Section):
    """Datasets of an HDF5 file that is replayed; the first one present counts."""

    projections: tuple[str, ...] = ()
    """Projections ``[angle, row, column]``; with ``image_key`` all frames."""
    flats: tuple[str, ...] = ()
    """Flats, ``[n, row, column]`` or one ``(row, column)``."""
    darks: tuple[str, ...] = ()
    """Darks, ``[n, row, column]`` or one ``(row, column)``."""
    theta: tuple[str, ...] = ()
    """Angles, one per frame."""
    image_key: tuple[str, ...] = ()
    """Kind of every frame: 0 projection, 1 flat, 2 dark, 3 invalid."""
    rotation_center: tuple[str, ...] = ()
    """A scalar: column of the stored frame, px."""
    theta_unit: Literal["auto", "deg", "rad"] = "auto"
    """``auto``: the dataset's ``units``; without, a span of pi or 2 pi is radians."""


class Geometry(_Section):
    """p(theta, s), s = column - rotation_center, x cos(theta) + y sin(theta) = s."""

    rotation_center: float | None = None
    """px, column of the stored frame; null: file or start document, then measured."""
    use_file_center: bool = True
    """False ignores what the file or start document states, and measures."""
    reverse_theta: bool = False
    """True where the stage turns the other way round."""
    flip_columns: bool = False
    """True where the detector image is mirrored left to right."""
    offset_detector: bool = False
    """True where the axis is near an edge and a full turn shows both sides."""


class Files(_Section):
    """How file-backed frames are found and read."""

    roots: tuple[str, ...] = ()
    """Folders that frames may be read from; a replayed file's own folder is one."""
    path_map: dict[str, str] = Field(default_factory=dict)
    """Prefix of a path in the documents -> prefix on this machine."""
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    """How long an announced frame may take to appear in its file."""
    max_frame_bytes: int = Field(default=256 * 2**20, gt=0)
    """A larger frame is refused before it is read."""
    max_projections: int = Field(default=200_000, gt=0)
    """A larger run is refused before it is read."""


class Feed(_Section):
    """Frames that come beside the documents, joined to them by the frame counter."""

    address: str | None = None
    """``pva://PV`` of an areaDetector image (NTNDArray); null: there is no feed."""
    first_unique_id: int | None = Field(default=None, ge=0)
    """Count of every stream's first frame; for documents without `keys.unique_id`."""
    kind_attribute: str | None = None
    """NDAttribute that says a frame's kind; it has to agree with the stream."""
    projections: tuple[str, ...] = ("/exchange/data", "Projection")
    """What it says of projections."""
    flats: tuple[str, ...] = ("/exchange/data_white", "FlatField")
    """What it says of flats."""
    darks: tuple[str, ...] = ("/exchange/data_dark", "DarkField")
    """What it says of darks."""
    queue_size: int = Field(default=64, ge=2, le=4096)
    """Frames that the server, and the client, may hold in a slow moment."""
    max_bytes: int = Field(default=2**30, gt=0)
    """Memory of frames whose documents have not come; beyond it the oldest goes."""
    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """How long an owed frame is waited for when the run has stopped."""


class Window(_Section):
    """The ring of raw projections."""

    max_bytes: int = Field(default=4 * 2**30, gt=0)
    """Raw frames kept in memory; beyond it they are read again from the file."""


class Refresh(_Section):
    """When the volume is looked at, counted in coverage."""

    every: float = Field(default=0.1, gt=0, le=1)
    """Fraction of the promised projections between two published versions."""
    interpret_every: int = Field(default=5, ge=1)
    """Every so many versions are also denoised and segmented; the last one always."""
    slab_rows: int = Field(default=32, ge=4, le=512, multiple_of=4)
    """Detector rows reconstructed together."""
    first_rows: tuple[int, int] | None = None
    """Half-open range of rows that are refreshed first: the region of interest."""


class Preview(_Section):
    """Quick looks between versions, counted in coverage."""

    every: float = Field(default=0.05, ge=0, le=1)
    """Fraction of the promised projections between two previews; 0: no previews."""
    bin: Literal[2, 4] = 4
    """How many times wider the voxels of the preview volume are."""


class Compute(_Section):
    """What the reconstruction runs on."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where projections are accumulated; where there is no GPU, the CPU does it."""


class Publish(_Section):
    """Where results go."""

    tiled: str = "embedded"
    """``embedded``, ``none``, or the address of a Tiled server."""
    api_key_env: str = "TILED_API_KEY"
    """Name of the environment variable that holds the server's key."""
    path: str = "processed"
    """Container of the Tiled tree that processed runs are put into."""


class Run(_Section):
    """When a run counts as over."""

    stop_grace_s: float = Field(default=2.0, ge=0, le=3600)
    """How long frames may still come after a stop document that came early."""
    silence_s: float = Field(default=600.0, gt=0)
    """A run without documents for so long, and without stop, is closed (unknown)."""


class Profile(_Section):
    """A beamline's settings, layered on the default profile."""

    version: Literal[1] = 1
    name: str = "default"
    keys: Keys = Keys()
    streams: Streams = Streams()
    start: StartKeys = StartKeys()
    datasets: Datasets = Datasets()
    geometry: Geometry = Geometry()
    files: Files = Files()
    feed: Feed = Feed()
    window: Window = Window()
    refresh: Refresh = Refresh()
    preview: Preview = Preview()
    compute: Compute = Compute()
    run: Run = Run()
    preprocess: tuple[StageEntry, ...] = ()
    """Stages in their order; see the rooms below."""
    center: StageEntry = "auto"
    """How the rotation center is found where nobody states it."""
    reconstruct: StageEntry = "fourier"
    """Line integrals to slices."""
    denoise: StageEntry | None = None
    """Null: no denoised volume."""
    segment: StageEntry | None = None
    """Null: no labels."""
    quantify: StageEntry | None = None
    """Null: no figures from labels."""
    publish: Publish = Publish()

    @field_validator("preprocess", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return () if value is None else value


def shipped() -> dict[str, Path]:
    """Return the shipped profiles: name to path."""
    folder = resources.files("ebl_stream.profiles")
    return {
        Path(str(entry)).stem: Path(str(entry))
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }


def load(name_or_path: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile by name or path, layered on the default.

    Parameters
    ----------
    name_or_path : str
        A shipped profile's name, or the path of a YAML file.
    overrides : dict, optional
        ``{"dotted.path": value}``, applied last (the command line's ``--set``).

    Raises
    ------
    InputError
        The profile is unknown, unreadable or wrong; the message says where.
    """
    path = _find(name_or_path)
    data = _layer(_read(shipped()["default"]), _read(path))
    data.setdefault("name", path.stem)
    if path.stem != data["name"] and "name" not in _read(path):
        data["name"] = path.stem
    for dotted, value in (overrides or {}).items():
        _set(data, dotted, value)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, name_or_path)) from None


def _find(name_or_path: str) -> Path:
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise InputError(f"profile: there is no file {str(path)!r}")
        return path
    close = difflib.get_close_matches(name_or_path, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"no profile is called {name_or_path!r}{hint} "
        f"(there are: {', '.join(sorted(known))}; or give the path of a YAML file)"
    )


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors: a few aliases can grow into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"aliases are not allowed (line {mark.line + 1})")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Parse YAML without tags and aliases.

    Raises
    ------
    yaml.YAMLError
        Not YAML, or YAML with tags or aliases.
    """
    return yaml.load(text, Loader=_PlainLoader)  # noqa: S506  (a SafeLoader)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"profile {path}: {error.strerror or error}") from None
    if len(raw) > MAX_PROFILE_BYTES:
        raise InputError(f"profile {path}: larger than {MAX_PROFILE_BYTES} bytes")
    try:
        data = parse_yaml(raw.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"profile {path}: not valid YAML: {first}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"profile {path}: expected 'key: value' lines at the top")
    return data


def _layer(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Lay one profile on another: sections merge, everything else replaces."""
    merged = dict(base)
    for key, value in top.items():
        section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # A stage entry is one choice, not a section to be merged.
        if section and key not in ROOMS:
            merged[key] = _layer(merged[key], value)
        else:
            merged[key] = value
    return merged


ROOMS = ("preprocess", "center", "reconstruct", "denoise", "segment", "quantify")
"""The rooms of the corridor, in the order that physics gives."""


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = data.get(parent)
        if isinstance(child, str) and parent in ROOMS:
            child = None
        data[parent] = dict(child) if isinstance(child, dict) else {}
        data = data[parent]
    data[last] = value


def _explain(error: ValidationError, name: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        hint = _did_you_mean(where, known)
        return (
            f"profile {name}: there is no key {where!r}{hint} "
            f"(there are: {', '.join(known)})"
        )
    return f"profile {name}: {where}: {first['msg']}, got {str(first['input'])[:80]!r}"


def _did_you_mean(where: str, known: list[str]) -> str:
    """Suggest a key of the same section, or the same key in another section."""
    last = where.split(".")[-1]
    elsewhere = [
        f"{section}.{key}" for section in known for key in _fields_at((section,), [])
    ]
    same = [path for path in elsewhere if path.endswith(f".{last}")]
    close = same or difflib.get_close_matches(last, known, n=1)
    close = close or difflib.get_close_matches(where, elsewhere, n=1)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _fields_at(
    loc: tuple[int | str, ...], otherwise: list[str] | None = None
) -> list[str]:
    """Return the keys of a section; ``otherwise`` where ``loc`` is no section."""
    model: type[BaseModel] = Profile
    for part in loc:
        field = model.model_fields.get(str(part))
        child = field.annotation if field else None
        if isinstance(child, type) and issubclass(child, BaseModel):
            model = child
        elif otherwise is not None:
            return otherwise
    return sorted(model.model_fields)
