"""Who may call and what they may do: `listener.peers` applied to an AE title at an address."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from pynetdicom.sop_class import Verification

from config.settings import Peer


def entries_for(peers: Iterable[Peer], ae_title: str, address: str) -> list[Peer]:
    """The entries that name this AE title at this address; an IPv4 address seen through IPv6 counts as itself."""
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
    """Those of the `supported` SOP Classes that a peer with these entries may not use.

    Verification is "echo"; all else, storage commitment results among it, is "store".
    """
    may = {permission for peer in entries for permission in peer.permissions}
    return frozenset(uid for uid in supported if ("echo" if uid == Verification else "store") not in may)
