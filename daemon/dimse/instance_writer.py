"""Writes the data set of one C-STORE request into a file while it is received."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from pynetdicom.dimse_messages import C_STORE_RQ

from daemon.dicom.digest import DataSetDigest
from daemon.dicom.part10 import part_10_start
from daemon.dicom.status import CANNOT_UNDERSTAND, INVALID_OBJECT_INSTANCE
from daemon.dicom.uids import is_valid_uid
from daemon.errors import RefusedInstance

WRITE_BACK_SIZE = 1 << 20  # bytes that are received before their write to the disk begins
PART_SUFFIX = ".part"
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL
MAX_OTHER_DATA_SET = 1 << 20  # bytes of a request other than C-STORE, which stays in memory


@dataclass(frozen=True)
class WriterContext:
    """What a writer knows of its association.

    Files go into `folder`; data sets of more than `max_instance` bytes are refused. `transfer_syntax` returns
    that of an accepted presentation context, None for any other. `opened` and `closed` are told of each file.
    """

    folder: Path
    max_instance: int
    transfer_syntax: Callable[[int | None], str | None]
    opened: Callable[[InstanceWriter], None]
    closed: Callable[[InstanceWriter], None]


class InstanceWriter:
    """The Part 10 file that the data set of one C-STORE request is written into while it is received.

    pynetdicom writes each fragment to the file of its DIMSE message if there is one. A failure to write is
    kept for the answer; the rest of the data set is received and dropped, and the association goes on.
    Fragments are hashed and written back while more are received, so that little is left to wait for at the
    end.
    """

    def __init__(self, context: WriterContext, message: Any) -> None:
        self._context = context
        self._message = message
        self._file: FileIO | None = None
        self._data_set_at = 0
        self._size = self._flushed = 0
        self._digest = DataSetDigest()
        self.failure: RefusedInstance | OSError | None = None
        self.began = time.monotonic()
        self.cpu_seconds = 0.0  # of the thread that read it
        self.path = context.folder / f"{secrets.token_hex(16)}{PART_SUFFIX}"

    @property
    def file(self) -> InstanceWriter:
        """What pynetdicom flushes after every fragment: this object, whose `flush` does nothing."""
        return self

    def flush(self) -> None:
        """Do nothing: `write` decides when to write back."""

    @property
    def digest(self) -> str:
        """The digest of the data set so far (`daemon.dicom.digest`)."""
        return str(self._digest)

    def write(self, fragment: bytes | memoryview) -> None:
        """Append a fragment of the data set.

        Raises:
            ValueError: the message may have no data set, or one that does not end.
        """
        self._size += len(fragment)
        if not isinstance(self._message, C_STORE_RQ):
            if self._size > MAX_OTHER_DATA_SET or self._message.context_id is None:
                raise ValueError("a data set came where none belongs")
            self._message.data_set.write(fragment)
        elif self.failure is None:
            try:
                if self._file is None:
                    self._begin()
                assert self._file is not None
                _write_all(self._file, fragment)
                self._digest.update(fragment)
                if self._size > self._context.max_instance:
                    self._file.truncate(0)
                    raise RefusedInstance(
                        CANNOT_UNDERSTAND,
                        f"the data set is larger than listener.max_instance = {self._context.max_instance} bytes",
                    )
                if self._size - self._flushed >= WRITE_BACK_SIZE:
                    self._start_writing_back()
            except (OSError, RefusedInstance) as error:
                self.failure = error
        elif self._size > 2 * self._context.max_instance:
            raise ValueError("a data set without end")

    def _start_writing_back(self) -> None:
        # Linux begins to write these pages to the disk, and keeps in memory those not written yet.
        if hasattr(os, "posix_fadvise"):
            assert self._file is not None
            os.posix_fadvise(self._file.fileno(), self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED)
        self._flushed = self._size

    def _begin(self) -> None:
        self._context.opened(self)
        transfer_syntax_uid = self._context.transfer_syntax(self._message.context_id)
        if transfer_syntax_uid is None:
            raise RefusedInstance(CANNOT_UNDERSTAND, "the C-STORE request came in a presentation context not accepted")
        sop_class_uid, sop_instance_uid = _command_uids(self._message)
        start = part_10_start(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        try:
            descriptor = os.open(self.path, NEW_FILE, 0o600)
        except FileNotFoundError:  # another node took this one for dead and deleted its folder
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, NEW_FILE, 0o600)
        self._file = FileIO(descriptor, "r+")
        self._data_set_at = _write_all(self._file, start)

    def data_set(self) -> BinaryIO:
        """Return the complete file, open at the first byte of the data set.

        Raises:
            RefusedInstance: the request had no data set, or its UIDs are not valid.
            OSError: it could not be written.
        """
        if self.failure is not None:
            raise self.failure
        if self._file is None:
            raise RefusedInstance(CANNOT_UNDERSTAND, "the C-STORE request came without a data set")
        self._file.seek(self._data_set_at)
        return BufferedReader(self._file)

    def discard(self) -> None:
        """Close the file and remove its name; an accepted instance has another name by now."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self.path.unlink(missing_ok=True)
        self._context.closed(self)


def _write_all(file: FileIO, content: bytes | memoryview) -> int:
    size = len(content)
    written = file.write(content)
    while written < size:  # a write may be partial, such as on a disk that is nearly full
        written += file.write(memoryview(content)[written:])
    return size


def _command_uids(message: Any) -> list[str]:
    """Return SOP Class and SOP Instance UID of the command set.

    Invalid UIDs are removed from the command set, or pynetdicom would abort the association.

    Raises:
        RefusedInstance: 0117, one is missing or not a UID.
    """
    command = message.command_set
    texts = {keyword: str(command.get(keyword) or "") for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID")}
    wrong = [keyword for keyword, text in texts.items() if not is_valid_uid(text)]
    for keyword in wrong:
        command.pop(keyword, None)
    if wrong:
        raise RefusedInstance(
            INVALID_OBJECT_INSTANCE,
            f"{' and '.join(wrong)} of the C-STORE request: missing, or not a UID by PS3.5 section 9",
        )
    return list(texts.values())
