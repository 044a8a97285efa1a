"""Which engine the service would take, and why: found by starting it."""

from __future__ import annotations

from config.errors import MammodError
from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.workers.bundle_source import engine_cache
from daemon.workers.classifier_pool import ClassifierPool
from model.bundle import Bundle


def engine_finding(settings: Settings, bundle: Bundle) -> Finding:
    """The engine's name and what its trial found, or why there is none."""
    one = settings.workers.model_copy(update={"count": 1})
    classifier = ClassifierPool(bundle, one, settings.model.engine, cache=engine_cache(settings))
    try:
        classifier.start()
        return Finding("engine", True, f"{classifier.engine}: {classifier.why}")
    except MammodError as error:
        return Finding("engine", False, str(error))
    finally:
        classifier.stop()
