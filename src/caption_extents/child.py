"""``python -m caption_extents.child``: the program of every child process.

What it will need itself is started before its own modules are imported: both take about as long.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import suppress

from caption_extents.spawning import ChildKind, SpawnedProcess


def main() -> None:
    """Run the function that the parent asks for; see :class:`~caption_extents.spawning.SpawnedProcess`."""
    target, numbers, ahead, *arguments = sys.argv[1:]
    ready = list[tuple[ChildKind, SpawnedProcess]]()
    with suppress(OSError):  # whoever needs one that is missing starts it, or says why that cannot be
        for kind in map(ChildKind.from_json, json.loads(ahead)):
            ready.append((kind, SpawnedProcess(kind)))
    # Not imported above: NumPy comes with it.
    from caption_extents.children import run_child

    run_child(target, list(map(int, numbers.split(","))), arguments, ready)


if __name__ == "__main__":
    # Run main() of the imported module, not of __main__: classes of the two would be different objects.
    importlib.import_module("caption_extents.child").main()
