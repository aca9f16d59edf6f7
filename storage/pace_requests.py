"""storage/pace.py for the SDKs that rest on requests: Google's and Azure's."""

from __future__ import annotations

from typing import Any

from requests.adapters import HTTPAdapter

from storage.pace import Patience, pools


class PacedAdapter(HTTPAdapter):
    """Of `connections` that are kept; answers come at a pace, nothing is tried again.

    `piece`: bytes of a body's file that go to the socket at once.
    """

    def __init__(self, patience: Patience, connections: int = 10, *, piece: int = 16 << 10) -> None:
        self._pools = pools(patience)
        self._piece = piece
        super().__init__(pool_maxsize=connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, blocksize=self._piece, **more)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        manager = super().proxy_manager_for(proxy, blocksize=self._piece, **more)
        manager.pool_classes_by_scheme = self._pools
        return manager
