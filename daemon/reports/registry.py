"""The kinds of report by name, as `[reports] kinds` of the settings names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    MammographyCADSRStorage,
    SecondaryCaptureImageStorage,
)

from daemon.reports import gsps, mammo_cad_sr, sc, tid1500
from daemon.reports.case import Case, Edition

Build = Callable[[Case, Edition], Sequence[Dataset]]
"""A pure function: the objects of one kind on one case, one or more; the same arguments give the same bytes.

Raises ReportError if this kind cannot be made of this case; the other kinds go on.
"""

KINDS: Mapping[str, Build] = {
    "tid1500": tid1500.build,
    "mammo-cad-sr": mammo_cad_sr.build,
    "gsps": gsps.build,
    "sc": sc.build,
}

KIND_CLASSES: Mapping[str, str] = {
    "tid1500": Comprehensive3DSRStorage,
    "mammo-cad-sr": MammographyCADSRStorage,
    "gsps": GrayscaleSoftcopyPresentationStateStorage,
    "sc": SecondaryCaptureImageStorage,
}
"""The SOP class of each kind's objects, which an archive has to take."""

WITH_PICTURES = frozenset({"sc"})
"""The kinds that show pixels: they need `Case.views` and heat maps, which cost the others nothing."""
