"""Options of the command line, made from those of a job."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from caption_extents.options import Job, describe_options, variable_of

HELP = describe_options()
StoreOption = Annotated[str | None, typer.Option(envvar=variable_of("store"), help=HELP["store"])]
TenantOption = Annotated[str, typer.Option(help=HELP["tenant_id"])]
VersionOption = Annotated[int | None, typer.Option(help="By default the newest complete one.")]
OcrOption = Annotated[bool, typer.Option("--ocr", help="Read each caption's text, once (needs the extra 'ocr').")]
LanguageOption = Annotated[
    str | None,
    typer.Option(help="Language of the captions, or several: ru, or zh,en. Reads their text, as --ocr does."),
]
ReaderOption = Annotated[
    str, typer.Option(help="What reads text: rapidocr, tesseract, or auto for whichever knows the language's letters.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
_NOT_HERE = frozenset({"store", "queue_size", "price_per_hour", "lease_seconds", "progress"})
"""Options of a job that commands define under another name, or that have no command-line option."""
Command = TypeVar("Command", bound=Callable[..., None])


def choices(names: tuple[str, ...]) -> str:
    """Names as a sentence lists them."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def with_job_options(*left_out: str) -> Callable[[Command], Command]:
    """Add the options of :class:`Job` to a command; the command receives them as keyword arguments.

    Options for which the command has its own parameter, and those in ``left_out``, are not added.
    """

    def decorate(command: Command) -> Command:
        own = [
            one for one in inspect.signature(command, eval_str=True).parameters.values() if one.kind != one.VAR_KEYWORD
        ]
        names = {one.name for one in own} | _NOT_HERE | set(left_out)
        options = [
            _parameter(one)
            for name, one in inspect.signature(Job, eval_str=False).parameters.items()
            if one.kind == one.KEYWORD_ONLY and name not in names
        ]
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in own] + options
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _parameter(option: inspect.Parameter) -> inspect.Parameter:
    """An option of a job as one of a command line."""
    kind: Any = next(
        (plain for name, plain in (("PathLike", Path | None), ("int | None", int | None)) if name in option.annotation),
        {"bool": bool, "int": int, "float": float}.get(
            option.annotation, str | None if option.default is None else str
        ),
    )
    names = [f"--{option.name.replace('_', '-')}"] if kind is bool else []
    made = typer.Option(*names, envvar=variable_of(option.name) or None, help=HELP[option.name])
    return option.replace(annotation=Annotated[kind, made])


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not as they are by default."""
    return {name: value for name, value in options.items() if value != getattr(Job, name)}
