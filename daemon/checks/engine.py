"""Check which engine the service would use, by starting it."""

from __future__ import annotations

from config.errors import MammodError
from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.workers.bundle_source import engine_cache
from daemon.workers.classifier_pool import ClassifierPool
from model.bundle import Bundle


def engine_finding(settings: Settings, bundle: Bundle) -> Finding:
    """Return the engine's name and the result of its equivalence check, or why it cannot start."""
    workers = settings.workers.model_copy(update={"classifiers": 1})
    classifier = ClassifierPool(bundle, workers, settings.model.engine, cache=engine_cache(settings))
    try:
        classifier.start()
        return Finding("engine", True, f"{classifier.engine}: {classifier.why}")
    except MammodError as error:
        return Finding("engine", False, str(error))
    finally:
        classifier.stop()
