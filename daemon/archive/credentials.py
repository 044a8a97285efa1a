"""TLS towards the archive: the contexts of `archive.tls`, kept between calls."""

from __future__ import annotations

import ssl

from config.errors import ConfigurationError
from config.settings import Archive as ArchiveSettings
from daemon.errors import ArchiveError
from daemon.system.tls import Credentials, Side


class ArchiveCredentials:
    """The credentials of each side of a connection; thread-safe as far as `Credentials` is."""

    def __init__(self) -> None:
        self._credentials: dict[Side, Credentials] = {}

    def load(self, settings: ArchiveSettings, side: Side) -> ssl.SSLContext | None:
        """Return the TLS context of `settings`, None if they ask for no TLS.

        Raises:
            ConfigurationError: `archive.tls` names files that cannot be used.
        """
        if settings.tls is None:
            return None
        known = self._credentials.get(side)
        if known is None or known.settings != settings.tls:
            known = self._credentials[side] = Credentials(settings.tls, "archive.tls", side)
        return known.context()

    def context(self, settings: ArchiveSettings, side: Side) -> ssl.SSLContext | None:
        """Return as `load`.

        Call it for each connection, since certificates are replaced while the service runs.

        Raises:
            ArchiveError: `archive.tls` names files that cannot be used, which must not end the service.
        """
        try:
            return self.load(settings, side)
        except ConfigurationError as error:
            raise ArchiveError(str(error)) from error
