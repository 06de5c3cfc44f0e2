"""Where in Kafka the documents are: the address, and the settings of a login."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from ebl_stream.errors import InputError

FORM = "kafka://host:9092,host2:9092/topic?group=NAME"
STARTS = ("latest", "earliest")

_HOST = re.compile(r"[0-9A-Za-z._-]+(:[0-9]{1,5})?")
_NAME = re.compile(r"[0-9A-Za-z._-]{1,249}")
_LOGIN = ("security.", "sasl.", "ssl.")
_OPTIONS = {"group", "start", "config"}


@dataclass(frozen=True)
class KafkaAddress:
    """An address ``kafka://host:9092,host2:9092/topic?group=NAME``, taken apart."""

    brokers: str
    topic: str
    group: str
    """Kafka remembers under this name what was taken."""
    start: str
    """``latest`` or ``earliest``: where a group begins that has taken nothing yet."""
    login: dict[str, str]
    """Settings ``security.*``, ``sasl.*`` and ``ssl.*`` of librdkafka."""


def parse_address(address: str) -> KafkaAddress:
    """Take a Kafka address apart.

    Raises
    ------
    InputError
        Another form, no group, an unknown option, or a file of settings that cannot
        be used.
    """
    url = urlsplit(address)
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    hosts, topic = url.netloc.split(","), url.path.removeprefix("/")
    is_sound = all(map(_HOST.fullmatch, hosts)) and _NAME.fullmatch(topic)
    if not is_sound or url.fragment:
        raise InputError(f"address {address!r}: expected {FORM}")
    if unknown := options.keys() - _OPTIONS:
        raise InputError(
            f"address {address!r}: unknown option {min(unknown)!r} "
            f"(there are: {', '.join(sorted(_OPTIONS))})"
        )
    group, start = options.get("group", ""), options.get("start", STARTS[0])
    if not _NAME.fullmatch(group):
        raise InputError(
            f"address {address!r}: give ?group=NAME, a name of this service's own; "
            f"Kafka remembers under it what was taken"
        )
    if start not in STARTS:
        raise InputError(f"address {address!r}: start is {' or '.join(STARTS)}")
    login = _read_login(Path(options["config"])) if "config" in options else {}
    return KafkaAddress(",".join(hosts), topic, group, start, login)


def _read_login(path: Path) -> dict[str, str]:
    """Read ``name=value`` lines; the values never appear in a message."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"settings of the Kafka login: {error}") from None
    login: dict[str, str] = {}
    for n, line in enumerate(lines, 1):
        name, is_setting, value = (part.strip() for part in line.partition("="))
        if not line.strip() or name.startswith("#"):
            continue
        if not is_setting or not name.startswith(_LOGIN):
            raise InputError(
                f"{path}, line {n}: expected name=value with a name that begins "
                f"with {', '.join(_LOGIN)}"
            )
        login[name] = value
    return login
