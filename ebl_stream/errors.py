"""Errors that a user can act on: what was wrong, where, and what to do."""


class InputError(Exception):
    """The input, the profile or the request is wrong; nothing was written.

    The message is shown as it is (at most four lines, no traceback), so it says
    what was wrong, where, and what to do. The command line exits with 2.
    """
