"""STOW-RS, QIDO-RS and WADO-RS by https with a token: nginx in front of Orthanc.

Debian's Orthanc 1.10 cannot do https itself: it ends by a segmentation fault at the first handshake.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from config.settings import TLS
from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.archive.query_retrieve import RetrieveKind, Wanted
from daemon.errors import ArchiveError
from daemon.events.outcomes import StoreOutcomeKind
from tests.support.archive_stubs import outgoing
from tests.support.peers.archives import running_orthanc
from tests.support.peers.certificates import Authority
from tests.support.peers.nginx import running_nginx

pytestmark = pytest.mark.peers


def test_reports_go_out_and_images_come_in_by_https_with_certificate_and_token(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "certificates"), Authority(tmp_path / "others")
    theirs, ours = authority.issue("archive"), authority.issue("mammod").tls(authority.file)
    (tmp_path / "token").write_text("right.token")
    (tmp_path / "wrong").write_text("wrong.token")
    with (
        running_orthanc(tmp_path / "orthanc", dicomweb=True) as orthanc,
        running_nginx(tmp_path / "nginx", orthanc.url, theirs, authority, "right.token") as url,
    ):

        def archive(tls: TLS, token: str, to: str = url) -> Archive:
            web = {
                "stow_url": f"{to}/dicom-web/studies",
                "dicomweb_token_file": tmp_path / token,
                "retrieve": "dicomweb",
            }
            return Archive(ArchiveSettings(**web, tls=tls, timeout_s=20), "MAMMOD", tmp_path)

        items = [outgoing(tmp_path) for _ in range(2)]
        good = archive(ours, "token")
        good.echo()
        assert [outcome.kind for outcome in good.store(items)] == [StoreOutcomeKind.STORED] * 2
        assert sorted(orthanc.instances()) == sorted(item.sop_instance_uid for item in items)

        wanted = [Wanted(None, None, item.sop_instance_uid) for item in items]
        found = good.find_instances(wanted)
        taken = {}
        outcomes = good.get_instances(
            found, lambda incoming: taken.update({incoming.sop_instance_uid: incoming.path.read_bytes()})
        )
        assert [outcome.kind for outcome in outcomes] == [RetrieveKind.RETRIEVED] * 2
        assert {uid: dcmread(BytesIO(file)) for uid, file in taken.items()} == {
            item.sop_instance_uid: dcmread(item.path) for item in items
        }

        for item in items:
            orthanc.delete(item.sop_instance_uid)
        for refused, said in (
            (archive(ours, "wrong"), "HTTP 401"),
            (archive(stranger.issue("mammod").tls(authority.file), "token"), "HTTP 400"),
            (archive(authority.issue("other").tls(stranger.file), "token"), "SSLCertVerificationError"),
            (archive(ours, "token", url.replace("localhost", "127.0.0.1")), "SSLCertVerificationError"),
        ):
            [outcome] = refused.store(items[:1])
            assert outcome.kind is not StoreOutcomeKind.STORED and said in outcome.reason
            [outcome] = refused.get_instances(found[:1], lambda incoming: pytest.fail("something came"))
            assert outcome.kind in (RetrieveKind.RETRY, RetrieveKind.FAILED) and said in outcome.reason
        with pytest.raises(ArchiveError, match="HTTP 401"):
            archive(ours, "wrong").find_instances(wanted)
        assert orthanc.instances() == []
