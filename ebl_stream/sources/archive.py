"""An archived run on a Tiled server, told again as Bluesky documents."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from ebl_stream.errors import InputError
from ebl_stream.profile import Profile
from ebl_stream.profile_file import load
from ebl_stream.sources.exported import export_documents, is_readable, recut
from ebl_stream.sources.synthesis import Document, RunTeller, order_streams

try:
    import httpx
    from tiled.client import from_context
    from tiled.client.context import Context
    from tiled.profiles import load_profiles
except ImportError as error:
    raise InputError(
        f"archived runs need {error.name}: pip install 'ebl-stream[service]'"
    ) from None

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0


def open_archive(
    kind: str, address: str, profile: Profile | None
) -> tuple[ArchiveSource, Profile]:
    """Open ``URL#uid`` (kind ``tiled``) or ``CATALOG/uid`` (kind ``databroker``).

    A databroker catalog is a Tiled profile of that name, as in
    ``databroker.catalog[CATALOG]``. Keys come from the environment variable that
    ``profile.publish.api_key_env`` names, and from nowhere else.

    Raises
    ------
    InputError
        Malformed address, unknown catalog, no answer, no entry, no such run.
    """
    profile = profile or load("default")
    is_tiled = kind == "tiled"
    place, _, uid = address.partition("#") if is_tiled else address.rpartition("/")
    if not place or not uid:
        form = "tiled:URL#uid" if is_tiled else "databroker:CATALOG/uid"
        raise InputError(f"{kind}:{address}: expected {form}")
    url = place if is_tiled else _catalog_url(place, address)
    catalog = connect(url, profile)
    source = ArchiveSource(_find_run(catalog, uid, url), profile, catalog)
    return source, profile


class ArchiveSource:
    """Documents of one archived run.

    What the server's exporter says is taken where all frames lie in files that can
    be read here, within ``profile.files.roots``. Otherwise the documents are made
    of the run's metadata and arrays; what cannot be read from a file here is read
    through Tiled, block by block, and travels inside the events.

    Parameters
    ----------
    run : tiled client
        A container with the spec BlueskyRun.
    profile : Profile
    catalog : tiled client
        The container that the run is in; other runs are looked for in it.
    """

    def __init__(self, run: Any, profile: Profile, catalog: Any) -> None:
        self._run, self._profile, self._catalog = run, profile, catalog
        self.profile = profile
        self.roots = tuple(
            Path(root).expanduser().resolve() for root in profile.files.roots
        )

    def documents(self) -> Iterator[Document]:
        """Yield the run: start, darks and flats first, stop."""
        try:
            yield from self._documents()
        except httpx.HTTPError as error:
            uid = self._run.metadata["start"]["uid"]
            raise InputError(f"Tiled no longer gives run {uid}: {error}") from None

    def find_run(self, run_uid: str) -> Iterator[Document] | None:
        """Return the documents of another run of the catalog; None: not there."""
        try:
            run = _find_run(self._catalog, run_uid, "the catalog")
        except InputError as error:
            logger.info("%s", error)
            return None
        return ArchiveSource(run, self._profile, self._catalog).documents()

    def close(self) -> None:
        """Close the connection."""
        self._run.context.http_client.close()

    def _documents(self) -> Iterator[Document]:
        if not hasattr(self._run, "descriptors"):  # kept in Mongo: told as it was
            yield from self._run.documents()
            return
        streams = order_streams(self._run, self._profile.streams)
        exported = export_documents(self._run)
        if exported and all(
            is_readable(doc, self._profile, self.roots)
            for name, doc in exported
            if name == "stream_resource"
        ):
            yield from recut(exported, streams)
            return
        yield from RunTeller(self._profile, self.roots).documents(self._run)


def _catalog_url(catalog: str, address: str) -> str:
    profiles = load_profiles()
    if catalog not in profiles:
        raise InputError(
            f"databroker:{address}: there is no Tiled profile {catalog!r} "
            f"(there are: {', '.join(sorted(profiles)) or 'none'})"
        )
    url = profiles[catalog][1].get("uri")
    if not isinstance(url, str):
        raise InputError(
            f"databroker:{address}: the profile {catalog!r} names no server (uri); "
            f"serve it with `tiled serve` and use tiled:URL#uid"
        )
    return url


def connect(url: str, profile: Profile) -> Any:
    """Connect without ever asking for a password; return a tiled client.

    Raises
    ------
    InputError
        No answer, a key that is wrong or in the wrong place, or no such entry.
    """
    if "api_key" in parse_qs(urlparse(url).query):
        raise InputError(
            "the server's key does not belong into the address; "
            f"put it into the environment: export {profile.publish.api_key_env}=..."
        )
    try:
        # Asked once ourselves: the client goes on trying for half a minute.
        httpx.get(url, timeout=_CONNECT_TIMEOUT_S)
        key = os.environ.get(profile.publish.api_key_env)
        context, node_path_parts = Context.from_any_uri(url, api_key=key)
        if context.server_info.authentication.required and not key:
            raise InputError(
                f"{url} wants a key: export {profile.publish.api_key_env}=..."
            )
        return from_context(context, node_path_parts=node_path_parts, remember_me=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"no use of the Tiled server at {url}: {reason}") from None
    except KeyError as error:
        raise InputError(f"{url}: there is nothing called {error}") from None


def _find_run(catalog: Any, uid: str, url: str) -> Any:
    try:
        run = catalog[uid]
    except (KeyError, TypeError, httpx.HTTPError):
        n_runs = len(catalog) if hasattr(catalog, "__len__") else 0
        raise InputError(
            f"{url} has no run {uid!r} (it has {n_runs} entries); "
            f"give the whole uid, and the URL of the container that it is in"
        ) from None
    start = run.metadata.get("start")
    if not isinstance(start, dict) and not hasattr(start, "keys"):
        raise InputError(f"{url}: {uid!r} is no Bluesky run (it has no start document)")
    return run
