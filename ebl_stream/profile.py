"""A beamline's profile: the reference of every key.

Validated data, never code; `ebl_stream.profile_file` reads it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

ROOMS = ("preprocess", "center", "reconstruct", "denoise", "segment", "quantify")
"""The rooms of the corridor, in the order that physics gives."""

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
    theta_unit: Literal["auto", "deg", "rad", "mrad", "counts"] = "auto"
    """``auto``: the descriptor's units, else degrees; ``counts`` of an encoder."""
    counts_per_turn: float | None = Field(default=None, gt=0)
    """Encoder counts of a full turn, for `theta_unit: counts`."""
    missing_theta: Literal["reject", "interpolate"] = "reject"
    """A missing or NaN angle: reject its frame, or put it between its neighbors."""
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
    angles: tuple[str, ...] = ()
    """Streams with the angles of the projections, joined by event number."""


class StartKeys(_Section):
    """Keys of the start document, the first one present counts; `a.b` is b within a."""

    n_projections: tuple[str, ...] = ("n_projections", "num_projections", "num_points")
    """How many projections the plan promises."""
    rotation_center: tuple[str, ...] = ("rotation_center",)
    """Rotation center, px, column of the stored frame."""
    voxel_size_um: tuple[str, ...] = ("voxel_size_um", "pixel_size_um")
    """Edge of a voxel, µm; published with the volume."""
    theta: tuple[str, ...] = ("theta", "angles")
    """A list of angles, one per projection, where no event has them."""
    theta_start: tuple[str, ...] = ()
    """The first angle, where neither events nor a list have them."""
    theta_step: tuple[str, ...] = ()
    """From one projection to the next."""
    theta_stop: tuple[str, ...] = ()
    """Instead of a step: where the turn ends, after `n_projections`."""
    stop_included: bool | None = None
    """Whether the last projection is at `theta_stop`, or one step before it."""
    references_run: tuple[str, ...] = ()
    """Uid of the run that holds the flats and darks."""
    references_file: tuple[str, ...] = ()
    """HDF5 file (path or `file:` URI) that holds the flats and darks."""


class References(_Section):
    """Flats and darks that are not in the run's own streams."""

    file: str | None = None
    """HDF5 file with `datasets.flats`, `.darks`; `projections`: the one of these."""


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
    theta_offset_deg: float = Field(default=0.0, ge=-360, le=360)
    """Is added to every angle, deg: lines up scans whose zeros differ."""
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
    """Every so many versions, some slabs are also denoised and segmented; of the last
    one all."""
    slab_rows: int = Field(default=32, ge=4, le=512, multiple_of=4)
    """Detector rows reconstructed together."""
    first_rows: tuple[int, int] | None = None
    """Half-open range of rows that are refreshed first: the region of interest."""


class Preview(_Section):
    """Quick looks between versions, counted in coverage."""

    every: float = Field(default=0.05, ge=0, le=1)
    """Fraction of the promised projections between two previews of a live run, or of a
    replay that somebody looks at (``ebl-stream look``); 0: no previews."""
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

    @field_validator("tiled")
    @classmethod
    def _has_no_key(cls, value: str) -> str:
        # The profile is published with every volume.
        if "api_key" in value.lower():
            raise ValueError("a key belongs into the variable of publish.api_key_env")
        return value


class Retention(_Section):
    """What stays free on the disk of the results, and how long results stay there."""

    min_free_gb: float = Field(default=1.0, ge=0, le=1e6)
    """Free space that results leave, GB; where it is short, the volume goes first."""
    keep_days: float | None = Field(default=None, ge=0, le=36_500)
    """Results may be removed when they are older; null: no age."""
    keep_runs: int | None = Field(default=None, ge=0)
    """The newest so many results stay; null: no number. Both null: all stay."""
    journal_days: float | None = Field(default=None, ge=0, le=36_500)
    """Journals of ended runs are removed when they are older; null: never."""
    automatic: bool = False
    """True: removed whenever a live run begins; false: by `ebl-stream clean` only."""


class Run(_Section):
    """When a run counts as over."""

    stop_grace_s: float = Field(default=2.0, ge=0, le=3600)
    """How long frames may still come after a stop document that came early."""
    silence_s: float = Field(default=600.0, gt=0)
    """A run without stop of which nobody speaks for so long is closed (unknown). The
    door of a RunEngine speaks of its runs while it lives; over Kafka or 0MQ, only
    documents count: pauses must be shorter."""


class Profile(_Section):
    """A beamline's settings, layered on the default profile."""

    version: Literal[1] = 1
    name: str = "default"
    keys: Keys = Keys()
    streams: Streams = Streams()
    start: StartKeys = StartKeys()
    references: References = References()
    datasets: Datasets = Datasets()
    geometry: Geometry = Geometry()
    files: Files = Files()
    feed: Feed = Feed()
    window: Window = Window()
    refresh: Refresh = Refresh()
    preview: Preview = Preview()
    compute: Compute = Compute()
    run: Run = Run()
    retention: Retention = Retention()
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
