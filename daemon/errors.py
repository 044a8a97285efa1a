"""Exceptions of the daemon room."""

from config.errors import ConfigurationError, MammodError


class RefusedInstance(MammodError):
    """An instance is not accepted; `status` is the C-STORE response status (PS3.4 B.2.3, PS3.7 C.5)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return RefusedInstance, (self.status, self.reason)  # it may be raised in one process and answered by another


class LesionError(MammodError):
    """A lesion object (SEG or SR) cannot be read as lesions; the message is the quarantine reason."""


class ReportError(MammodError):
    """A report cannot be written from what is known."""


class ArchiveError(MammodError):
    """The archive could not be reached or refused the association; worth trying again."""


class CommitmentRefused(ArchiveError):
    """The archive answered a request for storage commitment with a failure."""


class SpoolUnavailable(MammodError):
    """The bucket of a shared spool cannot be used now: no fault of what is to be written or read."""


class LedgerError(MammodError):
    """The ledger cannot be opened."""


class LedgerTooNew(LedgerError, ConfigurationError):
    """The ledger's schema is that of a newer version; trying again does not help."""


class ClassifierError(MammodError):
    """The classifier process cannot start, or a ROI cannot be classified."""


class ClassifierUnavailable(ClassifierError):
    """The classifier process or its engine cannot be started: no fault of the ROI that waits for it."""


class EngineLost(ClassifierError):
    """What the engine runs on is gone, with what it had in hand: like the death of the classifier process."""


class DeadlyRoi(ClassifierError):
    """A ROI ended the classifier process twice, the second time alone; it is not tried again."""


class DecoderKilled(MammodError):
    """Decoders were killed (SIGKILL) each time they had this object, by the kernel or by somebody."""


class DecoderUnavailable(MammodError):
    """No decoding process can be started: no fault of the object that waits for one."""
