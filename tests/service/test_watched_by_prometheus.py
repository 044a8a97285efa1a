"""Alert rules, dashboard, runbook and table of metrics against a running service and Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.workers.bundle_source import default_bundle_path
from tests.support.cases import make_case
from tests.support.peers.archives import running_storescp
from tests.support.peers.certificates import Authority
from tests.support.peers.programs import dcmsend, free_port, program, running, wait_until
from tests.support.prometheus import ask, value, values
from tests.support.scu import EXPLICIT, MAMMOGRAM, request_association, store
from tests.support.scu import mammogram as small_mammogram
from tests.support.services import ROOT, Service, service

pytestmark = pytest.mark.peers

ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/mammod.json"
OPERATIONS = ROOT / "docs/how-to/operate.md"
METRICS = ROOT / "docs/reference/metrics.md"
# Prometheus' own words, in what is left of an expression without its strings, selectors and groupings.
WORDS = {"by", "and", "or", "on", "unless", "without", "ignoring", "bool", "offset"}
OF_PROMETHEUS = {"up"}


@dataclass(frozen=True)
class Watched:
    service: Service
    prometheus: str

    def query(self, expression: str) -> list[Any]:
        asked = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        answer = get(asked)
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])


def get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service that did everything once, so that every metric is there, and a Prometheus that watches it."""
    folder = tmp_path_factory.mktemp("watched")
    authority = Authority(folder / "ca")
    files = authority.issue("audit")
    tls = {"certificate": str(files.certificate), "key": str(files.key), "ca": str(authority.file)}
    settings = {"audit": {"file": str(folder / "audit.log"), "tls": tls}}
    case = make_case(folder / "case")
    with running_storescp(folder / "archive") as archive:
        address = (archive.aet, archive.dicom_port)
        with service(folder / "service", default_bundle_path(), address, settings=settings) as node:
            node.start()
            dcmsend(case.files, node.host, node.port, node.aet)
            association = request_association(node.port, [(MAMMOGRAM, [EXPLICIT])])
            assert store(association, b"nonsense", small_mammogram().SOPInstanceUID).Status >> 12 == 0xC
            association.release()
            node.wait_jobs("done")
            wait_until(lambda: values(node, "spool_bytes"), "the spool counted", 60)
            with prometheus(folder / "prometheus", node.status_port) as address_of_it:
                found = Watched(node, address_of_it)
                wait_until(lambda: found.query("count_over_time(mammod_ready[1m]) >= 2"), "two scrapes", 60)
                yield found


class prometheus:
    """A Prometheus with the alert rules, which asks the service every second; its own address."""

    def __init__(self, folder: Path, status_port: int) -> None:
        folder.mkdir()
        example = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
        assert "127.0.0.1:11180" in example and "15s" in example
        config = folder / "prometheus.yml"
        config.write_text(example.replace("127.0.0.1:11180", f"127.0.0.1:{status_port}").replace("15s", "1s"))
        (folder / "alerts.yml").write_text(ALERTS.read_text())
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        self._running = running(command, folder / "log", self._answers)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __enter__(self) -> str:
        self._running.__enter__()
        return self.address

    def __exit__(self, *failure: Any) -> None:
        self._running.__exit__(*failure)


def rules() -> dict[str, str]:
    """The expression of each alert."""
    text = ALERTS.read_text()
    found = {}
    for block in re.split(r"^ +- alert: ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = block.partition("\n")
        match = re.search(r"expr: (>-\n)?(.*?)\n +(for|labels):", rest, re.DOTALL)
        assert match, name
        found[name] = " ".join(match[2].split())
    return found


def dashboard() -> dict[str, str]:
    """Each expression of the dashboard, by panel and letter; variables filled in as Grafana does."""
    board = json.loads(DASHBOARD.read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert asked, variable
            found[f"variable {variable['name']}"] = asked[1]
    fill = {"$job": "mammod", "$instance": ".*", "$__rate_interval": "1m"}
    return {name: re.sub(r"\$\w+", lambda match: fill[match[0]], text) for name, text in found.items()}


EXPRESSIONS = {f"alert {name}": text for name, text in rules().items()} | dashboard()


def selectors(expression: str) -> list[str]:
    """Each metric that an expression names, with its label matchers."""
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", " ", expression)
    parts = re.findall(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(\s*\()?", re.sub(r"\[[^]]*\]", " ", bare))
    return [name + labels for name, labels, call in parts if not call and name not in WORDS]


def names(found: list[str]) -> set[str]:
    return {one.partition("{")[0] for one in found}


def test_selectors_finds_every_name() -> None:
    text = (
        'sum by (a, le) (rate(x_total{b="c(d) {", e=~"f|g"}[5m])) / on(h) up > 0.05 * max(y) and time() - z < 3 * 86400'
    )
    with_brace = text.replace(" {", "")
    assert selectors(with_brace) == ['x_total{b="c(d)", e=~"f|g"}', "up", "y", "z"]


def test_there_is_something_to_check() -> None:
    assert len(rules()) >= 20 and len(dashboard()) >= 24
    assert len(rules()) == ALERTS.read_text().count("alert:")


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_names_only_series_that_there_are(name: str, watched: Watched) -> None:
    expression = EXPRESSIONS[name]
    assert selectors(expression)
    for selector in selectors(expression):
        found = watched.query(selector)
        if not found and 'trained="false"' in selector:  # this one is trained
            found = watched.query(selector.replace('"false"', '"true"'))
        assert found, f"{selector}: there is no such series"
    watched.query(expression)


def test_prometheus_can_evaluate_every_rule_and_a_service_in_order_brings_no_alert(watched: Watched) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = get(f"{watched.prometheus}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in evaluated()), "every rule evaluated", 60)
    found = evaluated()
    assert {rule["name"] for rule in found} == set(rules())
    assert [rule["name"] for rule in found if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in found if rule["state"] == "firing"] == []
    # What the fixture brought about: one instance in three refused, a CA that ends within 30 days. The disk
    # is the machine's, on which others write.
    pending = {rule["name"] for rule in found if rule["state"] == "pending"} - {"MammodDiskFilling"}
    assert "MammodCertificateEnds" in pending <= {"MammodCertificateEnds", "MammodInstancesRefused"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", str(ALERTS)),
        ("check", "config", str(ROOT / "deploy/prometheus/prometheus.yml")),
        ("test", "rules", str(ROOT / "tests/deploy/alerts_test.yml")),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "SUCCESS" in done.stdout + done.stderr, done.stdout + done.stderr


def test_the_table_of_metrics_is_what_is_served(watched: Watched) -> None:
    """Name, type and labels of each; what it means is for people to compare."""
    _, text = ask(watched.service, "/metrics")
    served = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("mammod_"):
            suffix = "_total" if family.type == "counter" else ""
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            served[family.name + suffix] = (family.type, labels)
    rows = re.findall(r"^\| `(mammod_\w+)` \| (\w+) \|([^|]*)\|", METRICS.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(documented)
    assert documented == served
    assert value(watched.service, "certificate_expiry_timestamp_seconds", certificate="audit.tls.ca") > 0


def test_every_alert_is_explained_and_every_runbook_leads_there() -> None:
    text = OPERATIONS.read_text()
    headings = re.findall(r"^#+ (Mammod\w+)$", text, re.MULTILINE)
    pointed = re.findall(r'runbook: "docs/how-to/operate.md#(\w+)"', ALERTS.read_text())
    anchors = {heading.lower() for heading in headings}
    assert len(pointed) == len(rules())
    assert set(pointed) <= anchors
    assert anchors <= set(pointed), "a heading without an alert"
