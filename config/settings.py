"""The settings schema: one TOML file, any key overridden by the environment as MAMMOD_<SECTION>__<KEY>.

`config/mammod.toml` documents every section and key; a test compares its values with the defaults here.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.lesion_terms import LESION_CODES, LESION_WORDS, NOT_LESION_CODES, NOT_LESION_WORDS
from config.renamed import use_new_names

ENVIRONMENT_PREFIX = "MAMMOD_"


def _ae_title(value: Any) -> Any:
    if isinstance(value, str):
        stripped = value.strip()
        if not 1 <= len(stripped) <= 16 or "\\" in stripped or not stripped.isascii() or not stripped.isprintable():
            raise ValueError("an AE title is 1 to 16 printable ASCII characters without a backslash (PS3.5 6.2)")
        return stripped
    return value


AETitle = Annotated[str, BeforeValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]


CREDENTIALS = "$CREDENTIALS_DIRECTORY/"
UNIT_CREDENTIALS = Path("/run/credentials/mammod.service")


def _credential(value: Any) -> Any:
    """Resolve a path that begins with $CREDENTIALS_DIRECTORY/, a credential of systemd (systemd.exec(5))."""
    if isinstance(value, str) and value.startswith(CREDENTIALS):
        # Outside the unit, as for `mammod check`: the folder of the running unit.
        return Path(os.environ.get("CREDENTIALS_DIRECTORY") or UNIT_CREDENTIALS) / value.removeprefix(CREDENTIALS)
    return value


SecretFile = Annotated[Path, BeforeValidator(_credential)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _use_new_names(cls, values: Any) -> Any:
        return use_new_names(cls.__name__.lower(), values)


class TLS(_Section):
    """PEM files for DICOM TLS; the peer's certificate must be signed by `ca`."""

    certificate: SecretFile
    key: SecretFile
    ca: SecretFile


class Peer(_Section):
    """A permitted caller: AE title, networks it may call from (empty: any) and permissions."""

    ae_title: AETitle
    networks: tuple[str, ...] = ()
    permissions: tuple[Literal["store", "echo"], ...] = Field(("store", "echo"), min_length=1)

    @field_validator("networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks


class Listener(_Section):
    """The SCP that receives images and lesion objects."""

    ae_title: AETitle = "MAMMOD"
    host: str = "0.0.0.0"
    port: Port = 11112
    called_ae_required: bool = True
    peers: tuple[Peer, ...] = ()
    processes: int = Field(0, ge=0, le=64)
    max_associations: int = Field(50, ge=1, le=10_000)
    max_associations_per_address: int = Field(25, ge=1, le=10_000)
    max_connections: int = Field(1000, ge=1, le=100_000)
    max_connections_per_address: int = Field(100, ge=1, le=100_000)
    request_timeout_s: float = Field(30, gt=0)
    max_pdu: int = Field(131_072, ge=4_096, le=1_048_576)
    max_instance: ByteSize = ByteSize(4 * 1024**3)
    network_timeout_s: float = Field(60, gt=0)
    tls: TLS | None = None


def _retrieve(value: Any) -> Any:
    return {True: "c-get", False: "off"}.get(value, value) if isinstance(value, bool) else value


class Archive(_Section):
    """Where reports are stored and missing images are retrieved."""

    ae_title: AETitle = "ARCHIVE"
    host: str | None = None
    port: Port = 104
    tls: TLS | None = None
    retrieve: Annotated[Literal["off", "c-get", "c-move", "dicomweb"], BeforeValidator(_retrieve)] = "off"
    retrieve_after_s: float = Field(60, ge=0)
    dicomweb_url: str | None = Field(None, repr=False)  # may hold a token
    stow_url: str | None = Field(None, repr=False)  # may hold a token
    dicomweb_token_file: SecretFile | None = None
    timeout_s: float = Field(60, gt=0)
    retry_first_s: float = Field(10, gt=0)
    retry_max_s: float = Field(900, gt=0)
    commitment: bool = False
    commitment_timeout_s: float = Field(300, gt=0)
    commitment_attempts: int = Field(5, ge=1, le=1000)


class Spool(_Section):
    """Where received instances and unsent reports are kept: a directory, or a bucket with local copies."""

    directory: Path = Path("/var/lib/mammod/spool")
    min_free: ByteSize = ByteSize(2 * 1024**3)
    url: Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?$")] | None = None
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/@?#\s]+/?$")] | None = None  # no user, password or token
    ca: Path | None = None
    credentials_file: Path | None = None
    cache: ByteSize = ByteSize(20 * 1024**3)

    @model_validator(mode="after")
    def _are_of_the_bucket(self) -> Self:
        alone = [name for name in ("endpoint", "ca", "credentials_file") if getattr(self, name) is not None]
        if alone and self.url is None:
            raise ValueError(f"{' and '.join(alone)} belong to a bucket; set url to s3://bucket/prefix, or remove them")
        return self


class Ledger(_Section):
    """The database of instances, jobs and reports."""

    url: str | None = Field(None, repr=False)  # may hold a password
    password_file: Path | None = None
    lease_s: float = Field(30, ge=2, le=3600)


class Model(_Section):
    """The bundle that classifies, and the engine that runs it."""

    bundle: Path | None = None
    engine: Literal["auto", "tensorflow", "openvino"] = "auto"


class Workers(_Section):
    """Processes that decode and classify."""

    classifiers: int = Field(0, ge=0, le=64)
    decoders: int = Field(0, ge=0, le=256)
    decode_timeout_s: float = Field(300, gt=0)
    decoder_memory: ByteSize = Field(ByteSize(4 * 1024**3), ge=512 * 1024**2)
    backend: Literal["local", "ray"] = "local"
    ray_address: Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")] | None = None
    ray_gpus: float = Field(0, ge=0, le=64)
    ray_cpus: float = Field(1, ge=0, le=256)
    max_batch: int = Field(8, ge=1, le=256)
    max_wait_ms: float = Field(5, ge=0, le=10_000)

    @model_validator(mode="after")
    def _ray_has_a_cluster(self) -> Self:
        if self.backend == "ray" and self.ray_address is None:
            raise ValueError('backend = "ray" needs ray_address, the host:port of the cluster\'s head')
        return self


ListedCode = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,16}:[^:\s]{1,64}$")]
Word = Annotated[str, Field(min_length=2, max_length=64)]


class Lesions(_Section):
    """Which marks count as lesions, and which images are classified."""

    not_lesions: tuple[ListedCode, ...] = NOT_LESION_CODES
    lesion_codes: tuple[ListedCode, ...] = LESION_CODES
    not_lesion_words: tuple[Word, ...] = NOT_LESION_WORDS
    lesion_words: tuple[Word, ...] = LESION_WORDS
    lymph_nodes: bool = False
    image_classes: tuple[Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")], ...] = ()
    max_image_fraction: float = Field(0.3, gt=0, le=1)
    max_extent_mm: float = Field(150, gt=0)
    max_outside_fraction: float = Field(0.5, ge=0, le=1)
    min_area_px: float = Field(1, ge=0)
    outside_intended_use: Literal["leave_out", "mark"] = "leave_out"
    scale_segmentations: bool = False
    max_per_object: int = Field(250, ge=1, le=10_000)


class Reports(_Section):
    """Which reports are made of a lesion object."""

    # Only kinds that `daemon.reports.registry` can build.
    kinds: tuple[Literal["tid1500", "mammo-cad-sr", "gsps", "sc"], ...] = Field(("tid1500",), min_length=1)
    on_nothing: bool = False
    on_failure: bool = False

    @field_validator("kinds")
    @classmethod
    def _are_named_once(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError("a kind of report is listed twice; list each once")
        return kinds

    @model_validator(mode="after")
    def _can_say_it(self) -> Reports:
        if (self.on_nothing or self.on_failure) and "tid1500" not in self.kinds:
            raise ValueError('on_nothing and on_failure make reports of the kind "tid1500"; add it to kinds')
        return self


class Retention(_Section):
    """When finished work is deleted, by age and by size."""

    finished_days: float = Field(30, gt=0)
    quarantined_days: float = Field(90, gt=0)
    max_bytes: ByteSize | None = None
    max_disk_fraction: float | None = Field(None, gt=0, le=1)


class Status(_Section):
    """Where the status page and the metrics are served."""

    host: str = "127.0.0.1"
    port: Port = 11180


class Audit(_Section):
    """Destinations of audit messages (PS3.15 A.5)."""

    file: Path | None = None
    syslog: Annotated[str, Field(pattern=r"^(udp|tls)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?$")] | None = (
        None
    )
    tls: TLS | None = None
    site: str | None = None

    @field_validator("syslog")
    @classmethod
    def _can_be_called(cls, syslog: str | None) -> str | None:
        if syslog is not None:
            where = urlsplit(syslog)
            if where.port == 0:
                raise ValueError("a port is 1 to 65535")
            (where.hostname or "").encode("idna")  # as in a name lookup: rejects empty and overlong labels
        return syslog

    @model_validator(mode="after")
    def _tls_has_files(self) -> Self:
        if self.syslog is not None and self.syslog.startswith("tls://") and self.tls is None:
            raise ValueError("audit.syslog by TLS needs audit.tls: certificate, key and ca")
        return self


class Service(_Section):
    """Limits of the service process itself."""

    shutdown_timeout_s: float = Field(60, gt=0)


class Log(_Section):
    """Level and format of the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(BaseSettings):
    """All settings, immutable; created by `config.loading.load_settings`, which words errors for people."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    listener: Listener = Listener()
    archive: Archive = Archive()
    spool: Spool = Spool()
    ledger: Ledger = Ledger()
    model: Model = Model()
    workers: Workers = Workers()
    lesions: Lesions = Lesions()
    reports: Reports = Reports()
    retention: Retention = Retention()
    status: Status = Status()
    audit: Audit = Audit()
    service: Service = Service()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file, whose content arrives as init values."""
        return env_settings, init_settings

    @property
    def ledger_url(self) -> str:
        """Return the ledger's SQLAlchemy URL; by default a SQLite file in the spool directory."""
        return self.ledger.url or f"sqlite:///{self.spool.directory / 'ledger.sqlite'}"
