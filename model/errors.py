"""Exceptions of the model room."""

from config.errors import MammodError


class BundleError(MammodError):
    """A bundle is missing, incomplete, damaged (hash), untrained (if forbidden), or unfit for its engine."""


class ImageError(MammodError):
    """An image cannot be decoded, normalised or cut as the bundle's manifest asks."""


class NetworkError(MammodError):
    """A network's name, head or starting weights cannot be used."""


class EngineRefused(MammodError):
    """An engine cannot run the bundle, or its answers differ from TensorFlow's in float32."""
