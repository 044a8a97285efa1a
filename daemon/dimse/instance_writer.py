"""The file that the data set of one C-STORE request goes into while it is received."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from io import BufferedReader, FileIO
from typing import TYPE_CHECKING, Any, BinaryIO

from pynetdicom.dimse_messages import C_STORE_RQ

from daemon.dicom.digest import DataSetDigest
from daemon.dicom.part10 import part_10_start
from daemon.dicom.status import CANNOT_UNDERSTAND, INVALID_OBJECT_INSTANCE
from daemon.dicom.uids import is_valid_uid
from daemon.errors import RefusedInstance

if TYPE_CHECKING:
    from daemon.dimse.association import IncomingAssociation

WRITE_BACK = 1 << 20  # bytes
PART_SUFFIX = ".part"
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL
MAX_OTHER_DATA_SET = 1 << 20  # bytes, of a request that is no C-STORE; it stays in memory


class InstanceWriter:
    """The Part 10 file that the data set of one C-STORE request goes into while it is received.

    pynetdicom writes each fragment to its DIMSE message's file where that has one. A failure to write is kept for the
    answer, and the rest of the data set is received and dropped: the association goes on. While more comes, what lies here is
    hashed and on its way to the disk, so that little is left to wait for at the end.
    """

    def __init__(self, association: IncomingAssociation, message: Any) -> None:
        self._association = association
        self._message = message
        self._file: FileIO | None = None
        self._data_set_at = 0
        self._size = self._flushed = 0
        self._digest = DataSetDigest()
        self.failure: RefusedInstance | OSError | None = None
        self.began = time.monotonic()
        self.cpu_seconds = 0.0  # of the thread that read it
        self.path = association.folder / f"{secrets.token_hex(16)}{PART_SUFFIX}"

    @property
    def file(self) -> InstanceWriter:
        """What pynetdicom flushes after every fragment; here the buffer decides."""
        return self

    def flush(self) -> None:
        pass

    @property
    def digest(self) -> str:
        """Of the data set."""
        return str(self._digest)

    def write(self, fragment: bytes | memoryview) -> None:
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
                if self._size > self._association.acceptor_of.max_instance:
                    self._file.truncate(0)
                    raise RefusedInstance(
                        CANNOT_UNDERSTAND,
                        f"the data set is larger than listener.max_instance = {self._association.acceptor_of.max_instance} bytes",
                    )
                if self._size - self._flushed >= WRITE_BACK:
                    self._start_writing_back()
            except (OSError, RefusedInstance) as error:
                self.failure = error
        elif self._size > 2 * self._association.acceptor_of.max_instance:
            raise ValueError("a data set without end")

    def _start_writing_back(self) -> None:
        # Linux begins to write such pages to the disk, and keeps those that it has to write.
        if hasattr(os, "posix_fadvise"):
            assert self._file is not None
            os.posix_fadvise(self._file.fileno(), self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED)
        self._flushed = self._size

    def _begin(self) -> None:
        message, association = self._message, self._association
        association.files.add(self)
        association.last_active = time.monotonic()
        context = association._accepted_cx.get(message.context_id)
        if context is None:
            raise RefusedInstance(CANNOT_UNDERSTAND, "the C-STORE request came in a presentation context not accepted")
        sop_class_uid, sop_instance_uid = _command_uids(message)
        start = part_10_start(sop_class_uid, sop_instance_uid, str(context.transfer_syntax[0]))
        try:
            descriptor = os.open(self.path, NEW_FILE, 0o600)
        except FileNotFoundError:  # the folder went with what another node took for a dead one's
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, NEW_FILE, 0o600)
        self._file = FileIO(descriptor, "r+")
        self._data_set_at = _write_all(self._file, start)

    def data_set(self) -> BinaryIO:
        """The complete file, open and standing at the first byte of the data set.

        Raises:
            RefusedInstance: the request had no data set, or its UIDs are no UIDs.
            OSError: it could not be written.
        """
        if self.failure is not None:
            raise self.failure
        if self._file is None:
            raise RefusedInstance(CANNOT_UNDERSTAND, "the C-STORE request came without a data set")
        self._file.seek(self._data_set_at)
        return BufferedReader(self._file)

    def discard(self) -> None:
        """Close the file and remove its name; what was accepted has a name of its own by now."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self.path.unlink(missing_ok=True)
        self._association.files.discard(self)
        self._association.last_active = time.monotonic()


def _write_all(file: FileIO, content: bytes | memoryview) -> int:
    size = len(content)
    written = file.write(content)
    while written < size:  # such as on a disk that is nearly full
        written += file.write(memoryview(content)[written:])
    return size


def _command_uids(message: Any) -> list[str]:
    """SOP Class and Instance UID of the command set.

    What is no UID is taken out of the command set, or pynetdicom would end the association over it.

    Raises:
        RefusedInstance: 0117, one is missing or is no UID.
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
