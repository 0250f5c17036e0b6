"""Objects by key, in any store, with retries in one place and every write verified."""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import obstore
import tenacity
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from caption_extents.errors import StoreAccessError, StoreError, UploadError
from caption_extents.storage.backends import Backend, folder_backend, mask_secrets, open_backend
from caption_extents.storage.download import Download
from caption_extents.storage.keys import check_key

T = TypeVar("T")

log = logging.getLogger(__name__)

_TEMPORARY_NAME = re.compile(r"#\d+$")
"""Of a file that obstore writes, before it gets its own."""

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_PROBE_ATTEMPTS = 4
_FINAL = (FileNotFoundError, AlreadyExistsError, PreconditionError, NotSupportedError, ValueError)
_REFUSED = (PermissionDeniedError, UnauthenticatedError)


@dataclass(frozen=True)
class RetryPolicy:
    """How long a request is tried again: with exponential backoff and jitter, for at most a time.

    Attributes:
        seconds: after this time the request has failed.
        refused_seconds: the same for requests that the store refuses (401, 403): a service that hiccups says so too,
            but wrong credentials should not take a minute to be reported.
        first_pause_seconds, longest_pause_seconds: of the backoff; each pause is a random part of it.
    """

    seconds: float = 60.0
    refused_seconds: float = 8.0
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 5.0


@dataclass(frozen=True)
class ObjectFacts:
    """What a store says of an object without giving it."""

    size_bytes: int
    e_tag: str | None
    last_modified: datetime


class Store:
    """Objects by key. Puts are atomic: a reader sees a whole object or none."""

    def __init__(self, backend: Backend, retry: RetryPolicy | None = None) -> None:
        self.address = backend.address
        self.folder = backend.folder
        """Where the objects are files, if the store is a folder."""
        self._opened = backend.obstore
        self._conditional = backend.conditional
        self._retry = retry or RetryPolicy()
        self._e_tag_is_md5: bool | None = None if backend.conditional is None else False

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    @cached_property
    def _backend(self) -> Any:
        # A folder is made when it is first used, so that a run that is refused leaves nothing behind.
        return folder_backend(self.folder) if self.folder is not None else self._opened

    @property
    def _missing(self) -> bool:
        return self.folder is not None and not self.folder.exists()

    def put(self, key: str, data: bytes, content_type: str) -> str | None:
        """Write an object, over an older one if there is one; what arrived is verified. Returns its entity tag.

        Raises:
            UploadError: it could not be written in time.
        """

        def write() -> str | None:
            e_tag = self._put(key, data, content_type, "overwrite")
            self._verify(key, data, e_tag)
            return e_tag

        return self._with_retries(f"write {key!r} to", write, UploadError)

    def create(self, key: str, data: bytes, content_type: str) -> bool:
        """Write an object that must not exist yet; False if it does. Of several at once, exactly one succeeds.

        Only for stores that honour conditional writes (:meth:`honours_conditions`). The data must differ from what any
        other writer of the key would write: that is how a success whose answer was lost is told from a failure.

        Raises:
            UploadError: it could not be written in time.
        """

        def write() -> bool:
            try:
                self._put(key, data, content_type, "create")
            except AlreadyExistsError:
                try:
                    return bytes(obstore.get(self._backend, key).bytes()) == data
                except FileNotFoundError:
                    # Somebody else's, and gone again.
                    return False
            return True

        return self._with_retries(f"create {key!r} in", write, UploadError)

    def honours_conditions(self, probe: str) -> bool:
        """Whether a put that must create an object fails when there is one; found out once, with the object ``probe``.

        The object stays, for the next who asks: one that each asker made and removed again would be left behind by
        those that are killed in between. Whoever knows when it is no longer of use removes it.
        """
        if self._conditional is None:
            # A store that honours them refuses the second at the latest, unless the object was removed in between.
            attempts = (self.create(probe, uuid.uuid4().bytes, "text/plain") for _ in range(_PROBE_ATTEMPTS))
            self._conditional = not all(attempts)
            if not self._conditional:
                log.warning("%s ignores conditional writes; versions are claimed by the slower protocol", self.address)
        return self._conditional

    def _put(self, key: str, data: bytes, content_type: str, mode: Any) -> str | None:
        # obstore's folder store knows no attributes.
        attributes: Any = None if self.folder is not None else {"Content-Type": content_type}
        done = obstore.put(self._backend, check_key(key), data, mode=mode, attributes=attributes, use_multipart=False)
        return done["e_tag"]

    def _verify(self, key: str, data: bytes, e_tag: str | None) -> None:
        """Compare what arrived with what was sent.

        Most services give an object's MD5 as its tag. Where one does not (encrypted buckets, some gateways), the first
        object is read back once, and the transport's own checks must do from then on.
        """
        if self._e_tag_is_md5 is False:
            return
        match = _MD5.fullmatch(e_tag or "")
        equal = match is not None and match[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()
        if equal:
            self._e_tag_is_md5 = True
        elif bytes(obstore.get(self._backend, key).bytes()) != data:
            raise OSError(f"{key!r} arrived damaged")
        elif self._e_tag_is_md5 is None:
            self._e_tag_is_md5 = False

    def get(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            StoreError: there is no such object.
            StoreAccessError: it cannot be read.
        """
        check_key(key)

        def read() -> bytes:
            if self._missing:
                raise FileNotFoundError(self.address)
            return bytes(obstore.get(self._backend, key).bytes())

        try:
            return self._with_retries(f"read {key!r} from", read)
        except FileNotFoundError as error:
            raise StoreError(f"{self.address} has no object {key!r}") from error

    def download(self, key: str, path: Path, on_bytes: Callable[[int, int], None] | None = None) -> None:
        """Write an object to a file; see :meth:`start_download`."""
        with self.start_download(key, path, on_bytes) as download:
            download.wait()

    def start_download(self, key: str, path: Path, on_bytes: Callable[[int, int], None] | None = None) -> Download:
        """An object on its way into a file, in parts side by side where the store answers range requests.

        Args:
            key: of the object.
            path: of the file, written over if it is there.
            on_bytes: called with the bytes that have come and the object's size, from any thread.

        Raises:
            StoreError: there is no such object.
        """
        facts = self.head(key)
        if facts is None:
            raise StoreError(f"{self.address} has no object {key!r}")
        return Download(self, key, facts, path, on_bytes)

    def answers_ranges(self, key: str, facts: ObjectFacts) -> bool:
        """Whether the store gives a part of an object when asked for one; some gateways give the whole."""
        try:
            return len(self._with_retries(f"read {key!r} from", lambda: self._range(key, facts, 0, 1))) == 1
        except (StoreAccessError, FileNotFoundError):
            return False

    def read_range(self, key: str, facts: ObjectFacts, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of the object that ``facts`` are of.

        Raises:
            StoreAccessError: they cannot be read, or the object was written anew meanwhile.
        """

        def read() -> bytes:
            data = self._range(key, facts, start, end)
            if len(data) != end - start:
                raise OSError(f"{len(data)} of {end - start} bytes came")
            return data

        return self._with_retries(f"read bytes {start} to {end} of {key!r} from", read)

    def _range(self, key: str, facts: ObjectFacts, start: int, end: int) -> bytes:
        options: Any = {"range": (start, end)}
        if facts.e_tag is not None:
            options["if_match"] = facts.e_tag
        return bytes(obstore.get(self._backend, key, options=options).bytes())

    def read_stream(self, key: str, restart: Callable[[], BinaryIO], on_bytes: Callable[[int], None]) -> None:
        """Write an object as it comes to a file that ``restart`` gives anew for each attempt.

        Raises:
            StoreError: there is no such object.
            StoreAccessError: it cannot be read.
        """

        def stream() -> None:
            file = restart()
            for part in obstore.get(self._backend, key).stream(min_chunk_size=1 << 20):
                file.write(part)
                on_bytes(len(part))

        try:
            self._with_retries(f"read {key!r} from", stream)
        except FileNotFoundError as error:
            raise StoreError(f"{self.address} has no object {key!r}") from error

    def head(self, key: str) -> ObjectFacts | None:
        """Size, tag and time of an object; None if there is none.

        Raises:
            StoreAccessError: the store does not tell.
        """
        check_key(key)
        if self._missing:
            return None
        try:
            meta = self._with_retries(f"look for {key!r} in", lambda: obstore.head(self._backend, key))
        except FileNotFoundError:
            return None
        return ObjectFacts(meta["size"], meta["e_tag"], meta["last_modified"])

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        return self.head(key) is not None

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys under a prefix, which ends at a ``/``, in no particular order.

        Raises:
            StoreAccessError: the prefix cannot be listed.
        """

        def list_all() -> list[str]:
            return [entry["path"] for page in obstore.list(self._backend, prefix=prefix) for entry in page]

        if not self._missing:
            yield from self._with_retries(f"list {prefix!r} in", list_all)

    def prefixes(self, prefix: str) -> list[str]:
        """What keys under a prefix begin with, up to the next ``/``: the folders of a folder.

        Raises:
            StoreAccessError: the prefix cannot be listed.
        """
        if self._missing:
            return []
        listing = self._with_retries(
            f"list {prefix!r} in", lambda: obstore.list_with_delimiter(self._backend, prefix=f"{prefix}/")
        )
        return [found.rstrip("/") for found in listing["common_prefixes"]]

    def delete(self, keys: list[str]) -> None:
        """Remove objects; missing ones are no error.

        Raises:
            StoreAccessError: one cannot be removed.
        """
        for key in keys:
            check_key(key)
            try:
                self._with_retries(f"remove {key!r} from", lambda key=key: obstore.delete(self._backend, key))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def delete_below(self, prefix: str) -> None:
        """Remove all objects under a prefix, which ends at a ``/``.

        Raises:
            StoreAccessError: they cannot be listed, or one cannot be removed.
        """
        self.delete(list(self.keys(prefix)))

    def remove_leftovers(self, prefix: str) -> None:
        """In a folder, remove the temporary files of writers that were killed; no listing shows them."""
        if self.folder is not None:
            for path in (self.folder / check_key(prefix)).rglob("*#*"):
                if _TEMPORARY_NAME.search(path.name):
                    path.unlink(missing_ok=True)

    def _with_retries(
        self, what: str, request: Callable[[], T], failure: type[StoreAccessError] = StoreAccessError
    ) -> T:
        """Make a request until it succeeds, fails for good, or its time is over."""
        policy = self._retry
        # A folder answers the same the second time.
        attempts: Any = tenacity.stop_after_attempt(1) if self.folder is not None else _Deadline(policy)
        retrying = tenacity.Retrying(
            stop=attempts,
            wait=tenacity.wait_random_exponential(policy.first_pause_seconds, policy.longest_pause_seconds),
            retry=tenacity.retry_if_exception(
                lambda e: isinstance(e, (BaseError, OSError)) and not isinstance(e, _FINAL)
            ),
            reraise=True,
        )
        try:
            return retrying(request)
        except FileNotFoundError as error:
            if failure is UploadError:  # there is no such bucket
                raise failure(f"could not {what} {self.address}: {_reason(error)}") from error
            raise
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            tried = retrying.statistics.get("attempt_number", 1)
            times = f" ({tried} attempts)" if tried > 1 else ""
            raise failure(f"could not {what} {self.address}{times}: {_reason(error)}") from error


class _Deadline:
    """When to stop retrying: sooner when the store refuses than when it does not answer."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        limit = self._policy.refused_seconds if isinstance(error, _REFUSED) else self._policy.seconds
        return (state.seconds_since_start or 0.0) >= limit


def _reason(error: Exception) -> str:
    """The first paragraph of an error, without secrets; what follows is for the library's developers."""
    return mask_secrets(str(error).split("\n\n")[0])


def open_store(address: str | Path, retry: RetryPolicy | None = None) -> Store:
    """Open the store of an address: a folder (made when something is written), or a URL.

    Raises:
        StoreError: the address is of no known kind, or its settings are not complete.
    """
    return Store(open_backend(str(address)), retry)
