"""One thing that `mammod check` looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One checked subject: `good`, or a `text` that says what is wrong and what to do.

    `warning`: the service works, and somebody should look at it all the same.
    """

    subject: str
    good: bool
    text: str
    warning: bool = False

    @property
    def level(self) -> str:
        """ "ok", "warning" or "bad"."""
        if not self.good:
            return "bad"
        return "warning" if self.warning else "ok"
