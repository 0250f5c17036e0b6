"""HTML pages with embedded data that cannot be interpreted as markup or script."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources


def fill_page(name: str, data: object, *, connect: bool = False) -> str:
    """A page of this package with its script and data.

    All data of a video is in one JSON block, escaped so that it cannot end the script element; the page's script
    inserts it as text. A Content-Security-Policy forbids all other scripts and connections.

    Args:
        name: file name of the page's HTML and script, without suffix.
        data: data for the script, serialisable as JSON.
        connect: whether the page is served by a local server that its script may call.
    """
    here = resources.files(__package__ or "")
    script = (here / f"{name}.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Files beside the page have no origin of their own, so media may come from anywhere.
    sources = "img-src 'self' data:; connect-src 'self'" if connect else "img-src data:; media-src *"
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; {sources}"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = (here / f"{name}.html").read_text(encoding="utf-8")
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}', 1)
    # The data comes last: what it says is not looked at again.
    for mark, value in (("@SCRIPT@", script), ("@DATA@", json_in_html(data))):
        page = page.replace(mark, value, 1)
    return page


def json_in_html(data: object) -> str:
    """JSON whose text cannot end a script element, nor begin a comment in it."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
