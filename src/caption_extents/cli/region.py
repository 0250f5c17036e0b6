"""The command that suggests where captions stand, or lets a person choose."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caption_extents.cli.errors import check_output, errors_as_exit_codes
from caption_extents.cli.options import HELP, QuietOption
from caption_extents.cli.progress import progress_of
from caption_extents.errors import InputError
from caption_extents.files import write_atomically
from caption_extents.region import CropRegion

if TYPE_CHECKING:
    import numpy as np

    from caption_extents.bands import Band

_PAGE_PICTURES = 16
_USUAL_REGION = CropRegion(0.05, 0.8, 0.95, 0.98)


def crop(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    picture: Annotated[Path | None, typer.Option(help="Write a picture with the regions drawn (.png).")] = None,
    stream: Annotated[int | None, typer.Option(help=HELP["stream"])] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Choose the region on a page, by mouse.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the regions as a JSON list.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Suggest where captions stand, in the form that `run --crop` takes.

    With --browser a page of this machine shows pictures of the video, and the region can be drawn there.
    """
    if browser:
        with errors_as_exit_codes():
            region = _choose_region(video, stream, quiet or as_json)
        typer.echo(json.dumps([{"crop": region.as_tuple()}]) if as_json else as_option(region))
        return
    with errors_as_exit_codes():
        if picture is not None and picture.suffix.lower() != ".png":
            raise InputError(f"cannot write a picture to {str(picture)!r}; the name must end with .png")
        check_output(picture)
        bands, drawn = suggest(video, stream, quiet or as_json)
        if picture is not None:
            from caption_extents.pictures import to_png

            write_atomically(picture, to_png(drawn))
            if not quiet:
                typer.echo(f"picture written to {picture}", err=True)
    if as_json:
        typer.echo(json.dumps([{"crop": band.region.as_tuple(), "pictures": band.pictures} for band in bands]))
        return
    typer.echo(as_option(bands[0].region))
    for band in bands[1:]:
        typer.echo(f"also, in {band.pictures} pictures: {as_option(band.region)}", err=True)


def auto_crop(video: str, stream: int | None, quiet: bool) -> str:
    """The region that is suggested first, as `--crop` takes it."""
    if not os.path.isfile(video):  # noqa: PTH113 which no name makes fail
        raise InputError(
            f"the crop can be found in a file of this machine, and {video!r} is none; give it: --crop L,T,R,B"
        )
    crop = as_option(suggest(Path(video), stream, quiet)[0][0].region)
    if not quiet:
        typer.echo(f"crop {crop}", err=True)
    return crop


def suggest(video: Path, stream: int | None, quiet: bool) -> tuple[list[Band], np.ndarray]:
    """Bands of text, the likeliest first, and a picture with them drawn."""
    from caption_extents.bands import draw_regions, suggest_crop

    with progress_of("looking", quiet) as tell:
        bands, seen = suggest_crop(video, None, tell, stream)
    return bands, draw_regions(seen, bands)


def _choose_region(video: Path, stream: int | None, quiet: bool) -> CropRegion:
    """A region that a person has drawn, beginning with the suggested one if there is one."""
    from fractions import Fraction

    from av.video.frame import VideoFrame

    from caption_extents.bands import pick_times, pictures_at
    from caption_extents.pictures import to_jpeg
    from caption_extents.report.crop_page import choose_region
    from caption_extents.video.info import probe
    from caption_extents.video.timeline import build_timeline

    try:
        start = suggest(video, stream, quiet)[0][0].region
    except InputError:
        # No text was found, or nothing that finds it is installed.
        start = _USUAL_REGION
    facts = probe(video, stream)
    frames = [
        VideoFrame.from_ndarray(picture, format="rgb24")
        for picture in pictures_at(facts, pick_times(build_timeline(facts, Fraction(10)), _PAGE_PICTURES))
    ]
    pictures = [to_jpeg(frame, (frame.width, frame.height)) for frame in frames]

    def open_page(address: str) -> None:
        typer.echo(f"choose the region on {address}", err=True)
        typer.launch(address)

    return choose_region(pictures, start, open_page)


def as_option(region: CropRegion) -> str:
    """A region as `--crop` takes it."""
    return ",".join(f"{side:g}" for side in region.as_tuple())
