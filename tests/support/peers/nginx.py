"""nginx in front of an archive's DICOMweb service, as hospitals put it: TLS both ways and a bearer token."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.peers.certificates import Authority, Files
from tests.support.peers.programs import free_port, program, running

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr info;
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name localhost;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_client_certificate {ca};
        ssl_verify_client on;
        ssl_protocols TLSv1.2 TLSv1.3;
        client_max_body_size 0;
        location / {{
            if ($http_authorization != "Bearer {token}") {{ return 401; }}
            proxy_http_version 1.1;
            proxy_set_header Host $host:{port};
            proxy_pass {upstream};
        }}
    }}
}}
"""


@contextmanager
def running_nginx(folder: Path, upstream: str, certificate: Files, authority: Authority, token: str) -> Iterator[str]:
    """Its https URL in front of `upstream`; it lets in who shows a certificate of `authority`, and the
    `token`.
    """
    executable = program("nginx")
    folder.mkdir(parents=True)
    port = free_port()
    settings = folder / "nginx.conf"
    settings.write_text(
        CONFIGURATION.format(
            folder=folder,
            port=port,
            certificate=certificate.certificate,
            key=certificate.key,
            ca=authority.file,
            token=token,
            upstream=upstream,
        )
    )

    def ready() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            return False
        return True

    command = [executable, "-p", str(folder), "-e", "stderr", "-c", str(settings)]
    with running(command, folder / "nginx.log", ready):
        yield f"https://localhost:{port}"
