"""One result of `mammod check`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One checked subject; unless `good`, `text` says what is wrong and what to do.

    `warning`: the service works, but somebody should look at it.
    """

    subject: str
    good: bool
    text: str
    warning: bool = False

    @property
    def level(self) -> str:
        """Return "ok", "warning" or "bad"."""
        if not self.good:
            return "bad"
        return "warning" if self.warning else "ok"
