"""The shape of the code: ``python -m benchmarks.shape [SRC]``, of this version or of another one's ``src`` folder.

Counts modules in circles, lines, the longest module and function, lines that name an option, parameter lists that are
repeated, and the modules that a sample passes: those with a function that is called for every batch of a run.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import CROP
from caption_extents.training import sample_video

OPTIONS = ("device", "preset", "encoder")
_REPEATED = 4
"""Parameters of the same names in a row that make a list a repeated one."""

_PASSED = """
import json, sys, threading
from collections import Counter
from pathlib import Path
import caption_extents
calls = Counter()
root = str(Path(caption_extents.__file__).parent)
def count(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.startswith(root):
        calls[frame.f_code.co_filename, frame.f_code.co_name] += 1
options = dict(store=sys.argv[2], device="cpu", implementation="sequential")
run = caption_extents.crop_and_infer_caption_frame_extents
run(sys.argv[1], "t", "warm", caption_extents.CropRegion({crop}), **options)
threading.setprofile(count)
sys.setprofile(count)
result = run(sys.argv[1], "t", "v", caption_extents.CropRegion({crop}), **options)
sys.setprofile(None)
batches = result.frame_count // 32
print(json.dumps(sorted({{name[len(root) + 1:] for (name, _), number in calls.items() if number >= batches}})))
"""


def modules(source: Path) -> dict[str, Path]:
    """All modules but those for training, by their names."""
    root = source / "caption_extents"
    return {
        ".".join(path.relative_to(source).with_suffix("").parts): path
        for path in sorted(root.rglob("*.py"))
        if "training" not in path.parts
    }


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def repeated_lists(found: dict[str, Path]) -> int:
    """Functions beyond the first that take the same four parameters in a row."""
    lists: Counter[tuple[str, ...]] = Counter()
    for path in found.values():
        for function in functions(path):
            arguments = function.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg != "self"]
            lists.update({tuple(names[at : at + _REPEATED]) for at in range(len(names) - _REPEATED + 1)})
    return sum(count - 1 for count in lists.values() if count > 1)


def passed(source: Path) -> list[str]:
    """Modules that a sample passes on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        sample_video.render(film, seconds=160, seed=5, width=640, height=360)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])}
        code = _PASSED.format(crop=CROP)
        command = [sys.executable, "-c", code, str(film), str(Path(folder) / "store")]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, default=Path(__file__).parent.parent / "src")
    source = parser.parse_args().source.absolute()
    found = modules(source)
    texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    lines = {name: text.count("\n") for name, text in texts.items()}
    longest = max(lines, key=lambda name: lines[name])
    spans = {
        f"{name}.{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for name, path in found.items()
        for function in functions(path)
    }
    widest = max(spans, key=lambda name: spans[name])
    print(f"{len(found)} modules, {sum(lines.values())} lines without training")
    print(f"longest module {longest}: {lines[longest]} lines; longest function {widest}: {spans[widest]} lines")
    for option in OPTIONS:
        named = {name: len(re.findall(rf"^.*\b{option}\b.*$", text, re.MULTILINE)) for name, text in texts.items()}
        print(f"{option} is named in {sum(named.values())} lines of {sum(map(bool, named.values()))} modules")
    print(f"{repeated_lists(found)} repetitions of four parameters in a row")
    sample = passed(source)
    print(f"a sample passes {len(sample)} modules on a CPU: {', '.join(sample)}")


if __name__ == "__main__":
    main()
