"""Doors: Bluesky callbacks that import the house, never raise and never wait.

>>> RE.subscribe(LiveReconstruction("2bm"))      # doctest: +SKIP
"""

from .live import LiveReconstruction
from .publisher import DocumentPublisher
from .recorder import DocumentRecorder

__all__ = ["DocumentPublisher", "DocumentRecorder", "LiveReconstruction"]
