"""A source as a file to read from, for the SDKs."""

from __future__ import annotations

from storage.protocol import Source, chunks


class Reader:
    """Reads a source once, front to back. A chunk is asked for when its turn comes, and let go once it is read."""

    def __init__(self, source: Source) -> None:
        self._chunks = iter(chunks(source))
        self._chunk = memoryview(b"")
        self._back = b""
        self.given = 0  # bytes

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end. What iterating over the source raises passes unchanged."""
        if self._back:
            block, self._back = self._back, b""
            return block
        pieces: list[memoryview] = []
        left = size
        while left:
            if not self._chunk:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                view = memoryview(chunk)
                self._chunk = view.cast("B") if view.nbytes else memoryview(b"")  # one without elements can't be cast
            pieces.append(self._chunk[:left])
            self._chunk = self._chunk[left:]
            left -= len(pieces[-1])
        self.given += size - left
        if len(pieces) == 1 and isinstance(whole := pieces[0].obj, bytes) and len(whole) == size - left:
            return whole  # no copy
        return b"".join(pieces)

    def take_back(self, block: bytes) -> None:
        """Give this block, of the size that will be asked for, once more."""
        self._back = block
