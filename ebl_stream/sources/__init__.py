"""Where documents come from: files, journals, archives, sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load
from ebl_stream.sources.listener import Listener
from ebl_stream.transport.journal import is_journal


class Source(Protocol):
    """A stream of Bluesky documents with an end."""

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders that its file-backed frames may be read from."""
        ...

    def documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield ``(name, document)`` until the source ends."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def open_source(
    address: str,
    profile: Profile | None,
    *,
    overrides: dict[str, Any] | None = None,
    speed: float | None = None,
) -> tuple[Source, Profile]:
    """Open what is to be replayed, and look at all of it before anything is made.

    Parameters
    ----------
    address : str
        A path (HDF5 scan or journal), ``tiled:URL#uid`` or ``databroker:CATALOG/uid``.
    profile : Profile, optional
        None takes the shipped profile that fits.
    overrides : mapping, optional
        ``{"dotted.path": value}`` on top of the shipped profile.
    speed : float, optional
        1 keeps the recorded cadence, 2 doubles it; None is as fast as possible.

    Returns
    -------
    Source, Profile
        The profile is the one to reconstruct with: where a file was told as
        documents, it names their data keys.

    Raises
    ------
    InputError
        It cannot be read, or holds nothing that can be reconstructed.
    """
    kind, _, rest = address.partition(":")
    # Imported here: each kind of source has heavy imports of its own.
    if kind in ("tiled", "databroker"):
        from ebl_stream.sources.archive import open_archive

        return open_archive(kind, rest, profile or load("default", overrides))
    path = Path(address).expanduser()
    _require_file(path)
    if is_journal(path):
        from ebl_stream.sources.recorded import RecordedSource

        source = RecordedSource(path, profile, overrides=overrides, speed=speed)
    else:
        from ebl_stream.sources.files import FileSource

        source = FileSource(path, profile, overrides=overrides, speed=speed)
    return source, source.profile


def open_listener(
    address: str, profile: Profile | None = None, out: Path | None = None
) -> Listener:
    """Open what documents are to be taken from while scans run.

    Parameters
    ----------
    address : str
        ``zmq://host:port``, ``ipc://path`` (our doors), ``zmq+sub://host:port`` (the
        stock publisher's proxy), ``kafka://host:port/topic?group=NAME``, or
        ``tiled:URL`` (the runs in a container of a Tiled server).
    profile : Profile, optional
        Where a Tiled server's key is, and which of its files may be read.
    out : Path, optional
        Folder in which is remembered which runs of a Tiled server were told.

    Raises
    ------
    InputError
        Another form, or it cannot be used.
    ModuleNotFoundError
        Its client is not installed.
    """
    # Imported here: each kind of source has imports of its own.
    if address.startswith("kafka://"):
        from ebl_stream.sources.kafka import KafkaSource

        return KafkaSource(address)
    if address.startswith("tiled:"):
        from ebl_stream.sources.tiled_subscription import TiledSource

        return TiledSource(address, profile or load("default"), out)
    if address.startswith("zmq+sub://"):
        from ebl_stream.sources.proxy import ProxySource

        return ProxySource(address)
    from ebl_stream.sources.zmq import DoorSource

    return DoorSource(address)


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one HDF5 file or journal in it")
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
