"""Networks, ROI geometry and normalisation, the bundle, and inference engines. Never imports `daemon`."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Keras takes seconds to import and does not belong in the daemon's own process: imported only on demand.
    if name == "build_network":
        from model.networks import build_network

        return build_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
