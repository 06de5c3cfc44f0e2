"""The door to a service that somebody else started, here or on another machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ebl_stream.transport.link import Link


class DocumentPublisher:
    """Send every document to ``ebl-stream serve --source zmq://host:port``.

    Documents are acknowledged, sent again where necessary and kept until then, in
    memory and beyond `max_bytes` in a temporary file. The scan neither waits nor
    fails, whatever becomes of the service.

    Parameters
    ----------
    address : str
        ``zmq://host:port``, ``host:port`` or ``ipc://path``.
    max_bytes : int
        Documents kept in memory.
    on_status : callable, optional
        Called in another thread with every status of a run, a plain dict.
    folder : Path, optional
        Of the temporary file, and of what could not be sent in the end.

    Raises
    ------
    InputError
        The address has another form.

    Examples
    --------
    >>> RE.subscribe(DocumentPublisher("zmq://recon1:5577"))  # doctest: +SKIP
    """

    def __init__(
        self,
        address: str,
        *,
        max_bytes: int = 64 * 2**20,
        on_status: Callable[[dict[str, Any]], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._link = Link(
            address, max_bytes=max_bytes, on_status=on_status, folder=folder
        )

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        self._link.send(name, doc)

    @property
    def status(self) -> dict[str, Any] | None:
        """How the latest run gets on, as far as the service said."""
        return self._link.status()

    @property
    def unsent(self) -> Path | None:
        """After `close`: the journal with the documents that nobody took."""
        return self._link.unsent

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until the service has everything; False if it has not in time."""
        return self._link.flush(timeout_s)

    def wait(
        self, timeout_s: float | None = None, run_uid: str | None = None
    ) -> dict[str, Any]:
        """Wait until a run is reconstructed, by default the latest; return its result.

        Raises
        ------
        TimeoutError
            It has not in time, or there is no run to wait for.
        """
        return self._link.wait(timeout_s, run_uid)

    def close(self) -> None:
        """Give the service a moment to take what is left, then stop."""
        self._link.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._link!r}>"
