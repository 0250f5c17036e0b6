"""From a store's address to its objects, with credentials from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import MemoryStore, S3Store, from_url

from caption_extents.errors import StoreError
from caption_extents.storage.folder import FolderObjects
from caption_extents.storage.objects import CloudObjects, Objects

KINDS = "a folder, file://, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or memory://"

_CLIENT_OPTIONS: dict[str, Any] = {"timeout": "1h", "read_timeout": "30s", "connect_timeout": "5s"}
"""Timeouts: a request may take up to an hour on a slow connection, as long as data keeps arriving."""

_NO_RETRIES: dict[str, Any] = {"max_retries": 0}
"""Retrying is done in one place: :class:`~caption_extents.storage.store.Store` knows of refusals and lost answers."""

_WASABI = {
    "key": "WASABI_ACCESS_KEY_READWRITE",
    "secret": "WASABI_SECRET_KEY_READWRITE",
    "bucket": "WASABI_BUCKET",
    "region": "WASABI_REGION",
}

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|SAS", re.IGNORECASE)


_CREDENTIALS = re.compile(r"://[^@]*:[^@]*@|[?#]")
"""Matches credentials in a URL, which `urlsplit` misses if a secret contains a slash."""


def open_backend(address: str, environment: Mapping[str, str] = os.environ) -> Objects:
    """Open the store of an address.

    S3 settings come from the usual variables (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``,
    ``AWS_REGION``, ``AWS_ENDPOINT_URL``), or from ``WASABI_ACCESS_KEY_READWRITE``, ``WASABI_SECRET_KEY_READWRITE`` and
    ``WASABI_REGION`` when the bucket is that of ``WASABI_BUCKET``.

    Raises:
        StoreError: the address is of no known kind, or its settings are not complete.
    """
    scheme = urlsplit(address).scheme if "://" in address else ""
    if scheme in {"", "file"}:
        return _open_folder(address)
    if scheme == "memory":
        return CloudObjects(MemoryStore(), "memory://", conditional=True)
    parts = urlsplit(address)
    if parts.username or parts.password or _CREDENTIALS.search(address):
        raise StoreError(
            f"a store's address of kind {scheme}:// carries credentials; give them in the environment instead"
        )
    if scheme not in {"s3", "gs", "az"} or not parts.netloc:
        raise StoreError(f"store {address!r} is of no known kind; give {KINDS}")
    prefix = parts.path.strip("/") or None
    try:
        if scheme == "s3":
            opened: Any = S3Store(parts.netloc, prefix=prefix, **_s3_settings(parts.netloc, environment))
        else:
            opened = from_url(address, client_options=_CLIENT_OPTIONS, retry_config=_NO_RETRIES)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise StoreError(f"store {address!r} cannot be opened: {mask_secrets(str(error), environment)}") from None
    return CloudObjects(opened, address.rstrip("/"), conditional=None)


def _open_folder(address: str) -> FolderObjects:
    path = unquote(address.removeprefix("file://")) if address.startswith("file://") else address
    folder = Path(path).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"store {address!r} is a file; give a folder")
    return FolderObjects(folder)


def _s3_settings(bucket: str, environment: Mapping[str, str]) -> dict[str, Any]:
    key: str | None
    secret: str | None
    values = {name: environment.get(variable) for name, variable in _WASABI.items()}
    if values["key"] and values["secret"] and values["bucket"] == bucket:
        region = values["region"] or "us-east-1"
        endpoint: str | None = f"https://s3.{region}.wasabisys.com"
        key, secret, token = values["key"], values["secret"], None
    else:
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
        endpoint = (
            environment.get("AWS_ENDPOINT_URL_S3")
            or environment.get("AWS_ENDPOINT_URL")
            or environment.get("AWS_ENDPOINT")
        )
        key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
        token = environment.get("AWS_SESSION_TOKEN")
    settings: dict[str, Any] = {
        "region": region,
        # Services other than AWS are reached by path: their certificates need not cover bucket names.
        "virtual_hosted_style_request": endpoint is None,
        "client_options": {**_CLIENT_OPTIONS, "allow_http": bool(endpoint and endpoint.startswith("http://"))},
        "retry_config": _NO_RETRIES,
    }
    optional = {"endpoint": endpoint, "access_key_id": key, "secret_access_key": secret, "token": token}
    return {**settings, **{name: value for name, value in optional.items() if value}}


def mask_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with every secret of the environment replaced by stars."""
    for name, value in environment.items():
        if len(value) >= 6 and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return text
