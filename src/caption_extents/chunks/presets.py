"""Encoder settings by name: all settings that the bytes of a chunk depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from caption_extents.errors import InputError


@dataclass(frozen=True)
class EncoderPreset:
    """Settings of libvpx-vp9 for a chunk.

    Attributes:
        name: as on the command line and in the manifest.
        threads: threads of one encoder; part of the preset, because the bytes that libvpx writes depend on it.
        options: libvpx's options, as FFmpeg names them.
        threads_busy: CPU seconds of all threads of an encoder divided by those of the thread that calls it, measured on
            captions; used for forecasts only.
        relative_cpu: CPU seconds divided by those of the preset ``reference``, each with its own number of threads,
            measured on captions; used for forecasts only.
    """

    name: str
    threads: int
    options: Mapping[str, str] = field(hash=False)
    threads_busy: float = 1.0
    relative_cpu: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """What an encoder elsewhere needs, as plain data."""
        return {"name": self.name, "threads": self.threads, "options": dict(self.options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EncoderPreset:
        """Inverse of :meth:`to_json`."""
        return cls(data["name"], data["threads"], data["options"])


def _preset(name: str, threads: int, threads_busy: float, relative_cpu: float, **options: str) -> EncoderPreset:
    named = MappingProxyType({key.replace("_", "-"): value for key, value in options.items()})
    return EncoderPreset(name, threads, named, threads_busy, relative_cpu)


PRESETS: Mapping[str, EncoderPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            _preset(
                "reference",
                threads=2,
                threads_busy=1.9,
                relative_cpu=1.0,
                crf="30",
                deadline="good",
                cpu_used="2",
                tile_columns="1",
                frame_parallel="1",
                row_mt="1",
                auto_alt_ref="1",
                lag_in_frames="25",
            ),
            _preset(
                "fast",
                threads=1,
                threads_busy=1.0,
                relative_cpu=0.17,
                crf="27",
                deadline="realtime",
                cpu_used="7",
                frame_parallel="0",
                tile_columns="0",
                lag_in_frames="0",
            ),
            _preset(
                "balanced",
                threads=1,
                threads_busy=1.0,
                relative_cpu=0.40,
                crf="28",
                deadline="realtime",
                cpu_used="4",
                frame_parallel="0",
                tile_columns="0",
                lag_in_frames="0",
            ),
            _preset(
                "archive",
                threads=1,
                threads_busy=1.0,
                relative_cpu=1.6,
                crf="30",
                deadline="good",
                cpu_used="1",
                frame_parallel="0",
                tile_columns="0",
                auto_alt_ref="1",
                lag_in_frames="25",
            ),
        )
    }
)


def find_preset(name: str) -> EncoderPreset:
    """The preset of a name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        raise InputError(f"unknown encoder preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
