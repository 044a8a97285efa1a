"""Prepare and send the demo's objects, as a modality and a reading workstation would."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import FileMetaDataset
from pynetdicom import AE
from pynetdicom.presentation import build_context

from config.errors import MammodError
from daemon.demo.cases import Case
from daemon.demo.lesion_objects import Shape, build
from daemon.dicom.status import SUCCESS, is_warning

_SEG_ELLIPSE, _SEG_BOX = Shape("SEG", "ellipse"), Shape("SEG", "box")
_SR_ELLIPSE, _SR_BOX = Shape("SR", "ellipse"), Shape("SR", "box")


class NotStored(MammodError):
    """The peer accepted the association but did not accept or store one of the objects."""


@dataclass(frozen=True)
class Plan:
    """How the lesions of one mammogram are marked, and whether their object is sent before the image."""

    shapes: tuple[Shape, ...]
    before_image: bool


PLANS = {
    "1-130": Plan((_SEG_ELLIPSE,), before_image=True),
    "1-131": Plan((_SR_BOX,), before_image=False),
    "1-132": Plan((_SR_ELLIPSE, _SR_BOX), before_image=True),
    "1-133": Plan((_SEG_ELLIPSE, _SEG_BOX), before_image=False),
    "1-280": Plan((_SEG_ELLIPSE,), before_image=True),
    "1-281": Plan((_SR_ELLIPSE,), before_image=False),
    "1-282": Plan((_SEG_BOX,), before_image=False),
    "1-283": Plan((_SR_BOX,), before_image=True),
}


@dataclass(frozen=True)
class Item:
    """One object to send: a Part 10 file, sent unchanged."""

    path: Path
    meta: FileMetaDataset

    @property
    def uid(self) -> str:
        """Return the SOP Instance UID."""
        return str(self.meta.MediaStorageSOPInstanceUID)


@dataclass(frozen=True)
class CaseItems:
    """The two objects of one mammogram."""

    case: Case
    plan: Plan
    image: Item
    lesion_object: Item

    @property
    def in_order(self) -> tuple[Item, Item]:
        """Return both objects in the order of sending."""
        pair = (self.image, self.lesion_object)
        return (pair[1], pair[0]) if self.plan.before_image else pair


def prepare(cases: Sequence[Case], folder: Path) -> list[CaseItems]:
    """Write every object to `folder`, named by the order of sending; images are byte-for-byte copies."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared = []
    for number, case in enumerate(cases):
        plan = PLANS[case.name]
        image_number, object_number = (2, 1) if plan.before_image else (1, 2)
        image = folder / f"{2 * number + image_number:02d}-{case.name}-image.dcm"
        shutil.copyfile(case.path, image)
        lesions = build(case, pydicom.dcmread(case.path, stop_before_pixels=True), plan.shapes)
        kind = plan.shapes[0].kind.lower()
        lesion_object = folder / f"{2 * number + object_number:02d}-{case.name}-{kind}.dcm"
        lesions.save_as(lesion_object)
        prepared.append(CaseItems(case, plan, _item(image), _item(lesion_object)))
    return prepared


def _item(path: Path) -> Item:
    return Item(path, pydicom.filereader.read_file_meta_info(path))


def send(
    items: Sequence[Item], address: tuple[str, int], called: str, on_stored: Callable[[Item, float], None]
) -> None:
    """Send `items` by C-STORE in this order over one association, in the transfer syntax of each file.

    `on_stored` is called with the time of the success response (seconds since the epoch).

    Raises:
        MammodError: the association was not established.
        NotStored: an object was not stored and the rest not sent; the message has the status.
    """
    ae = AE(ae_title="MAMMODDEMO")
    kinds = {(item.meta.MediaStorageSOPClassUID, item.meta.TransferSyntaxUID) for item in items}
    contexts = [build_context(abstract, transfer) for abstract, transfer in sorted(kinds)]
    host, port = address
    association = ae.associate(host, port, contexts=contexts, ae_title=called)
    if not association.is_established:
        raise MammodError(
            f"{called} at {host}:{port} did not accept an association; is it running, and may MAMMODDEMO call it?"
        )
    connection = getattr(getattr(association.dul, "socket", None), "socket", None)
    if connection is not None:  # else each object waits about 40 ms for a delayed acknowledgement
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for item in items:
            try:
                status = association.send_c_store(item.path).get("Status")
            except (ValueError, RuntimeError) as error:
                raise NotStored(f"{called} does not accept {item.path.name}: {error}") from error
            if status is None or (status != SUCCESS and not is_warning(status)):
                answer = "no answer" if status is None else f"status {status:04X}H"
                raise NotStored(f"{called} at {host}:{port} did not store {item.path.name}: {answer}")
            on_stored(item, time.time())
    finally:
        association.release()
