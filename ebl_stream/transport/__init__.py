"""Documents on the wire and on disk; light enough for a RunEngine's process."""
