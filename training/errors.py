"""Exceptions of the training room."""

from config.errors import MammodError


class DataError(MammodError):
    """A data set, a table or a crops cache cannot be used as a whole: what was wrong, what was expected, what to do."""


class RunError(MammodError):
    """A training run cannot start, go on or be read: a folder of another run, a loss that is not a number."""
