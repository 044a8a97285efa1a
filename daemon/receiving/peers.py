"""Applies `listener.peers` to an AE title at an address: who may call, and what they may do."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from config.settings import Peer
from daemon.dicom.sop_classes import VERIFICATION


def entries_for(peers: Iterable[Peer], ae_title: str, address: str) -> list[Peer]:
    """Return the entries for an AE title at an address; an IPv4 address mapped to IPv6 counts as IPv4."""
    source = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped:
        source = source.ipv4_mapped
    return [
        peer
        for peer in peers
        if peer.ae_title == ae_title
        and (not peer.networks or any(source in ipaddress.ip_network(network) for network in peer.networks))
    ]


def denied_classes(entries: Sequence[Peer], supported: Iterable[str]) -> frozenset[str]:
    """Return which of the `supported` SOP Classes a peer with these entries may not use.

    Verification needs the permission "echo"; all else, storage commitment results included, needs "store".
    """
    permitted = {permission for peer in entries for permission in peer.permissions}
    return frozenset(uid for uid in supported if ("echo" if uid == VERIFICATION else "store") not in permitted)
