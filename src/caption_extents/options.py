"""The options of a job with their defaults, bounds and descriptions. All other modules take them from here."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from caption_extents.errors import InputError
from caption_extents.machine import memory_bytes, usable_cores
from caption_extents.region import CropRegion, plain_number
from caption_extents.watchdog import DEFAULT_STALL_SECONDS

if TYPE_CHECKING:
    from caption_extents.model.interface import PairModel
    from caption_extents.pipeline.clocks import ProgressCallback

IMPLEMENTATION_NAMES = ("pipelined", "sequential")
REMOTE_ENCODER_NAMES = ("ray", "modal")
PRESET_NAMES = ("fast", "balanced", "reference", "archive")
ENCODER_NAMES = ("auto", "threads", "processes", *REMOTE_ENCODER_NAMES)
DEFAULT_STORE = "caption-extents-store"
DEFAULT_ENCODER_WORKERS = 4

VIDEOS_AT_ONCE = 4
"""Videos that an engine decodes at once on a GPU: while some are opened, the decoders work on the others."""

CALLS_AT_ONCE = 12 * VIDEOS_AT_ONCE
"""Videos that an engine has at once on a GPU: most wait for the store or for encoders, at the start of a list for the
model."""

_MEMORY_SHARE = 0.25
"""Share of the machine's memory that the samples in flight of all videos together may take by default."""

MAX_FRAME_RATE = 240
MAX_WORKERS = 256
MAX_STREAMS = 200
LONGEST_ID = 128
"""Characters of a tenant's or a video's id."""

_MAX_ENCODERS_OF_MACHINE = 64
"""Upper bound of the default number of encoders: each takes memory, and no decoder is fast enough for more."""
MAX_INFERENCE_THREADS = 16
"""Upper bound of the default."""
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_ID - 1}}}")
_ID_DIGITS = 8
"""Hexadecimal digits of the digest that is appended to an id if letters of the name were dropped."""

Check = Callable[[str, Any], Any]
"""From an option's name and value: the value, one of Python's own numbers if it is a number; or an InputError."""


def _option(default: Any, check: Check | None = None, *, variable: str | None = None, otherwise: Any = None) -> Any:
    """A field of :class:`Job` with a default and a check.

    If the value is None, it is read from the environment variable ``variable``, or else is ``otherwise``.
    """
    return field(default=default, metadata={"check": check, "variable": variable, "otherwise": otherwise})


def _between(least: float, most: float, unit: str, convert: Callable[[Any], Any] = plain_number) -> Check:
    def check(name: str, value: Any) -> Any:
        # Also false for NaN and infinity.
        usable = not isinstance(value, bool) and isinstance(value, Real) and least <= cast(float, value) <= most
        if not usable:
            shown = str(value) if isinstance(value, Fraction) else repr(value)
            raise InputError(f"{name} is {shown}; give {unit} between {least:.7g} and {most:.7g}")
        return convert(value)

    return check


def check_count(name: str, value: Any, least: int, most: int = MAX_WORKERS) -> int:
    """A whole number of any type as an int.

    Raises:
        InputError: it is no whole number, or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise InputError(f"{name} is {value!r}; give a whole number between {least} and {most}")
    return int(value)


check_share = _between(0, 1, "a share")


def _count(least: int, most: int = MAX_WORKERS) -> Check:
    return lambda name, value: check_count(name, value, least, most)


def _plain_or_fraction(value: Any) -> Any:
    return value if isinstance(value, Fraction) else plain_number(value)


check_rate = _between(0.001, MAX_FRAME_RATE, "samples a second", _plain_or_fraction)


def exact_rate(name: str, rate: float | Fraction) -> Fraction:
    """A rate as a fraction; a float is taken as the decimal number that it prints as.

    Raises:
        InputError: samples cannot be taken at this rate.
    """
    rate = check_rate(name, rate)
    return rate if isinstance(rate, Fraction) else Fraction(str(rate))


def _or_none(check: Check) -> Check:
    return lambda name, value: value if value is None else check(name, value)


def _one_of(names: tuple[str, ...]) -> Check:
    def check(name: str, value: Any) -> Any:
        if value not in names:
            raise InputError(f"{name} {value!r} is unknown; choose {', '.join(names[:-1])} or {names[-1]}")
        return value

    return check


def check_device(name: str, value: Any) -> Any:
    """A device's name.

    Raises:
        InputError: it is no name that is known.
    """
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise InputError(f"{name} {value!r} is unknown; choose auto, cpu, cuda or cuda:N")
    return value


def device_number(device: str) -> int:
    """The number of a GPU by its device's name; ``cuda`` is the first."""
    return int(device.partition(":")[2] or 0)


def default_inference_threads() -> int:
    """Slices that a model computes at once on a CPU: one for each core, but not more than are worth it."""
    return min(MAX_INFERENCE_THREADS, usable_cores())


def check_price(name: str, value: Any) -> Any:
    """A price; an InputError if it is none."""
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise InputError(f"{name} is {value!r}; give a price, 0 or more")
    return plain_number(value)


def check_id(value: str, name: str) -> str:
    """Return ``value`` if it can be part of a key.

    Raises:
        InputError: it is empty, too long, starts with a dot or holds anything but letters, digits, ``.``, ``_``, ``-``.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value) or ".." in value:
        raise InputError(
            f"{name} {value!r} cannot be used: give 1 to {LONGEST_ID} letters, digits, '.', '_' or '-', "
            "starting with a letter or digit and without '..'"
        )
    return value


def _path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise InputError(f"{name} is {value!r}; give a path, or a key in the store, as text")
    return os.fspath(value)


def _model(name: str, value: Any) -> Any:
    if not isinstance(value, (str, os.PathLike)) and not callable(getattr(value, "embed", None)):
        raise InputError(f"{name} is {value!r}; give a file of weights, or an object that follows PairModel")
    return value


def _callable(name: str, value: Any) -> Any:
    if not callable(value):
        raise InputError(f"{name} is {value!r}; give a function, which is called with a Progress")
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; give True or False")
    return value


def _id(name: str, value: Any) -> str:
    return check_id(value, name)


@dataclass(frozen=True)
class Job:
    """What a job is to do: which video, which region, where the results go, and how.

    Attributes:
        video_key: A video file of this machine, or the key of one in the store.
        tenant_id: Tenant id, part of every key that is written.
        video_id: Video id, part of every key that is written.
        crop_region: Where captions stand; a region, or left, top, right and bottom.
        frame_rate: Samples a second, as 10 or 30000/1001; from 0.001 to 240; a float is taken as the decimal number
            that it prints as.
        encoder_workers: Chunks encoded at once; from 1 to 256; with the encoder ``ray``, the size of a cluster that is
            started.
        implementation: ``pipelined`` or ``sequential``; both give identical results.
        store: Folder or URL of the store, by default the folder ``caption-extents-store``.
        device: Where to decode and compute: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. With ``auto`` a GPU is used if
            there is one, and a video that it cannot decode is decoded on the CPU.
        preset: Encoder settings: ``fast``, ``balanced``, ``reference`` or ``archive``.
        model: Other weights (``.safetensors``), a ResNet-50 fusion checkpoint (``.pt``), or in Python any object that
            follows :class:`~caption_extents.model.interface.PairModel`.
        encoder: Where chunks are encoded: ``threads`` of the process, child ``processes`` (``auto`` takes these where a
            GPU decodes, and threads elsewhere), or workers of a ``ray`` cluster or a ``modal`` app.
        decode_threads: Threads of the CPU decoder, or sessions on the GPU; 0 for as many as there are.
        inference_workers: Threads for the model on a CPU, by default one for each core, and one in the sequential
            implementation.
        upload_workers: Objects uploaded at once; from 1 to 256. Many of them hide a store that answers in a fifth of a
            second.
        queue_size: Items that wait between two stages.
        max_undecodable_share: The run fails when more than this share of its samples cannot be decoded.
        partial: Take a file that ends early, as a cut-off download, as far as it goes.
        stream: Index of the video stream, as FFmpeg counts them; by default the film, as players choose it.
        refine: Times exact to a frame of the source, not only to a sample.
        stall_seconds: The run fails when reading, decoding or encoding makes no progress for this long; from 0.1 to
            86400.
        isolate: Decode in a child process, within limits: for videos of strangers.
        isolate_memory_mib: Address space of that process in MiB, libraries included.
        price_per_hour: Price of this machine, for the costs in the metrics.
        prices: Prices of machine types, for the costs (``.toml``, see docs/deployment.md).
        new_version: Start anew even if an unfinished version could be finished.
        lease_seconds: A run that gives no sign of life for this long counts as dead, and may be taken over; from 0.2
            to 3600.
        progress: Called from worker threads with the progress of each stage.

    Raises:
        InputError: an argument cannot be used; names it, its value and what is allowed.
    """

    video_key: str = field(metadata={"check": _path})
    tenant_id: str = field(metadata={"check": _id})
    video_id: str = field(metadata={"check": _id})
    crop_region: CropRegion = field(metadata={"check": lambda _, value: CropRegion.of(value)})
    frame_rate: float | Fraction = _option(10.0, check_rate)
    encoder_workers: int = _option(DEFAULT_ENCODER_WORKERS, _count(1))
    _: KW_ONLY
    implementation: str = _option(
        None, _one_of(IMPLEMENTATION_NAMES), variable="CAPTION_EXTENTS_IMPLEMENTATION", otherwise="pipelined"
    )
    store: str | os.PathLike[str] | None = _option(None, _or_none(_path), variable="CAPTION_EXTENTS_STORE")
    device: str = _option("auto", check_device)
    preset: str = _option("fast", _one_of(PRESET_NAMES))
    model: str | os.PathLike[str] | PairModel | None = _option(None, _or_none(_model))
    encoder: str = _option("auto", _one_of(ENCODER_NAMES))
    decode_threads: int = _option(0, _count(0))
    inference_workers: int | None = _option(None, _or_none(_count(1)))
    upload_workers: int = _option(16, _count(1))
    queue_size: int = _option(2, _count(1))
    max_undecodable_share: float = _option(0.01, check_share)
    partial: bool = _option(False, _switch)
    stream: int | None = _option(None, _or_none(_count(0, MAX_STREAMS)))
    refine: bool = _option(False, _switch)
    stall_seconds: float = _option(DEFAULT_STALL_SECONDS, _between(0.1, 86_400, "seconds"))
    isolate: bool = _option(False, _switch)
    isolate_memory_mib: int = _option(8192, _count(256, 1 << 24))
    price_per_hour: float | None = _option(None, _or_none(check_price), variable="CAPTION_EXTENTS_PRICE_PER_HOUR")
    prices: str | os.PathLike[str] | None = _option(None, variable="CAPTION_EXTENTS_PRICES")
    new_version: bool = _option(False, _switch)
    lease_seconds: float = _option(12.0, _between(0.2, 3600, "seconds"))
    progress: ProgressCallback | None = _option(None, _or_none(_callable))

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) is None:
                object.__setattr__(self, one.name, _by_default(one))
            if (check := one.metadata.get("check")) is not None:
                object.__setattr__(self, one.name, check(one.name, getattr(self, one.name)))
        self._check_together()

    def _check_together(self) -> None:
        if self.encoder not in ("auto", "threads") and self.implementation == "sequential":
            raise InputError(
                f"the sequential implementation encodes in this process; leave out encoder {self.encoder!r}"
            )
        if self.encoder in REMOTE_ENCODER_NAMES and self.store_address.startswith("memory://"):
            raise InputError(
                f"encoder {self.encoder!r} cannot read a store in this process's memory; give another store"
            )
        if self.isolate and self.device.startswith("cuda"):
            raise InputError(f"isolate decodes on the CPU, and device is {self.device!r}; give device 'auto' or 'cpu'")
        if self.isolate and self.refine:
            raise InputError("refine reads the video in this process, which isolate is to prevent; give one of them")

    @property
    def inference_threads(self) -> int:
        """How many threads compute the model on a CPU."""
        alone = 1 if self.implementation == "sequential" else default_inference_threads()
        return self.inference_workers or alone

    @property
    def store_address(self) -> str:
        """The store that was asked for, by argument or by environment."""
        return os.fspath(self.store or DEFAULT_STORE)

    @property
    def rate(self) -> Fraction:
        """The frame rate, exactly."""
        return exact_rate("frame_rate", self.frame_rate)


def _by_default(option: Field[Any]) -> Any:
    variable = option.metadata.get("variable")
    text = os.environ.get(variable) if variable else None
    if not text:
        return option.metadata.get("otherwise")
    if "float" not in str(option.type):
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{variable} is {text!r}; give a number") from None


def variable_of(name: str) -> str:
    """The variable of the environment that gives an option's default; empty if there is none."""
    return next(one.metadata.get("variable") or "" for one in fields(Job) if one.name == name)


def describe_options() -> dict[str, str]:
    """What each option means, by its name: its first sentence in the documentation of :class:`Job`, as plain text."""
    documentation = inspect.cleandoc(Job.__doc__ or "").partition("Attributes:\n")[2].partition("\nRaises:")[0]
    described: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w+: )", documentation):
        name, _, text = entry.strip().partition(": ")
        plain = re.sub(r":class:`~?(?:\w+\.)*(\w+)`", r"\1", " ".join(text.split())).replace("``", "")
        described[name] = re.split(r"(?<=\.) |; ", plain)[0]
    return described


def default_samples_mib(engines: int = 1) -> int:
    """Default memory for the samples in flight of each of several engines of this machine, in MiB."""
    return max(1024, int(memory_bytes() * _MEMORY_SHARE / engines) >> 20)


def encoders_of_machine(shares: int = 1) -> int:
    """Default number of chunks encoded at once if this machine's cores are divided among ``shares`` jobs."""
    return encoders_of_cores(usable_cores() // shares)


def encoders_of_cores(cores: int) -> int:
    """Default number of chunks encoded at once: one per core, but at least ``DEFAULT_ENCODER_WORKERS``."""
    return min(_MAX_ENCODERS_OF_MACHINE, max(DEFAULT_ENCODER_WORKERS, cores))


def id_from_name(video: str) -> str:
    """Make a video id from a file name: ASCII letters, digits, ``.``, ``_`` and ``-`` are kept, all else becomes ``-``.

    Accents are dropped. If letters of other scripts or the end of a long name are lost, a digest of the name is
    appended.
    """
    name = unicodedata.normalize("NFC", Path(video).stem)
    letters = [letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter)]
    kept = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", "".join(letters))).strip("-._")
    if kept and len(kept) <= LONGEST_ID and all(letter.isascii() or not letter.isalnum() for letter in letters):
        return kept
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:_ID_DIGITS]
    begin = kept[: LONGEST_ID - _ID_DIGITS - 1].rstrip("-._")
    return f"{begin or 'video'}-{digest}"


_RATE = re.compile(r"\s*[0-9]{1,9}(\.[0-9]{1,9}|/0*[1-9][0-9]{0,8})?\s*", re.ASCII)


def parse_rate(text: str) -> Fraction:
    """Samples a second, exactly, as ``10``, ``12.5`` or ``30000/1001``.

    Raises:
        InputError: it is no such number.
    """
    if not _RATE.fullmatch(text):
        raise InputError(f"the rate is {text!r}; give samples a second, as 10 or 30000/1001")
    rate = Fraction(text)
    check_rate("frame_rate", rate)
    return rate
