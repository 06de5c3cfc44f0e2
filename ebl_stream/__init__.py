"""Live synchrotron tomography inside Bluesky."""

from importlib.metadata import version

__version__ = version("ebl-stream")
