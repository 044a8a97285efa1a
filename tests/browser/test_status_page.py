"""The status page in Chromium: live numbers, nothing from elsewhere, readable, and plain about a service
that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser

from daemon.workers.bundle_source import default_bundle_path
from tests.support.browser.chromium import Watched
from tests.support.cases import make_case
from tests.support.peers.archives import running_storescp
from tests.support.peers.programs import dcmsend
from tests.support.services import Service, service

pytestmark = pytest.mark.peers

LIMIT_MS = 60_000
_VIOLATIONS = """() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', event => window.violations.push(event.violatedDirective));
}"""
# WCAG 2.1 1.4.3: the ratio of the luminances of each text and of the ground it stands on.
_LOW_CONTRAST = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = text => rgb(text).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if ((rgb(colour)[3] ?? 1) > 0) return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    return [...document.querySelectorAll('body *')]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length)
        .map(e => {
            const [a, b] = [light(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color']), light(ground(e))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim()];
        }).filter(([ratio]) => ratio < 4.5);
}"""
_TEXT_OUTSIDE_ITS_PLOT = """() => [...document.querySelectorAll('svg text')].filter(text => {
    const [inner, outer] = [text.getBoundingClientRect(), text.closest('svg').getBoundingClientRect()];
    return !inner.width || inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("status-page")
    with running_storescp(folder / "archive") as archive:
        settings = {"listener": {"peers": [{"ae_title": "MODALITY"}]}}
        with service(
            folder / "service", default_bundle_path(), (archive.aet, archive.dicom_port), settings=settings
        ) as made:
            made.start()
            yield made


def opened(browser: Browser, node: Service, width: int = 1280, scheme: str = "light") -> Watched:
    watched = Watched(browser, width, 900)
    watched.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    watched.page.add_init_script(f"({_VIOLATIONS})()")
    watched.page.goto(f"http://127.0.0.1:{node.status_port}/")
    watched.page.locator("#state[data-state=good]").wait_for(timeout=LIMIT_MS)
    return watched


def check_clean(watched: Watched, node: Service) -> None:
    assert watched.errors == []
    assert watched.page.evaluate("() => window.violations") == []
    assert {urlsplit(url).netloc for url in watched.requests if not url.startswith("data:")} == {
        f"127.0.0.1:{node.status_port}"
    }


def tile(watched: Watched, state: str) -> str:
    return watched.page.locator(f"[data-tile={state}] b").inner_text()


def fact(watched: Watched, name: str) -> str:
    return watched.page.locator(f"#machine dt:text-is('{name}') + dd").inner_text()


def test_numbers_change_while_the_page_is_open(browser: Browser, node: Service, tmp_path: Path) -> None:
    watched = opened(browser, node)
    page = watched.page
    assert fact(watched, "Since the start") == "instances 0, lesions 0, reports stored 0"
    assert tile(watched, "waiting") == "0"
    case = make_case(tmp_path / "case")
    dcmsend([case.segmentation_path], node.host, node.port, node.aet)
    page.wait_for_function(
        "() => document.querySelector('[data-tile=waiting] b').textContent === '1'", timeout=LIMIT_MS
    )
    dcmsend([case.image_path], node.host, node.port, node.aet, aet="STRANGER")
    dcmsend([case.image_path], node.host, node.port, node.aet)
    page.locator("#last tbody td:text-is('done')").wait_for(timeout=LIMIT_MS)
    cells = page.locator("#last tbody tr").first.locator("td").all_inner_texts()
    assert (cells[0], *cells[2:6]) == ("1", "SEG", "done", "1", "tid1500: stored"), cells
    assert tile(watched, "waiting") == "0"
    assert fact(watched, "Since the start") == "instances 2, lesions 1, reports stored 1"
    assert fact(watched, "Archive STORESCP (C-STORE)").startswith("answers; last ")
    assert fact(watched, "classifiers") == "1 of 1 alive, 0 waiting"
    callers = {row.locator("td").first.inner_text(): row.locator("td").all_inner_texts() for row in
               page.locator("#callers tbody tr").all()}  # fmt: skip
    assert callers["MODALITY"][3:5] == ["2", "0"] and callers["MODALITY"][6:] == ["2", "0"]
    assert callers["STRANGER"][3:6] == ["0", "1", "unknown peer"]
    page.wait_for_function(
        "() => [...document.querySelectorAll('#throughput .legend b')].every(b => Number(b.textContent) > 0)",
        timeout=LIMIT_MS,
    )
    assert page.locator("#throughput svg path").count() >= 3 and page.locator("#backlog > svg > path").count() == 4
    assert page.locator("#stages tbody tr").count() == 5
    assert "CASE-1" not in page.content()
    assert not any(
        "probab" in text.lower() or "malignan" in text.lower() for text in page.locator("table").all_inner_texts()
    )
    check_clean(watched, node)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_can_be_read(browser: Browser, node: Service, width: int, scheme: str) -> None:
    watched = opened(browser, node, width, scheme)
    assert watched.page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert watched.page.evaluate(_LOW_CONTRAST) == []
    assert watched.page.evaluate(_TEXT_OUTSIDE_ITS_PLOT) == []
    ground = watched.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 23, 26)") == (scheme == "dark")
    watched.keep(f"status-page-{width}-{scheme}", whole=True)
    check_clean(watched, node)
    watched.page.close()


def test_a_service_that_is_gone_is_said_to_be_and_its_return_is_seen(browser: Browser, node: Service) -> None:
    watched = opened(browser, node)
    watched.page.route("**/overview", lambda route: route.abort())
    watched.page.locator("#state:has-text('No answer since')").wait_for(timeout=LIMIT_MS)
    watched.page.unroute("**/overview")
    watched.page.locator("#state:has-text('Accepting studies')").wait_for(timeout=LIMIT_MS)
    assert node.stop() == 0
    watched.page.locator("#state:has-text('No answer since')").wait_for(timeout=LIMIT_MS)
    assert "The data below is from then" in watched.page.locator("#state").inner_text()
    watched.keep("status-page-gone")
    # That nobody answers is an error to the browser, and the only one.
    assert all("failed: " in error or "Failed to load resource" in error for error in watched.errors)
    watched.page.close()
