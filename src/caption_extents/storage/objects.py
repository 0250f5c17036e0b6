"""The low-level interface to the objects of a bucket or folder, below :class:`~caption_extents.storage.store.Store`.

Each method makes one request. Retries, verification and conversion of errors are done by the store. A missing object
raises ``FileNotFoundError``; a condition that does not hold raises obstore's ``AlreadyExistsError`` or
``PreconditionError``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import obstore
from obstore.exceptions import BaseError, NotSupportedError

from caption_extents.watchdog import report_progress_for_all

_PIECE_BYTES = 1 << 18
NOT_IMPLEMENTED = re.compile(r"\b501\b|NotImplemented")
"""What a service says of a request that it does not know."""

Tag = Mapping[str, str]
"""Identifies one content of an object, as returned by the store. It is opaque, except for ``e_tag`` of cloud stores."""


@dataclass(frozen=True)
class ObjectFacts:
    """Metadata of an object: key, size, modification time and entity tag."""

    key: str
    size_bytes: int
    modified: datetime
    e_tag: str | None = None


class Create:
    """The condition that an object must not exist yet."""


CREATE: Final = Create()
Condition = Create | Tag | None
"""Condition of a put: the object must not exist yet (``CREATE``), must still have a tag, or None for no condition."""


class Objects(Protocol):
    """Objects in one place. A put is atomic: a reader sees the whole old or the whole new object."""

    address: str
    """Address of the store for messages; contains no secrets."""
    folder: Path | None
    """The folder, if the objects are files; else None."""
    conditional: bool | None
    """Whether the store honours conditions of puts; None if this is not known yet."""

    def put(self, key: str, data: bytes, content_type: str, condition: Condition = None) -> Tag:
        """Write an object; its new tag."""
        ...

    def get(self, key: str) -> tuple[bytes, Tag]:
        """An object, and the tag of what was read."""
        ...

    def get_range(self, key: str, start: int, end: int, e_tag: str | None) -> bytes:
        """Some bytes of an object that still has the tag."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """An object in parts."""
        ...

    def head(self, key: str) -> ObjectFacts:
        """Size and time of an object."""
        ...

    def entries(self, prefix: str) -> list[ObjectFacts]:
        """All objects under a prefix, which ends at a ``/``, in no particular order."""
        ...

    def prefixes(self, prefix: str) -> list[str]:
        """Common prefixes below a prefix, which ends with ``/``: each up to the next ``/``, which is not included."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object."""
        ...

    def publish(self, source: str, target: str) -> None:
        """Copy or rename an object to another key atomically, replacing an object there.

        Raises FileNotFoundError if the source has been deleted.
        """
        ...


class CloudObjects:
    """An object store that obstore knows."""

    folder: Path | None = None

    def __init__(self, backend: Any, address: str, conditional: bool | None) -> None:
        self.backend, self.address, self.conditional = backend, address, conditional

    def put(self, key: str, data: bytes, content_type: str, condition: Condition = None) -> Tag:
        """See :class:`Objects`."""
        mode: Any = "overwrite"
        if condition is not None:
            mode = "create" if isinstance(condition, Create) else dict(condition)
        attributes: Any = {"Content-Type": content_type}
        done = obstore.put(self.backend, key, data, mode=mode, attributes=attributes, use_multipart=False)
        return _tag(done, data)

    def get(self, key: str) -> tuple[bytes, Tag]:
        """See :class:`Objects`."""
        found = obstore.get(self.backend, key)
        data = bytes(found.bytes())
        return data, _tag(found.meta, data)

    def get_range(self, key: str, start: int, end: int, e_tag: str | None) -> bytes:
        """See :class:`Objects`."""
        options: Any = {"range": (start, end)}
        if e_tag is not None:
            options["if_match"] = e_tag
        parts = []
        for part in obstore.get(self.backend, key, options=options).stream(min_chunk_size=_PIECE_BYTES):
            parts.append(bytes(part))
            report_progress_for_all()  # on a slow line a part of a file takes minutes
        return b"".join(parts)

    def stream(self, key: str) -> Iterator[bytes]:
        """See :class:`Objects`."""
        yield from map(bytes, obstore.get(self.backend, key).stream(min_chunk_size=1 << 20))

    def head(self, key: str) -> ObjectFacts:
        """See :class:`Objects`."""
        return _facts(obstore.head(self.backend, key))

    def entries(self, prefix: str) -> list[ObjectFacts]:
        """See :class:`Objects`."""
        return [_facts(entry) for page in obstore.list(self.backend, prefix=prefix) for entry in page]

    def prefixes(self, prefix: str) -> list[str]:
        """See :class:`Objects`."""
        found = obstore.list_with_delimiter(self.backend, prefix=prefix)["common_prefixes"]
        return [name.rstrip("/") for name in found]

    def delete(self, key: str) -> None:
        """See :class:`Objects`."""
        obstore.delete(self.backend, key)

    def publish(self, source: str, target: str) -> None:
        """See :class:`Objects`."""
        try:
            obstore.copy(self.backend, source, target)
        except BaseError as error:
            if not isinstance(error, NotSupportedError) and not NOT_IMPLEMENTED.search(str(error)):
                raise
            # The service has no copy operation. Reading and writing is not atomic: a suspended process may write late.
            data = bytes(obstore.get(self.backend, source).bytes())
            obstore.put(self.backend, target, data, attributes={"Content-Type": "application/json"})


def content_tag(data: bytes) -> Tag:
    """A tag where the store gives none."""
    return {"sha256": hashlib.sha256(data).hexdigest()}


def _tag(meta: Any, data: bytes) -> Tag:
    # obstore refuses a tag one of whose parts is None.
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None} or content_tag(data)


def _facts(meta: Any) -> ObjectFacts:
    return ObjectFacts(meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])
