"""Writes `docs/reference/conformance-statement.md` (PS3.2) from the code: `python -m tests.docs.conformance`.

It lies among the tests because the attributes of each object are read off the objects that the tests make.
"""

# ruff: noqa: E501 - the lines are those of the document

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_description, dictionary_has_tag
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pynetdicom import sop_class

from config import settings
from daemon.archive import association, query_retrieve, wado_rs
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, MANUFACTURER, MODEL_NAME
from daemon.dicom.sop_classes import storage_classes
from daemon.dicom.status import (
    CANNOT_UNDERSTAND,
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
    INVALID_OBJECT_INSTANCE,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
)
from daemon.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from daemon.dimse.presentation_contexts import supported_contexts
from daemon.reports.registry import KINDS
from daemon.system import tls
from tests.daemon.reports.test_sc import captures, result
from tests.docs.prose import wrapped
from tests.support import report_objects as b
from tests.support.report_cases import read

FILE = Path(__file__).parents[2] / "docs" / "reference" / "conformance-statement.md"
LISTENER, ARCHIVE = settings.Listener(), settings.Archive()


def statement() -> str:
    """The whole document."""
    parts = [_HEAD, *_overview(), *_receiving(), *_sending(), *_web(), *_security(), *_objects(), *_codes(), *_REST]
    return wrapped("\n".join(parts))


def examples() -> dict[str, Dataset]:
    """One object of each kind of report; a kind without one here is an error."""
    image = b.mammogram()
    made = {
        "tid1500": read("polyline"),
        "mammo-cad-sr": read("polyline", "mammo-cad-sr"),
        "gsps": b.reread(b.reports("gsps", [b.result(b.lesion(image))], image)[0]),
        "sc": b.reread(captures([result(image)], image)[0]),
    }
    assert made.keys() == KINDS.keys(), "name an example of every kind of report"
    return made


_HEAD = f"""# DICOM Conformance Statement

In the form of PS3.2. Made from the code by `python -m tests.docs.conformance`; a test fails if the two differ. Configurable
values are given with their defaults; every setting is explained in [config/mammod.toml](../../config/mammod.toml).

**Research software. Not a medical device.** mammod receives mammograms and objects that mark lesions on them (SEG, SR, presentation states), classifies each
marked lesion and stores reports in an archive. What a report says: [report-content.md](report-content.md).

Implementation Class UID `{IMPLEMENTATION_CLASS_UID}`; Implementation Version Name `MAMMOD_` and the version. Manufacturer
`{MANUFACTURER}`, Manufacturer's Model Name `{MODEL_NAME}`."""


def _overview() -> list[str]:
    classes = {kind: str(example.SOPClassUID) for kind, example in examples().items()}
    rows = [
        ("Verification", "yes", "yes"),
        *((_name(uid), "yes", "yes") for uid in dict.fromkeys(classes.values())),
        (f"every other storage class of the standard ({len(storage_classes())} in all)", "no", "yes"),
        (_name(query_retrieve.FIND), "yes", "no"),
        (_name(query_retrieve.GET), "yes", "no"),
        (_name(query_retrieve.MOVE), "yes", "no"),
        (_name(sop_class.StorageCommitmentPushModel), "yes", "no"),
        ("STOW-RS (Store Transaction, Studies Service)", "user agent", "no"),
        ("QIDO-RS and WADO-RS (Search, Retrieve Transaction, Studies Service)", "user agent", "no"),
    ]
    return ["", "## 1 Overview", "", *_table(("Service", "SCU", "SCP"), rows)]


def _receiving() -> list[str]:
    contexts = supported_contexts()
    abstract = [str(context.abstract_syntax) for context in contexts]
    statuses = [
        (SUCCESS, "the instance and its ledger row are on disk, or it was already here"),
        (PROCESSING_FAILURE, "an unforeseen fault; the log has its kind and place"),
        (INVALID_OBJECT_INSTANCE, "a UID is missing or is none"),
        (SOP_CLASS_NOT_SUPPORTED, "the request's SOP Class is not that of its presentation context"),
        (OUT_OF_RESOURCES, "too little room on the disk; send again later"),
        (DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "UIDs in the data set and in the request differ"),
        (CANNOT_UNDERSTAND, "the data set is not whole, or cannot be read"),
    ]
    limits = [
        ("AE title", f"`{LISTENER.ae_title}`", "`listener.ae_title`"),
        ("Port", LISTENER.port, "`listener.port`"),
        ("Associations at a time", LISTENER.max_associations, "`listener.max_associations`"),
        ("of one address", LISTENER.max_associations_per_address, "`listener.max_associations_per_address`"),
        ("Maximum PDU, bytes", LISTENER.max_pdu, "`listener.max_pdu`"),
        ("Largest instance, bytes", int(LISTENER.max_instance), "`listener.max_instance`"),
        ("Silence until an abort, s", LISTENER.network_timeout_s, "`listener.network_timeout_s`"),
        ("Called AE title must be ours", LISTENER.called_ae_required, "`listener.called_ae_required`"),
        (
            "Callers",
            "anybody" if not LISTENER.peers else "named",
            "`listener.peers`: AE titles, networks, what each may do",
        ),
    ]
    return [
        "",
        "## 2 The receiving application entity (SCP)",
        "",
        *_table(("Association policy", "Default", "Setting"), limits),
        "",
        "Each presentation context is accepted in the first transfer syntax that the caller offers, if that is compressed; among uncompressed ones",
        "Explicit VR Little Endian is preferred to Implicit VR Little Endian. An instance is kept in the syntax in which it arrived. No asynchronous",
        "operations window, no user identity negotiation. The SCP role is offered to the archive for storage commitment results.",
        "",
        f"### 2.1 Abstract syntaxes ({len(abstract)})",
        "",
        *_table(("Name", "UID"), [(_name(uid), f"`{uid}`") for uid in abstract]),
        "",
        "### 2.2 Transfer syntaxes, for each of them",
        "",
        *_table(("Name", "UID"), [(_name(uid), f"`{uid}`") for uid in sorted(TRANSFER_SYNTAXES)]),
        "",
        "An image that no installed decoder reads (such as 12-bit JPEG Extended) is accepted, and its job is quarantined with the reason.",
        "",
        "### 2.3 C-STORE response statuses",
        "",
        *_table(("Status", "When"), [(f"`{status:04X}`", meaning) for status, meaning in statuses]),
        "",
        "A refused instance never ends the association.",
    ]


def _sending() -> list[str]:
    contexts, _ = query_retrieve.get_contexts()
    rows: dict[str, list[str]] = {}
    for context in contexts:
        if context.abstract_syntax != query_retrieve.GET:
            rows.setdefault(_name(context.abstract_syntax), []).append(
                " or ".join(_name(uid) for uid in context.transfer_syntax)
            )
    return [
        "",
        "## 3 The sending application entity (SCU)",
        "",
        f"Calls `archive.host`, port {ARCHIVE.port} by default, as the AE title of the receiving entity; the called AE title is",
        f"`archive.ae_title` (`{ARCHIVE.ae_title}`). Maximum PDU {association.MAX_PDU} bytes; an answer is waited for {ARCHIVE.timeout_s:g} s"
        " (`archive.timeout_s`).",
        "",
        "- **C-STORE** of each report: its class in Explicit VR Little Endian, and as a second choice Implicit VR Little Endian. Statuses 0000,",
        "  Bxxx and 0111 count as stored; A7xx and 0213 are retried, first after "
        f"{ARCHIVE.retry_first_s:g} s, then after twice as long, up to {ARCHIVE.retry_max_s:g} s; every other status is a permanent failure.",
        f"- **Storage commitment** (`archive.commitment`, default {str(ARCHIVE.commitment).lower()}): N-ACTION after storing; the answer is accepted on",
        "  the same or on a new association.",
        f"- **C-FIND**, then **C-GET** or **C-MOVE** (Study Root, `archive.retrieve`, default `{ARCHIVE.retrieve}`) of single instances that a",
        "  lesion object names and that did not arrive. A C-MOVE goes to the receiving entity.",
        "- **C-ECHO** by `mammod check`.",
        "",
        "### 3.1 What C-GET takes",
        "",
        *_table(("Storage class", "Transfer syntaxes, one context each"), [(k, "; ".join(v)) for k, v in rows.items()]),
    ]


def _web() -> list[str]:
    return [
        "",
        "## 4 DICOMweb",
        "",
        "User agent of the Store transaction (PS3.18 10.5) if `archive.stow_url` is set: one request per report, `multipart/related` with",
        "one part `application/dicom`; the answer is requested in DICOM JSON and read as JSON or XML. A report counts as stored if the answer",
        "names it in Referenced SOP Sequence, with or without a warning. A bearer token (`archive.dicomweb_token_file`) is sent by https only. A status in Failed SOP Sequence is treated as a C-STORE status; HTTP 401, 403, 404,",
        "408, 429 and 5xx are retried; other 4xx are permanent failures.",
        "",
        'User agent of the Search transaction (PS3.18 10.6) and the Retrieve transaction (10.4) where `archive.retrieve = "dicomweb"`, at',
        "`archive.dicomweb_url` (or `archive.stow_url`): each instance that a lesion object names and that did not arrive is searched by `SOPInstanceUID` in `/instances`,",
        "then in `/studies/{study}/instances` of the lesion object's study, in DICOM JSON, and retrieved from",
        f"`/studies/{{study}}/series/{{series}}/instances/{{instance}}` with `Accept: {wado_rs.INSTANCE}`. It is accepted by the rules of C-STORE, in every",
        "storage class and transfer syntax of 2, up to `listener.max_instance` bytes. Failures are retried as with C-GET. mammod serves no DICOMweb itself.",
    ]


def _security() -> list[str]:
    return [
        "",
        "## 5 Security",
        "",
        "BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile (PS3.15 B.12) where `listener.tls` or `archive.tls` are set: TLS 1.2 or",
        "1.3, both sides present a certificate. Cipher suites of TLS 1.2:",
        "",
        *(f"- `{suite}`" for suite in tls.SUITES),
        "",
        "DICOMweb by https also compares the host name with the certificate; without `archive.tls` it trusts the system's CAs.",
        "No de-identification. The audit trail is described in `config/mammod.toml`.",
    ]


def _objects() -> list[str]:
    lines = [
        "",
        "## 6 Objects that mammod creates",
        "",
        "By `[reports] kinds`. Patient and study attributes are the image's, byte for byte. The attributes below are from an example (an ordinary",
        "mammogram with one lesion, a trained bundle; `>` is within the sequence above it, whose first item is shown); the content tree of an",
        "SR is described in [report-content.md](report-content.md).",
    ]
    for number, (kind, example) in enumerate(examples().items(), start=1):
        rows = list(_attributes(example))
        lines += [
            "",
            f"### 6.{number} {_name(example.SOPClassUID)} (`{kind}`)",
            "",
            *_table(("Tag", "Attribute", "VR", "Value"), rows),
        ]
    return lines


def _attributes(item: Dataset, depth: int = 0) -> Iterator[tuple[str, str, str, str]]:
    """Rows of a data set; below a sequence those of its first item, but for the content tree."""
    for element in item:
        assert not element.tag.is_private, "the statement says that there is none"
        if not dictionary_has_tag(element.tag):
            continue
        value = ""
        if element.VR in ("CS", "LO", "UI", "US", "IS", "SH") and (
            element.tag.group in (0x0008, 0x0018, 0x0028, 0x0040, 0x0070)
        ):
            value = _cell(element) if element.keyword not in _OF_THE_CASE else "of the case"
        elif element.VR == "SQ":
            value = f"{len(element.value)} item" + ("s" if len(element.value) != 1 else "")
        tag = f"({element.tag.group:04X},{element.tag.elem:04X})"
        yield tag, f"{'>' * depth}{dictionary_description(element.tag)}", element.VR, value
        if element.VR == "SQ" and element.value and element.keyword != "ContentSequence":
            yield from _attributes(element.value[0], depth + 1)


_OF_THE_CASE = {
    "AccessionNumber", "StudyID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SoftwareVersions",
    "PatientID", "IssuerOfPatientID", "ReferencedSOPInstanceUID", "DeviceUID",
}  # fmt: skip


def _codes() -> list[str]:
    kinds: dict[tuple[str, str, str], set[str]] = {}
    for kind, example in examples().items():
        for element in example.iterall():
            if element.VR == "SQ" and element.keyword.endswith("CodeSequence"):
                for item in element.value:
                    value = item.get("CodeValue")
                    if value:
                        code = (str(item.CodingSchemeDesignator), str(value), str(item.CodeMeaning))
                        kinds.setdefault(code, set()).add(kind)
    rows = [
        (scheme, f"`{value}`", meaning, ", ".join(sorted(used)))
        for (scheme, value, meaning), used in sorted(kinds.items())
    ]
    return [
        "",
        "## 7 Codes",
        "",
        "Of the same examples; findings, sites, views and procedures come from the lesion object and the image.",
        "",
        *_table(("Scheme", "Value", "Meaning", "In"), rows),
        "",
    ]


_REST = [
    "## 8 Character sets, media, extensions",
    "",
    "- **Character sets.** Any Specific Character Set is accepted, and the data set is kept unchanged. A report has that of its image, and the",
    "  patient's and the study's attributes with the same bytes; characters of the lesion object that it cannot encode become question marks.",
    "- **Media.** None is read or written. `mammod classify` reads and writes DICOM Part 10 files in folders, without a DICOMDIR.",
    "- **Extensions.** None: no private attribute, SOP class, transfer syntax or code.",
    "- **Configuration.** A text file and the environment; `mammod check` tests it. Addresses are fixed there; none comes from a server.",
    "",
]

# Younger than pydicom's dictionary.
_NAMES = {
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.1": "Waveform Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.2": "Waveform Acquisition Presentation State Storage",
}


def _name(uid: object) -> str:
    return _NAMES.get(str(uid)) or UID(str(uid)).name


def _cell(element: DataElement) -> str:
    if element.VR == "UI":
        return _name(element.value)
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    return "\\\\".join(map(str, values)).replace("|", "\\|")


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


if __name__ == "__main__":
    FILE.write_text(statement(), encoding="utf-8")
