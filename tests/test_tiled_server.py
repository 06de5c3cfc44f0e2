"""The Tiled server's life as a child process, and the addresses of servers."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ebl_stream.errors import InputError
from ebl_stream.publish.tiled_api import Address
from ebl_stream.publish.tiled_link import TiledLink
from ebl_stream.publish.tiled_server import TiledServer

PATIENCE_S = 60

PARENT = """
import sys, time
from pathlib import Path
from ebl_stream.publish.tiled_server import TiledServer
server = TiledServer(Path(sys.argv[1]))
server.start()
while server.pid is None:
    time.sleep(0.01)
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux")
def test_server_dies_with_its_parent(tmp_path):
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + PATIENCE_S
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_server_that_cannot_start_says_so_and_is_not_ready(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    server = TiledServer(tmp_path / "file")
    server.start()
    assert not server.wait_ready(0.1)
    assert "no Tiled server" in caplog.text
    server.stop()


@pytest.mark.parametrize(
    ("text", "server", "prefix", "key"),
    [
        ("http://h:8000", "http://h:8000", (), None),
        ("https://h/api/v1/", "https://h", (), None),
        ("http://h/tiled/api/v1/metadata/a/b", "http://h/tiled", ("a", "b"), None),
        ("http://h:1/?api_key=s3", "http://h:1", (), "s3"),
    ],
)
def test_address_forms(text, server, prefix, key):
    address = Address.parse(text)
    assert (address.server, address.prefix, address.api_key) == (server, prefix, key)
    assert "s3" not in repr(address)


@pytest.mark.parametrize("text", ["", "somewhere", "ftp://h", "http://", "http://h:x"])
def test_address_that_is_none(text):
    with pytest.raises(InputError, match="not the address of a Tiled server"):
        TiledLink(text, api_key=None)


def test_node_uri_quotes_and_keeps_the_prefix():
    link = TiledLink("http://127.0.0.1:9/api/v1/metadata/a b", api_key="k")
    assert link.node_uri("u") == "http://127.0.0.1:9/api/v1/metadata/a%20b/processed/u"
    assert link.uri == "http://127.0.0.1:9"
    link.close(0)
