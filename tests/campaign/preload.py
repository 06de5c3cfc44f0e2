"""What every service needs, loaded and warmed once: processes are forked from here."""

from campaign.scan import SETTINGS
from ebl_stream import profile_file
from ebl_stream.cli import __main__, check, replay  # noqa: F401
from ebl_stream.engine.rooms import Rooms
from ebl_stream.publish import publishing  # noqa: F401
from ebl_stream.reconstruction import Reconstruction  # noqa: F401
from ebl_stream.service import service  # noqa: F401
from ebl_stream.sources import zmq  # noqa: F401

Rooms.furnish(profile_file.load("demo", SETTINGS)).warm_up()
