"""``python -m ebl_stream.cli``, for where the command is not on the path."""

from ebl_stream.cli.commands import main

if __name__ == "__main__":
    main()
