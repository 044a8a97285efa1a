"""The root of mammod's exceptions; it lives here because every room may import `config`.

Each message names what was wrong, what was expected and what to do. `model.errors` and `daemon.errors` derive from it.
"""


class MammodError(Exception):
    """Anything that mammod refuses or fails at, with a message meant for the operator."""


class ConfigurationError(MammodError):
    """A setting is missing, unknown or out of range; raised before any port is opened."""
