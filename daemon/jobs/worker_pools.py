"""Decoders and classifier of one bundle, started and stopped together, and the pipeline through them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from config.settings import Settings
from daemon.jobs.pipeline import Pipeline
from daemon.workers.bundle_source import algorithm
from daemon.workers.classifier_pool import ClassifierPool
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import Bundle


@dataclass(frozen=True, eq=False)
class WorkerPools:
    """Both pools, and the pipeline that uses them."""

    decoders: DecoderPool
    classifier: ClassifierPool
    pipeline: Pipeline

    def start(self) -> None:
        """Start both pools and return when the classifier is ready.

        Raises:
            ClassifierError, ConfigurationError: see `ClassifierPool.start`.
        """
        self.decoders.start()
        self.classifier.start()

    def stop(self) -> None:
        """Finish what is under way and end the processes."""
        self.classifier.stop()
        self.decoders.stop()


def make_pools(bundle: Bundle, settings: Settings, *, decoders: int, cache: Path | None = None) -> WorkerPools:
    """Return pools of `decoders` decoder processes and `workers.classifiers` classifiers, not started yet.

    An engine keeps its converted network in the folder `cache`.

    Raises:
        ConfigurationError: the backend needs an extra that is not installed.
    """
    decoder_pool = DecoderPool(decoders, bundle.manifest, settings.workers)
    classifier_pool = ClassifierPool(bundle, settings.workers, settings.model.engine, cache=cache)
    pipeline = Pipeline(decoder_pool, classifier_pool, algorithm(bundle), bundle.digest)
    return WorkerPools(decoder_pool, classifier_pool, pipeline)
