"""Access to objects in any store, with retries, verified writes and conditional writes."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

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
from caption_extents.storage.backends import mask_secrets, open_backend
from caption_extents.storage.bakery import Bakery
from caption_extents.storage.download import Download
from caption_extents.storage.folder import FolderObjects
from caption_extents.storage.keys import check_key
from caption_extents.storage.objects import CREATE, NOT_IMPLEMENTED, Condition, ObjectFacts, Objects, Tag

T = TypeVar("T")

log = logging.getLogger(__name__)

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_NO_TAG = {"e_tag": '"0123456789abcdef0123456789abcdef"', "version": "1"}
"""A tag that no object has, to test whether conditions are honoured."""
_PRECONDITION_ERRORS = (AlreadyExistsError, PreconditionError)
_FINAL = (FileNotFoundError, AlreadyExistsError, PreconditionError, NotSupportedError, ValueError)
_REFUSED = (PermissionDeniedError, UnauthenticatedError)
_AWS_METADATA_URL = "http://169.254.169.254/"
"""Metadata service of AWS; a request to it in an error means that the environment contains no credentials."""


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


class Content(NamedTuple):
    """An object as it was read.

    Attributes:
        data: its bytes.
        tag: what :meth:`Store.replace` needs to replace just this content.
    """

    data: bytes
    tag: Tag


class Store:
    """Objects by key. Puts are atomic: a reader sees a whole object or none.

    :meth:`create` and :meth:`replace` write under a condition. Stores that honour conditional writes check it
    themselves, folders under a lock, and for all others :mod:`~caption_extents.storage.bakery` must do.
    """

    def __init__(self, objects: Objects, retry: RetryPolicy | None = None) -> None:
        self.address = objects.address
        self.folder = objects.folder
        """Where the objects are files, if the store is a folder."""
        self._objects = objects
        self._conditional = objects.conditional
        self._retry = retry or RetryPolicy()
        self._bakery = Bakery()
        self._e_tag_is_md5: bool | None = False if self.folder is not None or objects.conditional else None

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    def with_retry(self, retry: RetryPolicy) -> Store:
        """A view of the same store with another retry policy."""
        other = copy.copy(self)
        other._retry = retry
        return other

    def put(self, key: str, data: bytes, content_type: str) -> Tag:
        """Write an object, over an older one if there is one; what arrived is verified. Returns its tag.

        Raises:
            UploadError: it could not be written in time.
        """
        return self._present(f"write {key!r} to", lambda: self._put(key, data, content_type, None), UploadError)

    def create(self, key: str, data: bytes, content_type: str) -> Tag | None:
        """Write an object that must not exist yet; returns its tag, or None if it exists with other content.

        Of several concurrent calls with different data, exactly one succeeds. An existing object with the same content
        counts as success, because the response to an earlier attempt of this call may have been lost.

        Raises:
            UploadError: it could not be written in time.
        """
        return self._put_if(CREATE, key, data, content_type)

    def replace(self, key: str, data: bytes, tag: Tag, content_type: str) -> Tag | None:
        """Replace an object that still has a tag (compare and swap).

        As with :meth:`create`, an existing object with the new content counts as success.

        Returns:
            The new tag; None if the object has changed or does not exist.

        Raises:
            UploadError: it could not be written in time.
        """
        return self._put_if(tag, key, data, content_type)

    def _put_if(self, condition: Condition, key: str, data: bytes, content_type: str) -> Tag | None:
        conditional = self.honours_conditions(key)

        def write() -> Tag | None:
            try:
                if conditional:
                    return self._put(key, data, content_type, condition)
                check()
                if self._holds(condition, key):
                    return self._put(key, data, content_type, None)
            except _PRECONDITION_ERRORS:
                pass
            except FileNotFoundError:
                if condition is CREATE:  # there is no such bucket
                    raise
            there = self.read(key)
            if there is not None and there.data == data:
                return there.tag
            if there is not None and there.tag == condition:
                raise OSError("refused, although nothing has changed")
            return None

        turn: AbstractContextManager[Callable[[], None]] = (
            nullcontext(lambda: None) if conditional else self._bakery.alone(self, key)
        )
        with turn as check:
            return self._present(f"write {key!r} to", write, UploadError)

    def _holds(self, condition: Condition, key: str) -> bool:
        there = self.read(key)
        return there is None if condition is CREATE else there is not None and there.tag == condition

    def honours_conditions(self, key: str) -> bool:
        """Whether the store honours conditional writes; tested once per process.

        The test writes a probe object, which all runs of a tenant share. It is not removed, and is safe to delete.
        """
        if self._conditional is None:
            if isinstance(self._objects, FolderObjects):
                self._conditional = self._present("write to", self._objects.has_locks, UploadError)
            else:
                self._conditional = self._probe(f"{key.partition('/')[0]}/temporary/conditions/probe")
            if not self._conditional:
                log.warning("%s ignores conditional writes; versions are claimed by the slower protocol", self.address)
        return self._conditional

    def protocol(self, key: str) -> str:
        """How versions are claimed in this store, as text for the `doctor` command; ``key`` must be writable."""
        if not self.honours_conditions(key):
            return (
                "it ignores conditional writes, so versions are claimed by tickets, about eight requests each time; "
                "a process that is stopped in the midst of it is not kept from going on"
            )
        if not isinstance(self._objects, FolderObjects):
            return "versions are claimed by conditional writes, one request each time"
        if self._objects.has_links():
            return "versions are claimed by hard links and a lock on the folder"
        return "it has no hard links, so versions are claimed under a lock on the folder, which costs a millisecond"

    def _probe(self, key: str) -> bool:
        def honoured(condition: Condition) -> bool:
            try:
                self._put(key, uuid.uuid4().bytes, "text/plain", condition)
            except _PRECONDITION_ERRORS:
                return True
            except NotSupportedError:
                return False
            except BaseError as error:
                if NOT_IMPLEMENTED.search(str(error)):
                    return False
                raise
            return False

        what = f"write {key!r} to"
        # The first attempt creates the probe object, unless it exists; the second must be refused.
        creates = [self._present(what, lambda: honoured(CREATE), UploadError) for _ in range(2)]
        return creates[1] and self._present(what, lambda: honoured(_NO_TAG), UploadError)

    def _put(self, key: str, data: bytes, content_type: str, condition: Condition) -> Tag:
        tag = self._objects.put(check_key(key), data, content_type, condition)
        self._verify(key, data, tag.get("e_tag"))
        return tag

    def _verify(self, key: str, data: bytes, e_tag: str | None) -> None:
        """Check that the store received the data that was sent.

        Most services return the MD5 of the data as the entity tag. If a service does not (encrypted buckets, some
        gateways), the first object is read back and compared; later writes rely on the checks of the transport.
        """
        if self._e_tag_is_md5 is False:
            return
        match = _MD5.fullmatch(e_tag or "")
        equal = match is not None and match[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()
        if equal:
            self._e_tag_is_md5 = True
        elif self._objects.get(key)[0] != data:
            raise OSError(f"{key!r} arrived damaged")
        elif self._e_tag_is_md5 is None:
            self._e_tag_is_md5 = False

    def read(self, key: str) -> Content | None:
        """An object's bytes and tag; None if there is none.

        Raises:
            StoreAccessError: it cannot be read.
        """
        check_key(key)
        try:
            return Content(*self._with_retries(f"read {key!r} from", lambda: self._objects.get(key)))
        except FileNotFoundError:
            return None

    def get(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            StoreError: there is no such object.
            StoreAccessError: it cannot be read.
        """
        found = self.read(key)
        if found is None:
            raise self._no_object(key)
        return found.data

    def _no_object(self, key: str) -> StoreError:
        return StoreError(f"{self.address} has no object {key!r}")

    def publish(self, source: str, target: str) -> bool:
        """Copy or rename an object to another key, replacing an object there; returns False if there is no source.

        Once ``source`` has been deleted, a process that was suspended before this call cannot publish it any more.

        Raises:
            UploadError: the store refused or did not answer.
        """
        check_key(target)
        try:
            self._with_retries(
                f"copy {source!r} to {target!r} in", lambda: self._objects.publish(source, target), UploadError
            )
        except FileNotFoundError:
            return False
        return True

    def download(self, key: str, path: Path, on_bytes: Callable[[int, int], None] | None = None) -> None:
        """Write an object to a file; see :meth:`start_download`."""
        with self.start_download(key, path, on_bytes) as download:
            download.wait()

    def start_download(self, key: str, path: Path, on_bytes: Callable[[int, int], None] | None = None) -> Download:
        """Prepare the download of an object to a file, in parallel parts if the store supports range requests.

        Args:
            key: of the object.
            path: of the file, written over if it is there.
            on_bytes: called with the bytes that have come and the object's size, from any thread.

        Raises:
            StoreError: there is no such object.
        """
        facts = self.head(key)
        if facts is None:
            raise self._no_object(key)
        return Download(self, key, facts, path, on_bytes)

    def answers_ranges(self, key: str, facts: ObjectFacts) -> bool:
        """Whether the store supports range requests; some gateways return the whole object."""
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
        return self._objects.get_range(key, start, end, facts.e_tag)

    def read_stream(self, key: str, restart: Callable[[], BinaryIO], on_bytes: Callable[[int], None]) -> None:
        """Stream an object into a file; ``restart`` is called at the start of each attempt and returns the file.

        Raises:
            StoreError: there is no such object.
            StoreAccessError: it cannot be read.
        """

        def stream() -> None:
            file = restart()
            for part in self._objects.stream(key):
                file.write(part)
                on_bytes(len(part))

        try:
            self._with_retries(f"read {key!r} from", stream)
        except FileNotFoundError as error:
            raise self._no_object(key) from error

    def head(self, key: str) -> ObjectFacts | None:
        """Size, tag and time of an object; None if there is none.

        Raises:
            StoreAccessError: the store does not tell.
        """
        check_key(key)
        try:
            return self._with_retries(f"look for {key!r} in", lambda: self._objects.head(key))
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        return self.head(key) is not None

    def entries(self, prefix: str) -> list[ObjectFacts]:
        """Objects under a prefix, which ends at a ``/``, in no particular order.

        Raises:
            StoreAccessError: the prefix cannot be listed.
        """
        return self._present(f"list {prefix!r} in", lambda: self._objects.entries(prefix))

    def keys(self, prefix: str) -> list[str]:
        """Keys under a prefix, which ends at a ``/``, in no particular order.

        Raises:
            StoreAccessError: the prefix cannot be listed.
        """
        return [found.key for found in self.entries(prefix)]

    def prefixes(self, prefix: str) -> list[str]:
        """What keys under a prefix begin with, up to the next ``/``: the folders of a folder.

        Raises:
            StoreAccessError: the prefix cannot be listed.
        """
        return self._present(f"list {prefix!r} in", lambda: self._objects.prefixes(f"{prefix}/"))

    def delete(self, keys: list[str]) -> None:
        """Remove objects; missing ones are no error.

        Raises:
            StoreAccessError: one cannot be removed.
        """
        for key in keys:
            check_key(key)
            try:
                self._with_retries(f"remove {key!r} from", lambda key=key: self._objects.delete(key))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def delete_below(self, prefix: str) -> None:
        """Remove all objects under a prefix, which ends at a ``/``.

        Raises:
            StoreAccessError: they cannot be listed, or one cannot be removed.
        """
        self.delete(self.keys(prefix))

    def remove_leftovers(self, prefix: str) -> None:
        """In a folder, remove the temporary files of writers that were killed; no listing shows them."""
        if isinstance(self._objects, FolderObjects):
            self._objects.remove_leftovers(check_key(prefix))

    def _present(self, what: str, request: Callable[[], T], failure: type[StoreAccessError] = StoreAccessError) -> T:
        """Make a request for which a FileNotFoundError means that the bucket or folder is missing, not an object."""
        try:
            return self._with_retries(what, request, failure)
        except FileNotFoundError as error:
            raise failure(f"could not {what} {self.address}: {_reason(error)}") from error

    def _with_retries(
        self, what: str, request: Callable[[], T], failure: type[StoreAccessError] = StoreAccessError
    ) -> T:
        """Make a request until it succeeds, fails for good, or its time is over.

        Raises:
            FileNotFoundError: there is no such object.
            StoreAccessError: of the kind ``failure``, for every other reason.
        """
        policy = self._retry
        # Requests to a folder are not retried: an error of the file system would occur again.
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
        except (FileNotFoundError, StoreAccessError):
            raise
        except (BaseError, OSError, ValueError) as error:
            tried = retrying.statistics.get("attempt_number", 1)
            times = f" ({tried} attempts)" if tried > 1 else ""
            raise failure(f"could not {what} {self.address}{times}: {_reason(error)}") from error


class _Deadline:
    """When to stop retrying: sooner when the store refuses than when it does not answer."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        refused = isinstance(error, _REFUSED) or _AWS_METADATA_URL in str(error)
        limit = self._policy.refused_seconds if refused else self._policy.seconds
        return (state.seconds_since_start or 0.0) >= limit


def _reason(error: Exception) -> str:
    """The first paragraph of an error's text, without secrets; the rest is debugging output of obstore."""
    # For file errors use only strerror, because the file name may be that of a temporary file.
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if _AWS_METADATA_URL in text:
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return mask_secrets(text.split("\n\n")[0])


def open_store(address: str | Path, retry: RetryPolicy | None = None) -> Store:
    """Open the store of an address: a folder (made when something is written), or a URL.

    Raises:
        StoreError: the address is of no known kind, or its settings are not complete.
    """
    return Store(open_backend(os.fspath(address)), retry)
