"""A source as a file to read from, for the SDKs."""

from __future__ import annotations

from collections import deque

from storage.protocol import Source, views


class Reader:
    """Reads a source once, front to back. A chunk is let go once it is read."""

    def __init__(self, source: Source) -> None:
        self._views = views(source)
        self._ahead: deque[memoryview] = deque()  # chunks that were asked for and not read
        self.given = 0  # bytes
        self.failure: BaseException | None = None  # what the source raised

    def holds(self, size: int) -> bool:
        """Whether there are so many bytes still; their chunks are asked for, and not copied."""
        have = sum(view.nbytes for view in self._ahead)
        while have < size and (view := self._next()) is not None:
            self._ahead.append(view)
            have += view.nbytes
        return have >= size

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end. What iterating over the source raises passes unchanged."""
        pieces: list[memoryview] = []
        left = size
        while left and (view := self._ahead.popleft() if self._ahead else self._next()) is not None:
            pieces.append(view[:left])
            left -= len(pieces[-1])
            if len(pieces[-1]) < len(view):
                self._ahead.appendleft(view[len(pieces[-1]) :])
        self.given += size - left
        if len(pieces) == 1 and isinstance(whole := pieces[0].obj, bytes) and len(whole) == size - left:
            return whole  # no copy
        return b"".join(pieces)

    def _next(self) -> memoryview | None:
        try:
            return next(self._views, None)
        except BaseException as e:
            self.failure = e
            raise
