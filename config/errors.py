"""The base of mammod's exceptions, here because every package may import `config`.

Each message names what was wrong, what was expected and what to do. `model.errors` and `daemon.errors` derive
from it.
"""


class MammodError(Exception):
    """A failure or refusal of mammod, with a message for the operator."""


class ConfigurationError(MammodError):
    """A setting is missing, unknown or out of range; raised before any port is opened."""
