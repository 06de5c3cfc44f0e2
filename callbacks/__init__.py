"""Doors: Bluesky callbacks that import the house, never raise and never wait.

>>> RE.subscribe(LiveReconstruction("2bm"))      # doctest: +SKIP
"""

from ebl_stream.callbacks.live import LiveReconstruction
from ebl_stream.callbacks.publisher import DocumentPublisher
from ebl_stream.callbacks.recorder import DocumentRecorder

__all__ = ["DocumentPublisher", "DocumentRecorder", "LiveReconstruction"]
