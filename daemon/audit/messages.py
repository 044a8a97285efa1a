"""Audit messages of DICOM PS3.15 A.5 in XML: Application Activity, Instances Transferred, Security Alert.

They identify studies by Study Instance UID and carry nothing of the patient: design invariant 6 holds for the
audit trail, too. The Patient participant that table A.5.3.7-1 requires is "withheld"; the archive knows the
patient.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from xml.etree.ElementTree import Element, SubElement, tostring

WITHHELD = "withheld"
NO_STUDY = "none"  # for instances that belong to no study, such as colour palettes
APPLICATION_SERVER = "4"  # PS3.15 table A.5.1.2.1


class EventOutcome(IntEnum):
    """Event outcome indicator (PS3.15 table A.5.2-1)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8


class Action(StrEnum):
    """Event action code of a transfer (PS3.15 table A.5.3.7-1): what the receiver held before."""

    NEW = "C"
    KNOWN = "R"  # also if it is not known what the receiver held
    CHANGED = "U"


@dataclass(frozen=True)
class Code:
    """A coded concept (PS3.3 8.1): value, coding scheme designator and meaning."""

    value: str
    scheme: str
    meaning: str


APPLICATION_ACTIVITY = Code("110100", "DCM", "Application Activity")
APPLICATION_START = Code("110120", "DCM", "Application Start")
APPLICATION_STOP = Code("110121", "DCM", "Application Stop")
INSTANCES_TRANSFERRED = Code("110104", "DCM", "DICOM Instances Transferred")
SECURITY_ALERT = Code("110113", "DCM", "Security Alert")
NODE_AUTHENTICATION = Code("110126", "DCM", "Node Authentication")
USE_OF_RESTRICTED_FUNCTION = Code("110132", "DCM", "Use of Restricted Function")
_APPLICATION = Code("110150", "DCM", "Application")
_DESTINATION = Code("110152", "DCM", "Destination Role ID")
_SOURCE = Code("110153", "DCM", "Source Role ID")
_STUDY_UID = Code("110180", "DCM", "Study Instance UID")
_NODE_ID = Code("110182", "DCM", "Node ID")
_PATIENT_NUMBER = Code("2", "RFC-3881", "Patient Number")


@dataclass(frozen=True)
class NetworkNode:
    """A participant on the network."""

    ae_title: str  # "" if unknown
    address: str  # or host name
    process: int | None = None  # process id, of our own only


@dataclass(frozen=True)
class Source:
    """The service that writes the audit trail, and the name of its site, if it has one."""

    node: NetworkNode
    site: str | None = None


@dataclass(frozen=True)
class Message:
    """One audit message."""

    xml: bytes  # in UTF-8
    outcome: EventOutcome  # decides the syslog severity
    at: datetime


def own_node(ae_title: str, host: str) -> NetworkNode:
    """Return this process as a participant."""
    return NetworkNode(ae_title, host, os.getpid())


def application_activity(source: Source, what: Code) -> Message:
    """Return the message of A.5.3.1; `what` is APPLICATION_START or APPLICATION_STOP."""
    at = datetime.now(UTC)
    root = _event(APPLICATION_ACTIVITY, "E", EventOutcome.SUCCESS, at, what)
    _participant(root, source.node, requestor=False, role=_APPLICATION)
    _source(root, source)
    return Message(tostring(root, "utf-8"), EventOutcome.SUCCESS, at)


def instances_transferred(
    source: Source,
    *,
    sender: NetworkNode,
    receiver: NetworkNode,
    requestor: NetworkNode,
    study_uid: str,
    classes: Mapping[str, int],
    action: Action,
    failure: str = "",
) -> Message:
    """Return the message of A.5.3.7: instances of one study were sent from `sender` to `receiver`.

    `classes` counts them by SOP Class UID. `failure` is the reason if they were not transferred.
    """
    at = datetime.now(UTC)
    outcome = EventOutcome.SERIOUS_FAILURE if failure else EventOutcome.SUCCESS
    root = _event(INSTANCES_TRANSFERRED, action.value, outcome, at, description=failure)
    _participant(root, sender, requestor=requestor == sender, role=_SOURCE)
    _participant(root, receiver, requestor=requestor == receiver, role=_DESTINATION)
    _source(root, source)
    study = _object(root, study_uid or NO_STUDY, "2", "3", _STUDY_UID, "study")
    description = SubElement(study, "ParticipantObjectDescription")
    for uid, count in sorted(classes.items()):
        SubElement(description, "SOPClass", UID=uid, NumberOfInstances=str(count))
    _object(root, WITHHELD, "1", "1", _PATIENT_NUMBER, WITHHELD)
    return Message(tostring(root, "utf-8"), outcome, at)


def security_alert(source: Source, kind: Code, *, caller: NetworkNode, called_ae: str, text: str) -> Message:
    """Return the message of A.5.3.11: `caller` was rejected, so mitigation was effective: a minor failure."""
    at = datetime.now(UTC)
    root = _event(SECURITY_ALERT, "E", EventOutcome.MINOR_FAILURE, at, kind)
    _participant(root, source.node, requestor=False)
    _participant(root, caller, requestor=False)
    _source(root, source)
    node = _object(root, caller.address, "2", "13", _NODE_ID, caller.ae_title or caller.address)
    description = f"{text} (called AE title {called_ae})" if called_ae else text
    SubElement(
        node,
        "ParticipantObjectDetail",
        type="Alert Description",
        value=base64.b64encode(description.encode()).decode(),
    )
    return Message(tostring(root, "utf-8"), EventOutcome.MINOR_FAILURE, at)


def _event(
    event: Code, action: str, outcome: EventOutcome, at: datetime, *types: Code, description: str = ""
) -> Element:
    root = Element("AuditMessage")
    identification = SubElement(
        root,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        EventOutcomeIndicator=str(outcome.value),
    )
    _coded(identification, "EventID", event)
    for kind in types:
        _coded(identification, "EventTypeCode", kind)
    if description:
        SubElement(identification, "EventOutcomeDescription").text = _clean(description)
    return root


def _participant(root: Element, node: NetworkNode, *, requestor: bool, role: Code | None = None) -> None:
    is_ours = node.process is not None
    attributes = {"UserID": str(node.process) if is_ours else node.ae_title or node.address}
    if node.ae_title:
        attributes["AlternativeUserID"] = f"AETITLES={node.ae_title}"
    if is_ours:
        attributes["UserName"] = "mammod"
    participant = SubElement(root, "ActiveParticipant", {name: _clean(text) for name, text in attributes.items()})
    participant.set("UserIsRequestor", "true" if requestor else "false")
    participant.set("NetworkAccessPointID", _clean(node.address))
    participant.set("NetworkAccessPointTypeCode", "2" if _is_address(node.address) else "1")
    if role is not None:
        _coded(participant, "RoleIDCode", role)


def _source(root: Element, source: Source) -> None:
    attributes = {"AuditEnterpriseSiteID": source.site} if source.site else {}
    attributes["AuditSourceID"] = f"{source.node.ae_title}@{source.node.address}"
    identification = SubElement(root, "AuditSourceIdentification", {k: _clean(v) for k, v in attributes.items()})
    SubElement(identification, "AuditSourceTypeCode", {"csd-code": APPLICATION_SERVER})


def _object(root: Element, identity: str, kind: str, role: str, id_type: Code, name: str) -> Element:
    found = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_clean(identity),
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )
    _coded(found, "ParticipantObjectIDTypeCode", id_type)
    SubElement(found, "ParticipantObjectName").text = _clean(name)
    return found


def _coded(parent: Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    SubElement(parent, name, attributes)


def _clean(text: str) -> str:
    """Return `text` in one line, with a question mark for each character that XML 1.0 cannot hold."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
