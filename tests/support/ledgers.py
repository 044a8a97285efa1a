"""Nodes as ledger tests have them."""

from __future__ import annotations

from daemon.ledger import Ledger, nodes
from daemon.ledger.records import NodeFacts
from daemon.nodes.membership import Hold

NODE = "node-1"
BUNDLE = "b" * 64


def facts(lease_s: float = 3600, bundle: str = BUNDLE, process: str = "") -> NodeFacts:
    return NodeFacts("host", 1, process, "127.0.0.1:11112", bundle, "0", lease_s)


def join(ledger: Ledger, node_id: str = NODE, lease_s: float = 3600, bundle: str = BUNDLE) -> str:
    """Make a node known that lives for `lease_s` seconds without a further sign of life."""
    with ledger.write() as connection:
        nodes.join(connection, node_id, facts(lease_s, bundle))
    return node_id


def hold(node_id: str = NODE) -> Hold:
    return Hold(node_id, lambda: False)
