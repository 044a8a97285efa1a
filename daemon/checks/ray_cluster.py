"""Check that the Ray cluster accepts an actor and that the actor can open the bundle."""

from __future__ import annotations

from collections.abc import Iterator

from config.errors import MammodError
from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.workers.classifier_pool import ClassifierPool
from model.bundle import Bundle


def cluster_findings(settings: Settings, bundle: Bundle) -> Iterator[Finding]:
    """Start one actor as the service would and end it again; yield nothing if classification is local."""
    if settings.workers.backend != "ray":
        return
    workers = settings.workers.model_copy(update={"classifiers": 1})
    try:
        classifier = ClassifierPool(bundle, workers, settings.model.engine)
        classifier.start()
    except MammodError as error:
        yield Finding("ray", False, str(error))
        return
    trouble, engine = classifier.trouble, classifier.engine
    classifier.stop()
    if trouble:
        yield Finding("ray", False, trouble)
    else:
        yield Finding("ray", True, f"an actor on the cluster at {workers.ray_address} opens the bundle ({engine})")
