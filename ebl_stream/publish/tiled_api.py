"""The only place that knows Tiled's HTTP interface (tiled 0.2, ``/api/v1``).

Plain requests, one try each: who calls decides what to do about a fault. (The
Tiled client retries inside for up to 45 s, which a thread that must be able to
stop cannot have.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tiled.structures.array import ArrayStructure, BuiltinDtype
from tiled.structures.table import TableStructure

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.publish.record import ArraySpec

ARROW = "application/vnd.apache.arrow.file"
CONNECT_S, REPLY_S = 5.0, 15.0
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
ROW_ID = "row_id"
"""Column that makes a row of the quality table unique."""

NodePath: TypeAlias = tuple[str, ...]
FaultKind: TypeAlias = Literal["unreachable", "busy", "denied", "gone", "refused"]


class TiledFault(Exception):  # noqa: N818  (not always an error: Tiled may be away)
    """A request that did not succeed.

    ``unreachable``: nobody answers, the server may come back without its memory;
    ``busy``: it may or may not have been done; ``denied``: the key is refused;
    ``gone``: the node is not there; ``refused``: the server will not do it.
    """

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


@dataclass(frozen=True)
class Address:
    """Where a Tiled server is, and where in its tree we are."""

    server: str
    """``http(s)://host[:port]``, without a key."""
    prefix: NodePath = ()
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``http(s)://host[:port][/api/v1[/metadata/path]][?api_key=...]``.

        Raises
        ------
        InputError
            It is no such address.
        """
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, TypeError):
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            shown = text.partition("?")[0]
            raise InputError(
                f"not the address of a Tiled server: {shown!r}\n"
                "Expected something like http://localhost:8000"
            )
        root, _, rest = url.path.partition("/api/v1")
        parts = rest.removeprefix("/metadata").split("/")
        server = url.copy_with(path=root.rstrip("/") or "/", query=None, fragment=None)
        prefix = tuple(part for part in parts if part)
        return cls(str(server).rstrip("/"), prefix, url.params.get("api_key"))

    def node_uri(self, path: NodePath) -> str:
        """Return the address of a node, for ``tiled.client.from_uri``."""
        return f"{self.server}/api/v1/metadata/{_quoted((*self.prefix, *path))}"


class TiledApi:
    """Requests to one Tiled server; the key travels as a header only."""

    def __init__(self, address: Address, api_key: str | None) -> None:
        self.address = address
        api_key = api_key or address.api_key
        self._http = httpx.Client(
            base_url=f"{address.server}/api/v1",
            headers={"Authorization": f"Apikey {api_key}"} if api_key else {},
            timeout=httpx.Timeout(REPLY_S, connect=CONNECT_S),
            # A proxy meant for the outside must not get loopback requests.
            trust_env=urlsplit(address.server).hostname not in LOOPBACK,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def create_container(
        self, path: NodePath, metadata: dict[str, Any], specs: Sequence[str] = ()
    ) -> bool:
        """Create a container; False if there is a node of that name already."""
        versioned = [{"name": name, "version": "1.0"} for name in specs]
        return self._create("metadata", path, "container", metadata, specs=versioned)

    def create_external_array(
        self, path: NodePath, source: dict[str, Any], metadata: dict[str, Any]
    ) -> bool:
        """Register an array that lies on a disk which the server can see."""
        return self._create("register", path, "array", metadata, source=source)

    def create_stored_array(
        self, path: NodePath, source: dict[str, Any], metadata: dict[str, Any]
    ) -> bool:
        """Create an array that the server keeps itself."""
        return self._create("metadata", path, "array", metadata, source=source)

    def create_table(self, path: NodePath, schema: pa.Schema) -> bool:
        """Create a table to append to; ``ROW_ID`` keeps its rows unique."""
        source = {
            "structure_family": "table",
            "structure": asdict(TableStructure.from_schema(schema)),
            "mimetype": "application/x-tiled-sql-table",
            # The order is stated because tiled 0.2 cannot read a table that has a
            # primary key and no order (UnboundLocalError in its SQL adapter).
            "parameters": {
                "primary_key": [ROW_ID],
                "order_by_args": [{"column": ROW_ID, "direction": "asc"}],
            },
        }
        return self._create("metadata", path, "table", {}, source=source)

    def node(self, path: NodePath) -> dict[str, Any]:
        """Return a node's attributes, data sources included."""
        url = self._url("metadata", path)
        reply = self._send("GET", url, params={"include_data_sources": "true"})
        return strict_json.loads(reply.content)["data"]["attributes"]

    def delete(self, path: NodePath) -> None:
        """Delete a node, never the external files behind it."""
        self._send("DELETE", self._url("metadata", path), params={"recursive": "true"})

    def replace_metadata(self, path: NodePath, metadata: dict[str, Any]) -> None:
        """Replace a node's metadata, without keeping the old one."""
        self._send(
            "PUT",
            self._url("metadata", path),
            params={"drop_revision": "true"},
            content=json.dumps({"metadata": metadata}),
        )

    def notify_patch(
        self,
        path: NodePath,
        source: dict[str, Any],
        offset: Sequence[int],
        shape: Sequence[int],
    ) -> None:
        """Tell subscribers that a region of an external array has changed.

        ``source["properties"]`` travels with the message.
        """
        params = {"patch_offset": _csv(offset), "patch_shape": _csv(shape)}
        body = json.dumps({"data_source": source})
        self._send("PUT", self._url("data_source", path), params=params, content=body)

    def write_region(
        self, path: NodePath, values: NDArray[Any], offset: Sequence[int]
    ) -> None:
        """Send a region of an array that the server keeps itself."""
        self._send(
            "PATCH",
            self._url("array/full", path),
            params={"offset": _csv(offset), "shape": _csv(values.shape)},
            content=np.ascontiguousarray(values).tobytes(),
            headers={"Content-Type": "application/octet-stream"},
        )

    def can_read(self, path: NodePath) -> bool:
        """Whether the server gets at the first value of a ``[z, y, x]`` array."""
        params = {"slice": "0,0,0:1", "format": "application/octet-stream"}
        # Tiled breaks a connection after an internal error; do not use it again.
        once = {"Connection": "close"}
        url = self._url("array/full", path)
        reply = self._try("GET", url, params=params, headers=once)
        if reply.status_code == httpx.codes.UNAUTHORIZED:
            _check(reply)
        return reply.is_success

    def append_rows(self, path: NodePath, table: pa.Table) -> None:
        """Append rows to a table."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self._send(
            "PATCH",
            self._url("table/partition", path),
            params={"partition": "0"},
            content=sink.getvalue().to_pybytes(),
            headers={"Content-Type": ARROW},
        )

    def count_rows(self, path: NodePath) -> int:
        """Return how many rows a table has."""
        params = {"column": ROW_ID, "format": ARROW}
        reply = self._send("GET", self._url("table/full", path), params=params)
        return pa.ipc.open_file(reply.content).read_all().num_rows

    def close_stream(self, path: NodePath) -> None:
        """End the subscriptions to a node."""
        self._send("DELETE", self._url("stream/close", path))

    def _create(
        self,
        room: str,
        path: NodePath,
        family: str,
        metadata: dict[str, Any],
        *,
        specs: Sequence[dict[str, str]] = (),
        source: dict[str, Any] | None = None,
    ) -> bool:
        body = {
            "id": path[-1],
            "structure_family": family,
            "metadata": metadata,
            "specs": list(specs),
            "data_sources": [source] if source else [],
        }
        url = self._url(room, path[:-1])
        reply = self._try("POST", url, content=json.dumps(body))
        if reply.status_code == httpx.codes.CONFLICT:
            return False
        _check(reply)
        return True

    def _url(self, room: str, path: NodePath) -> str:
        return f"/{room}/{_quoted((*self.address.prefix, *path))}"

    def _send(self, method: str, url: str, **request: Any) -> httpx.Response:
        reply = self._try(method, url, **request)
        _check(reply)
        return reply

    def _try(self, method: str, url: str, **request: Any) -> httpx.Response:
        headers = {"Accept": "application/json", **request.pop("headers", {})}
        if method == "GET":
            headers.pop("Accept")
        if "content" in request:
            headers.setdefault("Content-Type", "application/json")
        try:
            return self._http.request(method, url, headers=headers, **request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TiledFault("unreachable", str(error)) from error
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise TiledFault("busy", what) from error
        except RuntimeError as error:  # the client was closed by another thread
            raise TiledFault("unreachable", str(error)) from error


def external_source(
    spec: ArraySpec, chunks: Sequence[int], folder: str
) -> dict[str, Any]:
    """Describe a zarr array on disk as Tiled's external data source."""
    # num=0: with None, subscribers cannot parse the notifications (tiled 0.2).
    asset = {
        "data_uri": f"file://localhost{quote(folder)}",
        "is_directory": True,
        "parameter": "data_uri",
        "num": 0,
    }
    return {
        **stored_source(spec, chunks),
        "mimetype": "application/x-zarr",
        "management": "external",
        "assets": [asset],
    }


def stored_source(spec: ArraySpec, chunks: Sequence[int]) -> dict[str, Any]:
    """Describe an array; without more, Tiled stores it itself."""
    structure = ArrayStructure(
        data_type=BuiltinDtype.from_numpy_dtype(np.dtype(spec.dtype)),
        shape=spec.shape,
        chunks=tuple(_tiles(n, k) for n, k in zip(spec.shape, chunks, strict=True)),
        dims=("z", "y", "x"),
    )
    return {"structure_family": "array", "structure": asdict(structure)}


def _quoted(path: NodePath) -> str:
    return "/".join(quote(part, safe="") for part in path)


def _tiles(length: int, chunk: int) -> tuple[int, ...]:
    whole, rest = divmod(length, chunk)
    return (chunk,) * whole + ((rest,) if rest else ())


def _csv(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _check(reply: httpx.Response) -> None:
    if reply.is_success:
        return
    code = reply.status_code
    kind: FaultKind = "refused"
    if code in (401, 403):
        kind = "denied"
    elif code in (404, 410):
        kind = "gone"
    elif code >= 500 or code in (408, 425, 429):
        kind = "busy"
    # No query in the message: it is no place where a key could hide.
    where = f"{reply.request.method} {reply.request.url.path}"
    raise TiledFault(kind, f"{code} for {where}: {reply.text[:200]}")
