"""The standard's transfer syntaxes (PS3.5 section 10 and annex A), by how their data sets are encoded."""

from __future__ import annotations

from pydicom.uid import UID_dictionary

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

# The whole data set is deflated (PS3.5 A.5):
# Deflated Explicit VR, JPIP Referenced Deflate, JPIP HTJ2K Referenced Deflate.
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

# MIME, XML and Papyrus encodings have no stream of elements; SMPTE ST 2110 is for real-time video, not
# storage.
_WITHOUT_ELEMENTS = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.20", "1.2.840.10008.1.2.7.")

# Newer than pydicom's dictionary: three of JPEG XL, Deflated Image Frame Compression.
_NEWER_THAN_PYDICOM = (
    "1.2.840.10008.1.2.4.110",
    "1.2.840.10008.1.2.4.111",
    "1.2.840.10008.1.2.4.112",
    "1.2.840.10008.1.2.8.1",
)

# Every standard transfer syntax whose elements can be walked.
# All but those named above are Explicit VR Little Endian (PS3.5 A.4).
TRANSFER_SYNTAXES = frozenset(
    uid
    for uid, entry in UID_dictionary.items()
    if entry[1] == "Transfer Syntax" and not uid.startswith(_WITHOUT_ELEMENTS)
).union(_NEWER_THAN_PYDICOM)
