"""One run: window, ledger, rooms, and the versions of its volume."""
