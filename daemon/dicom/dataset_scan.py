"""Walks the encoding of a received data set (PS3.5 sections 7 and A) from its first to its last byte, reading no values.

A data set that was cut, is not DICOM or names no SOP instance is refused here, before anything is stored. Values are
skipped by seeking, so the price follows the number of elements and not the number of pixels.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pydicom.datadict import DicomDictionary
from pydicom.uid import UID_dictionary

from daemon.dicom.uids import is_valid_uid
from daemon.errors import RefusedInstance

# C-STORE response statuses (PS3.4 table B.2-1; 0117H is PS3.7 C.5.8).
INVALID_OBJECT_INSTANCE = 0x0117
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
# Deflated Explicit VR, JPIP Referenced Deflate, JPIP HTJ2K Referenced Deflate: the whole data set is deflated (PS3.5 A.5).
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
# MIME, XML and Papyrus encodings have no element stream; those of SMPTE ST 2110 are for real-time video, not for storage.
_NOT_ELEMENTS = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.20", "1.2.840.10008.1.2.7.")

# Younger than pydicom's dictionary: three of JPEG XL, Deflated Image Frame Compression.
_YOUNG = (
    "1.2.840.10008.1.2.4.110",
    "1.2.840.10008.1.2.4.111",
    "1.2.840.10008.1.2.4.112",
    "1.2.840.10008.1.2.8.1",
)

# Every standard transfer syntax that can be walked; all but the ones named above are Explicit VR little endian (PS3.5 A.4).
TRANSFER_SYNTAXES = frozenset(
    uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax" and not uid.startswith(_NOT_ELEMENTS)
).union(_YOUNG)

MAX_DEPTH = 64  # sequences within sequences; content trees of real reports stay below 20
MAX_ELEMENTS = 500_000  # elements and items of all levels; each that is read costs some 300 bytes of memory, or 600
MAX_READ = 256 << 20  # bytes outside of the pixel data: all of it is read into memory; a report has some megabytes
LARGE = 20_000  # elements, or kilobytes outside of the pixel data; what is large is read one at a time
MAX_INFLATED = (
    512 << 20
)  # bytes: who reads a deflated data set has to inflate it whole; a bomb of 512 kB inflates to this
MAX_AFTER_DEFLATED = 9  # bytes: a byte of padding, and the gzip trailer that some writers leave

_SOP_CLASS_UID = 0x0008_0016
_SOP_INSTANCE_UID = 0x0008_0018
_STUDY_INSTANCE_UID = 0x0020_000D
_SERIES_INSTANCE_UID = 0x0020_000E
_WANTED = frozenset({_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID})
_WANTED_LENGTH = 66  # bytes read of a wanted value: more than a UID may have, so a longer one is seen to be too long

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_PIXEL_DATA = 0x7FE0_0010
_PIXELS = frozenset({_PIXEL_DATA, 0x7FE0_0008, 0x7FE0_0009})  # on the outermost level
_UNDEFINED = 0xFFFF_FFFF
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
# PS3.5 7.1 and 7.8.1: groups that no data set may hold (command, file meta information, DICOMDIR-only and never-used ones).
_FORBIDDEN_GROUPS = frozenset({0x0000, 0x0001, 0x0002, 0x0003, 0x0005, 0x0006, 0x0007, 0xFFFF})


@dataclass(frozen=True)
class DataSetFacts:
    """What a data set says it is; the UIDs of class and instance are valid by PS3.5 section 9, the others as they stand there."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str = ""
    series_uid: str = ""
    is_large: bool = False  # to read it takes long, or much memory


def scan_data_set(file: BinaryIO, transfer_syntax_uid: str) -> DataSetFacts:
    """Walk the data set that begins where `file` stands and ends where it ends.

    Elements out of order and values of odd length pass, as other software lets them pass. Memory stays bounded
    whatever the bytes are.

    Raises:
        RefusedInstance: C000 the bytes are no data set in this transfer syntax, or end too early (at which byte), or hold
            more elements, levels or bytes outside of the pixel data than are read into memory; A900 it names no SOP
            Class or SOP Instance; 0117 one of the two is not a UID.
    """
    reader: _Reader = _Inflated(file) if transfer_syntax_uid in DEFLATED else _Stored(file)
    values, elements, read = _walk(reader, _form(transfer_syntax_uid))
    if isinstance(reader, _Inflated):
        read = reader.position
    return DataSetFacts(
        sop_class_uid=_uid(values, _SOP_CLASS_UID, "SOP Class UID (0008,0016)"),
        sop_instance_uid=_uid(values, _SOP_INSTANCE_UID, "SOP Instance UID (0008,0018)"),
        study_uid=_text(values, _STUDY_INSTANCE_UID),
        series_uid=_text(values, _SERIES_INSTANCE_UID),
        is_large=elements + read // 1024 > LARGE,
    )


def _text(values: dict[int, bytes], tag: int) -> str:
    return values.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")


def _uid(values: dict[int, bytes], tag: int, name: str) -> str:
    text = _text(values, tag)
    if not text:
        raise RefusedInstance(DOES_NOT_MATCH_SOP_CLASS, f"the data set has no {name}; a composite object must have one")
    if not is_valid_uid(text):
        raise RefusedInstance(INVALID_OBJECT_INSTANCE, f"the data set's {name} is not a UID by PS3.5 section 9")
    return text


# --- bytes, forward only ---------------------------------------------------------------------------------------------


class _CutError(Exception):
    """The bytes end, after so many, before what was begun is complete."""


class _Reader(Protocol):
    position: int  # bytes (inflated ones) from the start of the data set

    def read(self, count: int) -> bytes: ...
    def skip(self, count: int) -> None: ...
    def at_end(self) -> bool: ...


class _Stored:
    """A data set that lies in the file as it is."""

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0
        self._file = file
        start = file.tell()
        self._size = file.seek(0, os.SEEK_END) - start
        file.seek(start)

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self.position += count
        if len(data) < count:
            raise _CutError(self._size)
        return data

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > self._size:
            raise _CutError(self._size)
        self._file.seek(count, os.SEEK_CUR)

    def at_end(self) -> bool:
        return self.position >= self._size


class _Inflated:
    """A deflated data set (RFC 1951, no header), inflated block by block and forgotten at once."""

    BLOCK = 1 << 16  # bytes

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0
        self._file = file
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._block = b""
        self._used = 0

    def read(self, count: int) -> bytes:
        parts = []
        while count:
            if self._used == len(self._block) and not self._next_block():
                raise _CutError(self.position)
            part = self._block[self._used : self._used + count]
            parts.append(part)
            self._advance(len(part))
            count -= len(part)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        while count:
            if self._used == len(self._block) and not self._next_block():
                raise _CutError(self.position)
            step = min(count, len(self._block) - self._used)
            self._advance(step)
            count -= step

    def at_end(self) -> bool:
        return self._used == len(self._block) and not self._next_block()

    def _advance(self, count: int) -> None:
        self._used += count
        self.position += count
        if self.position > MAX_INFLATED:
            raise RefusedInstance(
                CANNOT_UNDERSTAND, f"the deflated data set inflates to more than {MAX_INFLATED} bytes"
            )

    def _next_block(self) -> bool:
        """Inflate on; False at the end of the deflate stream, which only a little may follow."""
        try:
            while not self._inflate.eof:
                data = self._inflate.unconsumed_tail or self._file.read(self.BLOCK)
                self._block, self._used = self._inflate.decompress(data, self.BLOCK), 0
                if self._block:
                    return True
                if not data:
                    raise _CutError(self.position)
        except zlib.error as error:
            raise RefusedInstance(
                CANNOT_UNDERSTAND,
                f"the data set cannot be inflated after byte {self.position}: it is damaged or not deflated",
            ) from error
        if len(self._inflate.unused_data + self._file.read(MAX_AFTER_DEFLATED + 1)) > MAX_AFTER_DEFLATED:
            raise RefusedInstance(CANNOT_UNDERSTAND, "there are bytes after the end of the deflated data set")
        return False


# --- the walk --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """How elements are written."""

    explicit: bool
    order: str  # struct's byte order character


_IMPLICIT = _Form(explicit=False, order="<")
_EXPLICIT = _Form(explicit=True, order="<")
_EXPLICIT_BIG = _Form(explicit=True, order=">")


def _form(transfer_syntax_uid: str) -> _Form:
    if transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN:
        return _IMPLICIT
    return _EXPLICIT_BIG if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else _EXPLICIT


class _Level:
    """Something that was opened and not yet closed. `end` is None where a delimiter (or the last byte) closes it."""

    __slots__ = ("closer", "end", "form", "holds_elements", "is_pixels")

    def __init__(self, form: _Form, end: int | None, closer: int | None, is_pixels: bool = False) -> None:
        self.form = form
        self.end = end
        self.closer = closer  # the delimiter that may close it
        self.holds_elements = closer != _SEQUENCE_END
        self.is_pixels = is_pixels  # a sequence of fragments, not of items


def _walk(reader: _Reader, form: _Form) -> tuple[dict[int, bytes], int, int]:
    """The wanted values of the outermost level, the number of elements and items, the bytes outside of the pixel data.

    One stack and no recursion: depth costs memory, never the interpreter.
    """
    levels = [_Level(form, None, None)]
    values: dict[int, bytes] = {}
    seen: set[int] = set()
    tag = outermost = elements = read = 0
    try:
        while True:
            level = levels[-1]
            if level.end is not None and reader.position >= level.end:
                if reader.position > level.end:
                    raise _not_a_data_set(reader.position, tag, "an element runs over the end of its item or sequence")
                levels.pop()
                continue
            if len(levels) == 1 and reader.at_end():
                if not seen:
                    raise _CutError(0)
                return values, elements, read
            at = reader.position
            tag, vr, length = _element(reader, level)
            elements += 1
            if elements > MAX_ELEMENTS:
                raise RefusedInstance(
                    CANNOT_UNDERSTAND, f"the data set has more than {MAX_ELEMENTS} elements and items"
                )
            if tag == level.closer and level.end is None:
                levels.pop()
            elif not level.holds_elements:
                _open_item(reader, levels, at, tag, length)
            elif tag >> 16 in _FORBIDDEN_GROUPS or tag >> 16 == 0xFFFE:
                raise _not_a_data_set(at, tag, "no data set may hold this tag here")
            else:
                if len(levels) == 1:
                    outermost = tag
                    if tag in seen:
                        raise _not_a_data_set(at, tag, "the element comes twice")
                    seen.add(tag)
                if length == _UNDEFINED or vr == b"SQ" or (vr is None and tag in _SEQUENCE_TAGS):
                    _open_sequence(reader, levels, at, tag, vr, length)
                elif len(levels) == 1 and tag in _WANTED:
                    values[tag] = reader.read(min(length, _WANTED_LENGTH))
                    reader.skip(length - len(values[tag]))
                else:
                    reader.skip(length)
            if not (outermost in _PIXELS and (len(levels) > 1 or tag == outermost)):
                read += reader.position - at
                if read > MAX_READ:
                    raise RefusedInstance(
                        CANNOT_UNDERSTAND, f"the data set has more than {MAX_READ} bytes beside its pixels"
                    )
    except _CutError as error:
        raise RefusedInstance(
            CANNOT_UNDERSTAND,
            f"the data set ends at byte {error}, in or after {_name(outermost)}; it was cut, send it whole",
        ) from None


def _element(reader: _Reader, level: _Level) -> tuple[int, bytes | None, int]:
    """Tag, VR (None where it is not written) and length of the next element, item or delimiter (PS3.5 7.1, 7.5)."""
    at = reader.position
    header = reader.read(8)
    order = level.form.order
    group, element, length = struct.unpack(order + "HHI", header)
    tag = group << 16 | element
    if group == 0xFFFE or not level.form.explicit or not level.holds_elements:
        return tag, None, length
    vr = header[4:6]
    if vr in _LONG_VRS:
        (length,) = struct.unpack(order + "I", reader.read(4))
    elif vr in _SHORT_VRS:
        (length,) = struct.unpack(order + "H", header[6:])
    else:
        raise _not_a_data_set(at, tag, "its value representation does not exist")
    return tag, vr, length


def _open_item(reader: _Reader, levels: list[_Level], at: int, tag: int, length: int) -> None:
    level = levels[-1]
    if tag != _ITEM:
        raise _not_a_data_set(at, tag, "an item was expected")
    if level.is_pixels:
        if length == _UNDEFINED:
            raise _not_a_data_set(at, tag, "a fragment of pixel data must have a length")
        reader.skip(length)
    else:
        levels.append(_Level(level.form, None if length == _UNDEFINED else reader.position + length, _ITEM_END))


def _open_sequence(reader: _Reader, levels: list[_Level], at: int, tag: int, vr: bytes | None, length: int) -> None:
    is_pixels = tag == _PIXEL_DATA and vr in (b"OB", b"OW", b"UN")
    if not is_pixels and vr not in (b"SQ", b"UN", None):
        raise _not_a_data_set(at, tag, f"a value of {vr.decode()} must have a length")
    if len(levels) > 2 * MAX_DEPTH:  # a sequence and its item are a level each
        raise _not_a_data_set(at, tag, f"sequences are nested more than {MAX_DEPTH} deep")
    # The content of an UN of undefined length is Implicit VR little endian, whatever surrounds it (PS3.5 6.2.2, CP-246).
    form = _IMPLICIT if vr == b"UN" and not is_pixels else levels[-1].form
    end = None if length == _UNDEFINED else reader.position + length
    levels.append(_Level(form, end, _SEQUENCE_END, is_pixels))


def _not_a_data_set(at: int, tag: int, why: str) -> RefusedInstance:
    return RefusedInstance(
        CANNOT_UNDERSTAND, f"the bytes are not a data set in this transfer syntax: {_name(tag)} at byte {at}: {why}"
    )


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
