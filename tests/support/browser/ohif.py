"""OHIF, the viewer that many archives bring along, served to a browser in front of an archive's DICOMweb
service.

Its built pages come from the npm package `@ohif/app` (MIT), which `make programs` puts into `.venv`.
"""

from __future__ import annotations

import http.client
import json
import mimetypes
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import Browser

from tests.support.browser.chromium import Watched
from tests.support.peers.programs import missing

DIST = Path(__file__).parents[3] / ".venv" / "ohif" / "dist"

CONFIGURATION = {
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "showStudyList": True,
    "maxNumberOfWebWorkers": 1,
    "showLoadingIndicator": True,
    "showWarningMessageForCrossOrigin": False,
    "showCPUFallbackMessage": False,
    "strictZSpacingForVolumeViewport": True,
    "customizationService": [{"autoCineModalities": {"$set": []}}],  # else a cine bar lies over pictures (modality OT)
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "archive",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "archive",
            "configuration": {
                "friendlyName": "the archive",
                "name": "archive",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "wadoUriRoot": "/dicom-web",
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "omitQuotationForMultipartRequest": True,
                "bulkDataURI": {"enabled": True},
            },
        }
    ],
}


@contextmanager
def serving(dicomweb: str) -> Iterator[str]:
    """OHIF's address on a free loopback port; what lies under /dicom-web/ is passed on to the service at
    `dicomweb`.
    """
    if not (DIST / "index.html").is_file():
        missing("OHIF (npm package @ohif/app) in .venv", "npm, then: make programs")
    archive = urlsplit(dicomweb)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/dicom-web/"):
                self._pass_on()
                return
            if path == "/app-config.js":
                self._answer(f"window.config = {json.dumps(CONFIGURATION)};".encode(), "text/javascript")
                return
            file = (DIST / path.lstrip("/")).resolve()
            if not file.is_file() or DIST not in file.parents:
                if Path(path).suffix:
                    self._answer(b"", "text/plain", HTTPStatus.NOT_FOUND)
                    return
                file = DIST / "index.html"  # a place inside the application
            self._answer(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")

        def _pass_on(self) -> None:
            with closing(http.client.HTTPConnection(archive.hostname or "", archive.port, timeout=60)) as connection:
                headers = {name: self.headers[name] for name in ("Accept", "Host") if name in self.headers}
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                self._answer(answer.read(), answer.headers.get("Content-Type", ""), answer.status)

        def _answer(self, body: bytes, content_type: str, status: int = HTTPStatus.OK) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "max-age=3600")
            # Without these two the viewer's decoders get no shared memory.
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# OHIF's own: where a view is taken for another picture before the first has come, it calls a handler that
# there is none of.
_LEFT_BEHIND = "IMAGE_LOAD_ERROR TypeError: handler is not a function"


class Viewer:
    """OHIF with one study open."""

    def __init__(self, browser: Browser, url: str, study_uid: str) -> None:
        self.watched = Watched(browser, 1400, 900)
        self.page = self.watched.page
        # Else the guided tour of the first visit lies over everything.
        self.page.add_init_script("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
        self.page.goto(f"{url}/viewer?StudyInstanceUIDs={study_uid}")
        self.page.wait_for_function(
            "() => window.cornerstone?.getEnabledElements().some(each => each.viewport.viewportStatus == 'rendered')"
        )

    @property
    def errors(self) -> list[str]:
        """What the browser's console calls an error, and requests that failed."""
        return [error for error in self.watched.errors if _LEFT_BEHIND not in error]

    def listed(self) -> dict[str, str]:
        """SOP Instance UID -> what the list of series says, of the objects that are not images."""
        return dict(
            self.page.evaluate(
                """() => window.services.displaySetService.getActiveDisplaySets().filter(set => set.SOPInstanceUID)
                    .map(set => [set.SOPInstanceUID, document.getElementById('thumbnail-' + set.displaySetInstanceUID)])
                    .filter(([uid, row]) => row).map(([uid, row]) => [uid, row.innerText])"""
            )
        )

    def show(self, sop_instance_uid: str) -> None:
        """Double-click a report in the list and wait until it is drawn."""
        self.page.wait_for_function(f"() => ({_ROW})({sop_instance_uid!r})")
        element = self.page.evaluate_handle(f"() => ({_ROW})({sop_instance_uid!r})").as_element()
        assert element is not None
        element.dblclick()
        self.page.wait_for_function(
            """uid => { const set = window.services.displaySetService.getActiveDisplaySets()
                .find(set => set.SOPInstanceUID == uid);
                const grid = window.services.viewportGridService.getState();
                return set.isLoaded && grid.viewports.get(grid.activeViewportId)
                    .displaySetInstanceUIDs.includes(set.displaySetInstanceUID); }""",
            arg=sop_instance_uid,
        )

    def annotations(self, tool: str = "DICOMSRDisplay") -> list[Annotation]:
        """What a tool holds in the viewer's annotation state, world points turned into image pixels by the
        viewer.
        """
        return [Annotation(**found) for found in self.page.evaluate(_ANNOTATIONS, tool)]

    def texts(self) -> list[str]:
        """What is written beside the outlines that are drawn now."""
        return list(self.page.locator(".svg-layer tspan").all_text_contents())

    def wait_drawn(self, image_uid: str, count: int) -> None:
        """Wait until that image is shown with so many lesions and what is written beside them.

        Now and then OHIF 3.13 opens a report on the image that it already shows without drawing anew, so it
        is told to draw while we wait.
        """
        self.page.wait_for_function(
            """([uid, count]) => {
                const shown = window.cornerstone.getEnabledElements().map(each => each.viewport);
                if (!shown.some(viewport => viewport.getCurrentImageId?.()?.includes(uid))) return false;
                if (document.querySelectorAll('.svg-layer text').length == count) return true;
                window.cornerstoneTools.utilities.triggerAnnotationRenderForViewportIds(shown.map(each => each.id));
                return false;
            }""",
            arg=[image_uid, count],
            polling=300,
            timeout=30_000,
        )

    def open_image(self, image_uid: str) -> None:
        """Double-click an image in the list and wait until it is shown."""
        find = f"""() => {{ const set = window.services.displaySetService.getActiveDisplaySets()
            .find(set => set.Modality == 'MG' && set.images?.some(image => image.SOPInstanceUID == '{image_uid}'));
            return set && document.getElementById('thumbnail-' + set.displaySetInstanceUID); }}"""
        element = self.page.wait_for_function(find).as_element()
        assert element is not None
        element.dblclick()
        self.page.wait_for_function(
            """uid => window.cornerstone.getEnabledElements()
                .some(each => each.viewport.getCurrentImageId?.()?.includes(uid))""",
            arg=image_uid,
        )

    def outlines_only(self) -> bytes:
        """A picture of the page, without what is written beside the outlines, the lines that lead there and
        handles.
        """
        return self.page.screenshot(style=".svg-layer :is(line, text, circle) { visibility: hidden }")

    def on_screen(self, image_uid: str, points: np.ndarray) -> np.ndarray:
        """Where image pixels (column, row) are on the page, (N, 2); AssertionError where that image is not
        shown.
        """
        found = self.page.evaluate(_ON_SCREEN, [image_uid, points.tolist()])
        assert found, f"image {image_uid} is not shown"
        return np.asarray(found, float)


@dataclass(frozen=True)
class Annotation:
    """One annotation: its points in image pixels (column, row) by graphic type, and what is written beside
    it.
    """

    image_uid: str
    tracking_uid: str
    shapes: dict[str, list[list[list[float]]]]
    handles: list[list[float]]
    labels: list[str]
    label: str

    @property
    def points(self) -> np.ndarray:
        (parts,) = self.shapes.values()
        return np.concatenate([np.asarray(part, float) for part in parts])


_ROW = """uid => { const set = window.services.displaySetService.getActiveDisplaySets()
    .find(set => set.SOPInstanceUID == uid);
    return set && document.getElementById('thumbnail-' + set.displaySetInstanceUID); }"""

_ANNOTATIONS = """tool => window.cornerstoneTools.annotation.state.getAllAnnotations()
    .filter(each => each.metadata.toolName == tool)
    .map(each => {
        const image = each.metadata.referencedImageId;
        const inImage = point => window.cornerstone.utilities.worldToImageCoords(image, point);
        const shapes = {};
        for (const [type, parts] of Object.entries(each.data.renderableData ?? {}))
            shapes[type] = parts.map(part => part.map(inImage));
        return {
            image_uid: image.match(/instances\\/([\\d.]+)/)[1],
            tracking_uid: each.data.TrackingUniqueIdentifier ?? '',
            shapes,
            handles: (each.data.handles?.points ?? []).map(inImage),
            label: each.data.label ?? '',
            labels: (each.data.labels ?? []).map(label => `${label.label}: ${label.value}`),
        };
    })"""

_ON_SCREEN = """([uid, points]) => {
    for (const {viewport} of window.cornerstone.getEnabledElements()) {
        const image = viewport.getCurrentImageId?.();
        if (!image?.includes(uid)) continue;
        const {left, top} = viewport.canvas.getBoundingClientRect();
        return points.map(point => {
            const world = window.cornerstone.utilities.imageToWorldCoords(image, point);
            const [x, y] = viewport.worldToCanvas(world);
            return [left + x, top + y];
        });
    }
    return null;
}"""
