"""Make docs/api.md from the docstrings of all public names: ``make docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from griffe2md import render_package_docs

import caption_extents

TARGET = Path(__file__).parent / "api.md"

_HEAD = """# Public names

Made from the docstrings by `make docs`. [library.md](library.md) explains them by examples.
"""

_FIRST = ("find_captions", "iter_captions", "open_video", "Video", "SampleBatch", "CaptionModel", "decode_captions")

_VALUES = {
    "DEFAULT_ENCODER_WORKERS": caption_extents.Job.encoder_workers,
    "DEFAULT_STALL_SECONDS": caption_extents.Job.stall_seconds,
    "Job.max_undecodable_share": caption_extents.Job.max_undecodable_share,
}

_CONFIG: Any = {
    "show_root_full_path": False,
    "show_root_members_full_path": False,
    "show_object_full_path": False,
    "show_if_no_docstring": False,
    "inherited_members": False,
    "members_order": "source",
    "summary": False,
    "line_length": 110,
}


def make() -> str:
    """The page."""
    names = [*_FIRST, *(name for name in caption_extents.__all__ if name not in _FIRST and name != "__version__")]
    things = [getattr(caption_extents, name) for name in names]
    parts = [render_package_docs(f"{thing.__module__}.{thing.__qualname__}", _CONFIG) for thing in things]
    text = "\n".join([_HEAD, *parts])
    # Defaults as values, and not as they are written in the code.
    text = re.sub(r"_option\(((?:[^(),]|\([^()]*\))+)(?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", r"\1", text)
    text = re.sub(r"=(field\((?:[^()]|\([^()]*\))*\))", "", text)
    for name, value in _VALUES.items():
        text = text.replace(f"={name}", f"={value!r}")
    # Links lead to pages that other tools would make; here a type is only named.
    while (shorter := re.sub(r"\[([^][]*)\]\(#[^)]*\)", r"\1", text)) != text:
        text = shorter
    text = re.sub(r"</?code>", "`", text)
    text = re.sub(r":(?:class|func|meth|mod|attr|data):`~?([^`]*)`", r"`\1`", text)
    text = re.sub(r"(?<!`)``([^`\n]+)``(?!`)", r"`\1`", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"


if __name__ == "__main__":
    made = make()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == made else "docs/api.md is not up to date: make docs")
    TARGET.write_text(made, encoding="utf-8")
