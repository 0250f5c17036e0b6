"""Objects by key in one place, a cloud's bucket or a folder: what :class:`~caption_extents.storage.store.Store` needs.

Retries, verification and the package's errors are the store's; here each call is one request. A missing object is a
``FileNotFoundError``; a condition that does not hold is obstore's ``AlreadyExistsError`` or ``PreconditionError``.
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

from caption_extents.watchdog import all_alive

_PIECE_BYTES = 1 << 18
NOT_IMPLEMENTED = re.compile(r"\b501\b|NotImplemented")
"""What a service says of a request that it does not know."""

Tag = Mapping[str, str]
"""What tells one content of an object from another, as the store gives it: opaque, but for ``e_tag`` of a cloud."""


@dataclass(frozen=True)
class ObjectFacts:
    """What a store says of an object without giving it."""

    key: str
    size_bytes: int
    modified: datetime
    e_tag: str | None = None


class Create:
    """The condition that an object must not exist yet."""


CREATE: Final = Create()
Condition = Create | Tag | None
"""Of a put: the object must not exist yet, must still have this tag, or nothing."""


class Objects(Protocol):
    """Objects in one place. A put is atomic: a reader sees the whole old or the whole new object."""

    address: str
    """For messages; holds no secret."""
    folder: Path | None
    """Where the objects are files, if they are."""
    conditional: bool | None
    """Whether conditions of puts are honoured; None where that must be found out."""

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
        """What keys under a prefix, which ends at a ``/``, begin with up to the next ``/``, without that."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object."""
        ...

    def publish(self, source: str, target: str) -> None:
        """Let an object appear under another key at once, over what is there; it may keep its old key too.

        Fails if it is gone, however long ago the caller decided on this.
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
            all_alive()  # on a slow line a part of a file takes minutes
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
            # A service that copies nothing: the object is read and written, which a stopped process may do late.
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
