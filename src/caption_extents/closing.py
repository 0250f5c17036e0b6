"""Context managers that close themselves."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class ClosesItself:
    """A context manager that gives itself, and calls its ``close`` at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what it takes."""
        raise NotImplementedError
