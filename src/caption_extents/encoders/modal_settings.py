"""What a Modal deployment is made of, from the environment of ``modal deploy``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from caption_extents.errors import InputError
from caption_extents.options import encoders_of_cores, variable_of

JOB_FUNCTION = "crop_and_infer_caption_frame_extents"
ENCODE_FUNCTION = "encode_segment"
PREFIX = "CAPTION_EXTENTS_MODAL_"


@dataclass(frozen=True)
class ModalSettings:
    """Settings of a Modal deployment; each is read from the environment variable ``CAPTION_EXTENTS_MODAL_`` + its name.

    Attributes:
        app_name: name of the Modal app.
        gpu: GPU type of the job's functions, as Modal names it.
        cpu: CPU cores of the job's functions; by default a job encodes as many chunks at once.
        memory_mib: memory of the job's functions.
        videos_at_once: jobs that a container runs at once, so that its GPU does not wait while one starts or ends.
        timeout_seconds: time limit of every function call.
        retries: automatic retries of a failed job; calling the function again also finishes a failed run.
        secrets: names of Modal secrets with the store's credentials, separated by commas.
        encoder_cpu, encoder_memory_mib, encoder_retries: cores, memory and retries of an encoding worker; executing an
            encoding task twice is harmless.
        package: requirement that pip installs for the functions; by default this package at its version.
        implementation: ``pipelined`` or ``sequential``: the implementation for calls that do not name one.
        package_v2: like ``package``, for the function with the suffix ``_v2``, to run a new version next to the old.
    """

    app_name: str = "caption-extents"
    gpu: str = "A10G"
    cpu: float = 8.0
    memory_mib: int = 16_384
    videos_at_once: int = 4
    timeout_seconds: int = 3600
    retries: int = 0
    secrets: str = "caption-extents-store"
    encoder_cpu: float = 2.0
    encoder_memory_mib: int = 2048
    encoder_retries: int = 2
    package: str = ""
    implementation: str = "pipelined"
    package_v2: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the variables that are set.

        Raises:
            InputError: one is not of its type; names it.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, object] = {}
        for name, field in cls.__dataclass_fields__.items():
            text = environment.get(PREFIX + name.upper())
            if text is not None:
                kind = {"str": str, "int": int, "float": float}[str(field.type)]
                try:
                    values[name] = kind(text)
                except ValueError:
                    raise InputError(f"{PREFIX}{name.upper()} is {text!r}; give a {kind.__name__}") from None
        return cls(**values)  # type: ignore[arg-type]

    def to_environment(self) -> dict[str, str]:
        """Variables that give these settings, for the containers; what the job itself reads is among them."""
        variables = {PREFIX + name.upper(): str(value) for name, value in asdict(self).items()}
        return {**variables, variable_of("implementation"): self.implementation}

    @property
    def encoders(self) -> int:
        """Chunks that a job's function encodes at once, unless a call says how many."""
        return encoders_of_cores(int(self.cpu))

    @property
    def secret_names(self) -> list[str]:
        """Names of the secrets."""
        return [name.strip() for name in self.secrets.split(",") if name.strip()]
