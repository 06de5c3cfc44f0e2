"""Look at results through Tiled: serve an output folder until Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import httpx

from ebl_stream import strict_json
from ebl_stream.publish.record import RunRecord, read_record
from ebl_stream.publish.tiled_api import Address, TiledApi, TiledFault
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_mirror import SPEC
from ebl_stream.publish.tiled_server import TiledServer

logger = logging.getLogger(__name__)

START_S = 60.0
"""How long Tiled may take to start."""


def browse(out: Path) -> int:
    """Serve a folder's results until Ctrl-C; return the exit code."""
    server = TiledServer(out)
    server.start()
    try:
        if server.api_key is None or not server.wait_ready(START_S):
            click.echo(f"the Tiled server does not start; see {out}/.tiled", err=True)
            return 1
        forget_removed(server, out)
        link = TiledLink(server)
        for record in records(out):
            # A run that was reconstructed without Tiled, or while it was down.
            if not has_ended_in(server, record.processed_uid):
                link.follow(record)
        wait_and_look(server)
        link.close(0)
        return 0
    finally:
        server.stop()


def command() -> str:
    """Return how this command line can be called from where the user is."""
    if shutil.which("ebl-stream"):
        return "ebl-stream"
    if Path(sys.argv[0]).name == "ebl-stream":
        return sys.argv[0]
    return f"{sys.executable} -m ebl_stream.cli"


def records(out: Path) -> Iterator[RunRecord]:
    """Yield the records of all ended runs in a folder."""
    for path in sorted(out.glob("*/metadata.json")):
        try:
            record = read_record(path.parent)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s is left out: %s", path.parent, error)
            continue
        if record.state != "running":
            yield record


def node_uri(server: TiledServer, processed_uid: str) -> str:
    """Return the address of a run, for ``tiled.client.from_uri``."""
    return f"{server.uri}/api/v1/metadata/processed/{processed_uid}"


def has_ended_in(server: TiledServer, processed_uid: str) -> bool:
    """Return whether Tiled knows a run, and that it has ended."""
    headers = {"Authorization": f"Apikey {server.api_key}"}
    uri = node_uri(server, processed_uid)
    try:
        reply = httpx.get(uri, headers=headers, timeout=5, trust_env=False)
    except httpx.HTTPError:
        return False
    if reply.status_code != 200:
        return False
    state = strict_json.loads(reply.content)["data"]["attributes"]["metadata"].get(
        "state"
    )
    return state != "running"


def forget_removed(server: TiledServer, out: Path) -> None:
    """Take results out of Tiled that `ebl-stream clean`, or somebody else, removed."""
    api = TiledApi(Address.parse(server.uri or ""), server.api_key)
    try:
        for uid in list(_known(server)):
            if not (out / uid).exists():
                api.delete(("processed", uid))
    except (TiledFault, httpx.HTTPError, ValueError, KeyError) as error:
        logger.warning("Tiled still lists results that are gone: %s", error)
    finally:
        api.close()


def _known(server: TiledServer) -> Iterator[str]:
    """Yield the uids of the results that Tiled lists, page by page."""
    headers = {"Authorization": f"Apikey {server.api_key}"}
    uri = f"{server.uri}/api/v1/search/processed?page[limit]=300"
    while uri:
        reply = httpx.get(uri, headers=headers, timeout=30, trust_env=False)
        if reply.status_code == httpx.codes.NOT_FOUND:
            return
        page = strict_json.loads(reply.raise_for_status().content)
        for node in page["data"]:
            if SPEC in {spec["name"] for spec in node["attributes"]["specs"] or ()}:
                yield str(node["id"])
        uri = page["links"]["next"]


def wait_and_look(server: TiledServer) -> None:
    """Say how to look, and wait for Ctrl-C."""
    click.echo(f"\nTiled serves {server.folder}")
    click.echo(f"  browser: {server.uri}/?api_key={server.api_key}")
    click.echo("  Python:  from tiled.client import from_uri")
    click.echo(f"           from_uri({server.uri!r}, api_key={server.api_key!r})")
    click.echo("Ctrl-C stops it; the results stay.")
    with contextlib.suppress(KeyboardInterrupt):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        signal.pause()
