"""The audit trail: messages against schema and tables of PS3.15 A.5, delivered to a file and to rsyslog."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from pydantic import ValidationError
from structlog.testing import capture_logs

from config.settings import Audit as AuditSettings
from config.settings import Settings
from daemon.audit import messages, transport
from daemon.audit.messages import Action, Message, NetworkNode, Source
from daemon.audit.trail import AuditTrail
from daemon.audit.transport import Delivery
from daemon.events.outcomes import Arrival, Rejection, RejectionKind, StoreOutcome, StoreOutcomeKind
from daemon.storage.received_instance import ReceivedInstance
from tests.support.peers.certificates import Authority
from tests.support.peers.programs import free_port, program, running, wait_until

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit_message.rng")))
STUDY, OTHER_STUDY = "1.2.826.0.1.3680043.8.498.1000", "1.2.826.0.1.3680043.8.498.2000"
IMAGE, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"
OWN = Source(NetworkNode("MAMMOD", "mammod.example.org", process=42), site="A & B <Hospital>")
PEER = NetworkNode("PACS", "10.1.2.3")


def parsed(message: bytes) -> Any:
    root = etree.fromstring(message)
    SCHEMA.assertValid(root)
    return root


def received(classes: dict[str, int]) -> Message:
    """New instances of one study came from the peer."""
    return messages.instances_transferred(
        OWN,
        sender=PEER,
        receiver=OWN.node,
        requestor=PEER,
        study_uid=STUDY,
        classes=classes,
        action=Action.NEW,
    )


def codes(element: Any, path: str) -> list[str]:
    return [
        f"{one.get('codeSystemName')} {one.get('csd-code')} {one.get('originalText')}" for one in element.findall(path)
    ]


# --- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (messages.APPLICATION_START, "DCM 110120 Application Start"),
        (messages.APPLICATION_STOP, "DCM 110121 Application Stop"),
    ],
)
def test_application_activity_by_table_a_5_3_1(what: messages.Code, expected: str) -> None:
    root = parsed(messages.application_activity(OWN, what).xml)
    event = root.find("EventIdentification")
    assert codes(event, "EventID") == ["DCM 110100 Application Activity"]
    assert codes(event, "EventTypeCode") == [expected]
    assert (event.get("EventActionCode"), event.get("EventOutcomeIndicator")) == ("E", "0")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.get("EventDateTime"))
    (application,) = root.findall("ActiveParticipant")
    assert (application.get("UserID"), application.get("AlternativeUserID")) == ("42", "AETITLES=MAMMOD")
    assert codes(application, "RoleIDCode") == ["DCM 110150 Application"]
    assert root.find("AuditSourceIdentification").get("AuditEnterpriseSiteID") == "A & B <Hospital>"


def test_instances_transferred_by_table_a_5_3_7() -> None:
    message = received({SEGMENTATION: 1, IMAGE: 4})
    root = parsed(message.xml)
    event = root.find("EventIdentification")
    assert codes(event, "EventID") == ["DCM 110104 DICOM Instances Transferred"]
    assert (event.get("EventActionCode"), event.get("EventOutcomeIndicator")) == ("C", "0")
    source, destination = root.findall("ActiveParticipant")
    assert codes(source, "RoleIDCode") == ["DCM 110153 Source Role ID"]
    assert codes(destination, "RoleIDCode") == ["DCM 110152 Destination Role ID"]
    assert [one.get("UserIsRequestor") for one in (source, destination)] == ["true", "false"]
    assert [one.get("NetworkAccessPointTypeCode") for one in (source, destination)] == ["2", "1"]
    assert [one.get("NetworkAccessPointID") for one in (source, destination)] == ["10.1.2.3", "mammod.example.org"]
    study, patient = root.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == STUDY
    assert (study.get("ParticipantObjectTypeCode"), study.get("ParticipantObjectTypeCodeRole")) == ("2", "3")
    assert codes(study, "ParticipantObjectIDTypeCode") == ["DCM 110180 Study Instance UID"]
    counts = {one.get("UID"): one.get("NumberOfInstances") for one in study.iter("SOPClass")}
    assert counts == {IMAGE: "4", SEGMENTATION: "1"}
    assert not list(study.iter("Instance", "Accession")), "no instance and no accession number is named"
    assert (patient.get("ParticipantObjectTypeCode"), patient.get("ParticipantObjectTypeCodeRole")) == ("1", "1")
    assert codes(patient, "ParticipantObjectIDTypeCode") == ["RFC-3881 2 Patient Number"]
    assert {patient.get("ParticipantObjectID"), patient.findtext("ParticipantObjectName")} == {"withheld"}


def test_a_transfer_that_failed_says_so() -> None:
    message = messages.instances_transferred(
        OWN,
        sender=OWN.node,
        receiver=PEER,
        requestor=OWN.node,
        study_uid=STUDY,
        classes={IMAGE: 1},
        action=Action.KNOWN,
        failure="0xA900 refused",
    )
    event = parsed(message.xml).find("EventIdentification")
    assert (event.get("EventOutcomeIndicator"), event.findtext("EventOutcomeDescription")) == ("8", "0xA900 refused")


def test_security_alert_by_table_a_5_3_11_whatever_the_caller_calls_itself() -> None:
    caller = NetworkNode("\x00\x1b]<&'\"é", "192.0.2.7")
    root = parsed(
        messages.security_alert(
            OWN, messages.NODE_AUTHENTICATION, caller=caller, called_ae="\x07OTHER", text="no such caller"
        ).xml
    )
    event = root.find("EventIdentification")
    assert codes(event, "EventID") == ["DCM 110113 Security Alert"]
    assert codes(event, "EventTypeCode") == ["DCM 110126 Node Authentication"]
    assert (event.get("EventActionCode"), event.get("EventOutcomeIndicator")) == ("E", "4")
    assert [one.get("UserIsRequestor") for one in root.findall("ActiveParticipant")] == ["false", "false"]
    (subject,) = root.findall("ParticipantObjectIdentification")
    assert codes(subject, "ParticipantObjectIDTypeCode") == ["DCM 110182 Node ID"]
    assert (subject.get("ParticipantObjectID"), subject.get("ParticipantObjectTypeCode")) == ("192.0.2.7", "2")
    (detail,) = subject.findall("ParticipantObjectDetail")
    assert detail.get("type") == "Alert Description"
    assert base64.b64decode(detail.get("value")).decode() == "no such caller (called AE title \x07OTHER)"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("EventActionCode", "eventActionCode"),
        ('EventOutcomeIndicator="0"', 'EventOutcomeIndicator="1"'),
        ("csd-code", "code"),
        ("<ParticipantObjectName>study</ParticipantObjectName>", ""),
        ("AuditSourceIdentification", "AuditSource"),
    ],
)
def test_the_schema_refuses_what_the_standard_does(old: str, new: str) -> None:
    message = received({IMAGE: 1}).xml.decode()
    assert old in message
    assert not SCHEMA.validate(etree.fromstring(message.replace(old, new)))


# --- what is told ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A row of the outbox, as far as the trail reads it."""

    study_uid: str
    sop_class_uid: str


def settings_for(file: Path) -> Settings:
    return Settings(audit={"file": file}, archive={"ae_title": "PACS", "host": "10.1.2.3"})


def messages_in(file: Path) -> list[Any]:
    return [parsed(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def incoming(sop_class: str = IMAGE, association: str = "a1") -> ReceivedInstance:
    return ReceivedInstance(
        Path("unused"), sop_class, "1.2.3", "1.2.840.10008.1.2.1", "PACS", "MAMMOD", "10.1.2.3", association
    )


def test_one_message_for_each_study_of_an_association_when_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    audit = AuditTrail(settings_for(file))
    for study, sop_class, arrival in [
        *[(STUDY, IMAGE, Arrival.NEW)] * 3,
        (STUDY, SEGMENTATION, Arrival.DUPLICATE),
        (OTHER_STUDY, IMAGE, Arrival.DUPLICATE),
        ("", IMAGE, Arrival.CHANGED),
    ]:
        audit.received(incoming(sop_class), study, arrival)
    audit.received(incoming(association="a2"), STUDY, Arrival.NEW)
    assert not file.exists(), "not before the association ends"
    audit.association_ended("a1")
    audit.association_ended("a1")
    audit.stopped()
    *transfers, stop = messages_in(file)
    assert codes(stop, "EventIdentification/EventTypeCode") == ["DCM 110121 Application Stop"]
    told = [
        (
            one.find("EventIdentification").get("EventActionCode"),
            one.find("ParticipantObjectIdentification").get("ParticipantObjectID"),
            [(each.get("UID"), each.get("NumberOfInstances")) for each in one.iter("SOPClass")],
        )
        for one in transfers
    ]
    assert told == [
        ("C", STUDY, [(IMAGE, "3"), (SEGMENTATION, "1")]),
        ("R", OTHER_STUDY, [(IMAGE, "1")]),
        ("U", "none", [(IMAGE, "1")]),
    ]
    assert file.stat().st_mode & 0o777 == 0o600


def test_reports_out_are_told_for_each_study_and_outcome_and_retries_are_not(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    audit = AuditTrail(settings_for(file))
    rows: list[Any] = [(Sent(STUDY, IMAGE), StoreOutcomeKind.STORED), (Sent(STUDY, IMAGE), StoreOutcomeKind.STORED)]
    rows += [(Sent(STUDY, SEGMENTATION), StoreOutcomeKind.FAILED), (Sent(OTHER_STUDY, IMAGE), StoreOutcomeKind.RETRY)]
    audit.sent([(row, StoreOutcome("1.2", kind, None, "why")) for row, kind in rows], settings_for(file))
    audit.stopped()
    stored, failed, _ = messages_in(file)
    assert [one.get("NumberOfInstances") for one in stored.iter("SOPClass")] == ["2"]
    assert [one.get("AlternativeUserID") for one in stored.findall("ActiveParticipant")] == [
        "AETITLES=MAMMOD", "AETITLES=PACS",
    ]  # fmt: skip
    assert failed.findtext("EventIdentification/EventOutcomeDescription") == "why"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (RejectionKind.UNKNOWN_PEER, ["DCM 110126 Node Authentication"]),
        (RejectionKind.CALLED_AE_TITLE, ["DCM 110126 Node Authentication"]),
        (RejectionKind.TLS, ["DCM 110126 Node Authentication"]),
        (RejectionKind.NOT_PERMITTED, ["DCM 110132 Use of Restricted Function"]),
        (RejectionKind.BUSY, None),
    ],
)
def test_a_caller_not_let_in_is_an_alert_and_many_are_one_with_their_number(
    kind: RejectionKind, expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("daemon.audit.trail.time.monotonic", lambda: now[0])
    file = tmp_path / "audit.log"
    audit = AuditTrail(settings_for(file))
    for _ in range(500):
        audit.rejected(Rejection(kind, "192.0.2.7", "X", "MAMMOD", "why"))
    now[0] += 61
    audit.rejected(Rejection(kind, "192.0.2.7", "X", "MAMMOD", "why"))
    monkeypatch.undo()
    audit.stopped()
    *alerts, _stop = messages_in(file)
    if expected is None:
        assert alerts == []
        return
    assert [codes(alert, "EventIdentification/EventTypeCode") for alert in alerts] == [expected, expected]
    texts = [base64.b64decode(alert.find(".//ParticipantObjectDetail").get("value")).decode() for alert in alerts]
    assert "499 more like it" in texts[1] and "more" not in texts[0]


def test_without_a_destination_there_is_no_trail() -> None:
    audit = AuditTrail(Settings())
    audit.started()
    audit.received(incoming(), STUDY, Arrival.NEW)
    audit.association_ended("a1")
    audit.stopped()
    assert audit.state is None


def test_tls_without_files_is_a_wrong_setting() -> None:
    with pytest.raises(ValidationError, match=r"audit\.tls"):
        AuditSettings(syslog="tls://audit.example.org")


# --- the way there ---------------------------------------------------------------------------------


class Flaky:
    """A destination that takes nothing until it is `there`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.there = False
        self.asked = 0
        self.error = error or ConnectionRefusedError("nobody")
        self.taken: list[Message] = []

    def write(self, message: Message) -> None:
        self.asked += 1
        if not self.there:
            raise self.error
        self.taken.append(message)

    def close(self) -> None:
        pass


def activity() -> Message:
    return messages.application_activity(OWN, messages.APPLICATION_START)


def test_what_a_receiver_does_not_take_waits_in_order_and_what_is_too_much_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "RETRY_FIRST_S", 0.02)
    monkeypatch.setattr(transport, "MAX_QUEUE", 5)
    flaky = Flaky()
    sent = [activity() for _ in range(8)]
    with capture_logs() as events:
        delivery = Delivery(flaky)
        for message in sent:
            delivery.put(message)
        assert (delivery.waiting, delivery.dropped) == (5, 3)
        flaky.there = True
        wait_until(lambda: delivery.waiting == 0, "all that waited is taken")
        delivery.stop()
    assert flaky.taken == sent[:5]
    assert [event["event"] for event in events if event["log_level"] == "error"] == [
        "audit queue full, messages are lost"
    ]


def test_pauses_grow_although_more_comes_and_a_stop_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RETRY_FIRST_S", 60.0)
    flaky = Flaky()
    delivery = Delivery(flaky)
    for _ in range(50):
        delivery.put(activity())
        time.sleep(0.002)  # the load: more comes while the receiver is away
    assert flaky.asked == 1
    flaky.there = True
    delivery.stop()
    assert len(flaky.taken) == 50


def test_an_error_of_the_hosts_name_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RETRY_FIRST_S", 0.02)
    flaky = Flaky(UnicodeError("label empty or too long"))
    delivery = Delivery(flaky)
    delivery.put(activity())
    wait_until(lambda: flaky.asked >= 1, "an attempt")
    flaky.there = True
    wait_until(lambda: delivery.delivered == 1, "it is tried again")
    delivery.stop()


@pytest.mark.parametrize(
    "url", ["udp://h:70000", "udp://h:0", "udp://a..b", "udp://[::1::]:514", f"udp://{'a' * 64}:514"]
)
def test_a_syslog_that_cannot_be_called_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(ValidationError, match="syslog"):
        AuditSettings(syslog=url)


RSYSLOG = """\
global(workDirectory="{folder}" maxMessageSize="64k" defaultNetstreamDriver="ossl"
  defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}")
module(load="imudp")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
template(name="parts" type="string"
  string="%syslogfacility-text% %syslogseverity-text% %app-name% %msgid% %timestamp:::date-rfc3339% %msg%\\n")
input(type="imudp" address="127.0.0.1" port="{port}")
input(type="imtcp" address="127.0.0.1" port="{port}")
*.* action(type="omfile" file="{file}" template="parts")
"""


@dataclass(frozen=True)
class Rsyslog:
    """A running rsyslogd that listens on `port`, UDP and TLS, and writes what it understood into `file`."""

    port: int
    file: Path

    def received(self) -> list[tuple[list[str], Any]]:
        """Facility, severity, application, message id and time; and the message."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        split = [line.partition("<") for line in lines]
        return [(head.split()[:5], etree.fromstring(f"<{xml}".encode())) for head, _, xml in split]


@contextmanager
def running_rsyslog(folder: Path, port: int, ca: Authority, name: str) -> Iterator[Rsyslog]:
    folder.mkdir(exist_ok=True)
    files = ca.issue(name)
    receiver = Rsyslog(port, folder / "received.log")
    configuration = folder / "rsyslog.conf"
    configuration.write_text(
        RSYSLOG.format(
            folder=folder, ca=ca.file, certificate=files.certificate, key=files.key, port=port, file=receiver.file
        )
    )
    command = [program("rsyslogd"), "-n", "-f", str(configuration), "-i", str(folder / "pid")]

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    with running(command, folder / "rsyslogd.log", listens):
        yield receiver


@pytest.mark.peers
@pytest.mark.parametrize("way", ["udp", "tls"])
def test_rsyslog_understands_the_header_and_the_message(way: str, tmp_path: Path) -> None:
    ca = Authority(tmp_path / "tls")
    with running_rsyslog(tmp_path / "rsyslog", free_port(), ca, "receiver") as receiver:
        chosen: dict[str, Any] = {"syslog": f"{way}://127.0.0.1:{receiver.port}"}
        if way == "tls":
            chosen["tls"] = ca.issue("mammod").tls(ca.file)
        audit = AuditTrail(Settings(audit=chosen))
        audit.started()
        audit.rejected(Rejection(RejectionKind.UNKNOWN_PEER, "192.0.2.7", "X", "MAMMOD", "why"))
        audit.stopped()
        wait_until(lambda: len(receiver.received()) == 3, "three messages received")
        assert audit.state == {"delivered": 3, "waiting": 0, "lost": 0}
        (start, xml), (alert, _), (stop, _) = receiver.received()
    assert start[:4] == stop[:4] == ["authpriv", "notice", "mammod", "DICOM+RFC3881"]
    assert alert[1] == "warning"
    SCHEMA.assertValid(xml)
    assert codes(xml, "EventIdentification/EventTypeCode") == ["DCM 110120 Application Start"]


@pytest.mark.peers
def test_a_syslog_receiver_that_goes_away_and_comes_back_misses_nothing_sent_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "RETRY_FIRST_S", 0.05)
    ca = Authority(tmp_path / "tls")
    port = free_port()
    settings = Settings(audit={"syslog": f"tls://127.0.0.1:{port}", "tls": ca.issue("mammod").tls(ca.file)})
    audit = AuditTrail(settings)
    audit.started()  # nobody there yet
    with running_rsyslog(tmp_path / "rsyslog", port, ca, "first") as receiver:
        wait_until(lambda: len(receiver.received()) == 1, "what waited for it")
    state: Callable[[], dict[str, int]] = lambda: audit.state or {}  # noqa: E731
    assert state()["delivered"] == 1
    audit.started()
    with running_rsyslog(tmp_path / "rsyslog", port, ca, "second") as receiver:
        wait_until(lambda: len(receiver.received()) == 2, "what was sent while it was away")
        audit.stopped()
    assert state() == {"delivered": 3, "waiting": 0, "lost": 0}


@pytest.mark.peers
def test_a_syslog_receiver_without_a_good_certificate_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "FLUSH_TIMEOUT_S", 0.5)
    monkeypatch.setattr(transport, "RETRY_FIRST_S", 0.2)
    ca, other = Authority(tmp_path / "tls"), Authority(tmp_path / "tls", "other")
    with running_rsyslog(tmp_path / "rsyslog", free_port(), other, "stranger") as receiver, capture_logs() as events:
        settings = Settings(
            audit={"syslog": f"tls://127.0.0.1:{receiver.port}", "tls": ca.issue("mammod").tls(ca.file)}
        )
        audit = AuditTrail(settings)
        audit.started()
        audit.stopped()
        assert receiver.received() == []
    assert audit.state == {"delivered": 0, "waiting": 2, "lost": 2}
    assert "audit messages lost" in [event["event"] for event in events]
