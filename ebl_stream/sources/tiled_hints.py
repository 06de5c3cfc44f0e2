"""Notifications of a Tiled server: they say that it is time to look, no more."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any

from tiled.client.stream import ContainerSubscription

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**20


class Hints:
    """Subscriptions to containers: never to arrays, whose messages carry pixels.

    Parameters
    ----------
    wake : threading.Event
        Set with every notification.
    problems : Counter
        Counts sequence numbers that were jumped over, and containers that could not
        be subscribed to.
    """

    def __init__(self, wake: threading.Event, problems: Counter[str]) -> None:
        self._wake = wake
        self._problems = problems
        self._watched: dict[str, tuple[ContainerSubscription, threading.Thread]] = {}
        self._sequences: dict[str, int] = {}

    def watch(self, node: Any) -> None:
        """Subscribe to a container, if that is not so."""
        path = "/".join(node.path_parts)
        if path in self._watched and self._watched[path][1].is_alive():
            return
        self._sequences.pop(path, None)
        subscription: ContainerSubscription = node.subscribe()
        # These hold weak references: a method of ours lives as long as we do.
        subscription.child_created.add_callback(self._heard)
        subscription.child_metadata_updated.add_callback(self._heard)
        # Not its own thread: starting that waits, for ever where nobody answers.
        thread = threading.Thread(
            target=self._listen, args=(path, subscription), daemon=True
        )
        self._watched[path] = (subscription, thread)
        thread.start()

    def forget(self, uid: str) -> None:
        """End the subscription to a run."""
        for path in [path for path in self._watched if path.endswith(uid)]:
            subscription, _ = self._watched.pop(path)
            subscription.disconnect()

    def close(self) -> None:
        """End all subscriptions."""
        for path in list(self._watched):
            self.forget(path)

    def _listen(self, path: str, subscription: ContainerSubscription) -> None:
        try:
            subscription.start(max_size=MAX_MESSAGE_BYTES)
        except Exception as error:  # the client raises what its libraries raise
            self._problems["no notifications"] += 1
            if self._problems["no notifications"] == 1:
                logger.info("%s: looked at now and then: %s", path or "/", error)

    def _heard(self, update: Any) -> None:
        path = "/".join(update.subscription.segments)
        last = self._sequences.get(path)
        if last is not None and update.sequence > last + 1:
            self._problems["notifications lost"] += update.sequence - last - 1
        self._sequences[path] = update.sequence
        self._wake.set()
