"""The store: a folder, or anything else that obstore opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore

from caption_extents.errors import StoreAccessError, StoreError, UploadError
from caption_extents.storage.keys import check_key


class Store:
    """Objects by key. Puts are atomic: a reader sees a whole object or none."""

    def __init__(self, address: str, folder: Path | None = None) -> None:
        self.address = address
        self.folder = folder
        """Where the objects are files, if the store is a folder."""
        self._memory = MemoryStore() if folder is None else None

    @cached_property
    def _backend(self) -> Any:
        # A folder is made when it is first used, so that a run that is refused leaves nothing behind.
        return self._memory or LocalStore(self.folder, mkdir=True)

    @property
    def _missing(self) -> bool:
        return self.folder is not None and not self.folder.exists()

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Write an object, over an older one if there is one.

        Raises:
            UploadError: it could not be written.
        """
        self._put(key, data, content_type, "overwrite")

    def create(self, key: str, data: bytes, content_type: str) -> bool:
        """Write an object that must not exist yet; False if it does. Of several at once, exactly one succeeds.

        Raises:
            UploadError: it could not be written.
        """
        try:
            self._put(key, data, content_type, "create")
        except AlreadyExistsError:
            return False
        return True

    def _put(self, key: str, data: bytes, content_type: str, mode: Any) -> None:
        # obstore's folder store knows no attributes.
        attributes: Any = None if self.folder is not None else {"Content-Type": content_type}
        try:
            obstore.put(self._backend, check_key(key), data, mode=mode, attributes=attributes, use_multipart=False)
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            raise UploadError(f"could not write {key!r} to {self.address}: {_reason(error)}") from error

    def get(self, key: str) -> bytes:
        """An object's bytes.

        Raises:
            StoreError: there is no such object.
            StoreAccessError: it cannot be read.
        """
        try:
            if self._missing:
                raise FileNotFoundError(self.address)
            with self._access(f"read {key!r}"):
                return bytes(obstore.get(self._backend, check_key(key)).bytes())
        except FileNotFoundError as error:
            raise StoreError(f"{self.address} has no object {key!r}") from error

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key.

        Raises:
            StoreAccessError: the store does not tell.
        """
        try:
            with self._access(f"look for {key!r}"):
                return not self._missing and bool(obstore.head(self._backend, check_key(key)))
        except FileNotFoundError:
            return False

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys under a prefix, which ends at a ``/``.

        Raises:
            StoreAccessError: the prefix cannot be listed.
        """
        if self._missing:
            return
        with self._access(f"list {prefix!r}"):
            for page in obstore.list(self._backend, prefix=prefix):
                yield from (entry["path"] for entry in page)

    def delete(self, keys: list[str]) -> None:
        """Remove objects; missing ones are no error.

        Raises:
            StoreAccessError: one cannot be removed.
        """
        for key in keys:
            with suppress(FileNotFoundError), self._access(f"remove {key!r}"):
                obstore.delete(self._backend, check_key(key))

    @contextmanager
    def _access(self, what: str) -> Iterator[None]:
        """The backend's errors as ours; a missing object stays a FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise StoreAccessError(f"could not {what} in {self.address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first paragraph of an error; what follows is for the library's developers."""
    return str(error).split("\n\n")[0]


def open_store(address: str) -> Store:
    """Open the store of an address: a folder (made if missing), ``file://``, or ``memory://``.

    Raises:
        StoreError: the address is of no known kind, or the folder cannot be made.
    """
    if address.startswith("memory://"):
        return Store(address)
    if "://" in address and not address.startswith("file://"):
        raise StoreError(f"store {address!r} is of no known kind; give a folder, file:// or memory://")
    folder = Path(address.removeprefix("file://")).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"store {address!r} is a file; give a folder")
    return Store(str(folder), folder)
