"""Which extra of the package brings what is not installed."""

from __future__ import annotations

EXTRAS = {
    "bluesky": "demo",
    "ophyd": "demo",
    "ophyd_async": "demo",
    "confluent_kafka": "kafka",
    "p4p": "pva",
    "astra": "astra",
    "matplotlib": "learn",
    "safetensors": "learn",
    "torch": "learn",
}
"""The extra that brings a package, where that is not ``service``."""


def advice(error: Exception) -> str | None:
    """Say how to get a package that is not installed; None for any other error."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    if package == "ebl_stream":  # no extra brings a module of ours
        return None
    extra = EXTRAS.get(package, "service")
    return f"{package!r} is not installed: pip install 'ebl-stream[{extra}]'"
