"""Define the exceptions of the training room."""

from config.errors import MammodError


class DataError(MammodError):
    """Report a data set, table or crops cache that is unusable as a whole.

    The message says what was wrong, what was expected and what to do.
    """


class RunError(MammodError):
    """Report a training run that cannot start, resume or be read.

    Examples are a folder of another run, or a loss that is not a number.
    """
