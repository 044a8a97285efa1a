"""Reads what a running service tells Prometheus."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.services import Service


def ask(service: Service, path: str) -> tuple[int, str]:
    """HTTP status and body of a path of the status port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.status_port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scraped(service: Service) -> list[Sample]:
    code, text = ask(service, "/metrics")
    assert code == 200
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(service: Service, name: str, **labels: str) -> float:
    """Of the one series of mammod_`name` that has these labels among its own."""
    found = values(service, name, **labels)
    assert len(found) == 1, (name, labels, found)
    return found[0]


def values(service: Service, name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for sample in scraped(service)
        if sample.name == f"mammod_{name}" and labels.items() <= sample.labels.items()
    ]
