"""The direction of imports: each part may use those before it in this list, and nothing goes round in a circle."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import caption_extents

PACKAGE = "caption_extents"
SOURCE = Path(caption_extents.__file__).parent

LAYERS = (
    ("version", "closing", "effort", "errors", "labels", "region", "machine", "spawning"),
    ("files", "watchdog", "interrupts", "samples", "pictures"),
    ("options", "children", "child"),
    ("captions", "chunks", "video"),
    ("results", "storage", "model"),
    ("encoders",),
    ("pipeline",),
    ("bands", "ocr", "report", "search"),
    ("job",),
    ("engine", "compare", "doctor"),
    ("entries", "batch"),
    ("training",),
    ("deploy",),
    ("cli",),
    ("__main__", ""),
)
"""Parts of the package, from the bottom up; the last is the package itself, whose names are imported when used."""

WITHOUT_TORCH = (
    "captions",
    "chunks",
    "results",
    "storage",
    "video",
    "options",
    "children",
    "child",
    "spawning",
    "pictures",
)

Graph = dict[str, set[str]]


def read_imports(root: Path = SOURCE) -> Graph:
    """What each module imports, also inside functions, by full names; what only a type checker sees is left out."""
    graph: Graph = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join((PACKAGE, *parts)).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        left_out = {id(inner) for block in blocks for inner in ast.walk(block)}
        graph[name] = set()
        for node in ast.walk(tree):
            if id(node) in left_out:
                continue
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                graph[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return graph


def own_imports(graph: Graph) -> Graph:
    """Only the package's own modules; of ``from package import module`` the module."""
    own: Graph = {}
    for name, imported in graph.items():
        known = {other for other in imported if other in graph and other != name}
        own[name] = {k for k in known if not any(other.startswith(f"{k}.") for other in known)}
    return own


def circles(graph: Graph) -> list[str]:
    """Modules that import themselves by way of others."""

    def reached(start: str) -> set[str]:
        seen, left = set[str](), list(graph[start])
        while left:
            module = left.pop()
            if module not in seen:
                seen.add(module)
                left += graph[module]
        return seen

    return sorted(name for name in graph if name in reached(name))


def layer_of(module: str) -> int:
    part = [*module.split("."), ""][1]
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def upward(graph: Graph) -> list[str]:
    """Imports of a part above."""
    return sorted(
        f"{name} imports {other}" for name in graph for other in graph[name] if layer_of(other) > layer_of(name)
    )


def with_torch(graph: Graph, parts: Iterable[str]) -> list[str]:
    """Modules of these parts that import PyTorch, or anything of the package that does."""
    own = own_imports(graph)
    loads = {name for name in graph if any(i.split(".")[0] == "torch" for i in graph[name])}
    while more := {name for name in own if name not in loads and own[name] & loads}:
        loads |= more
    return sorted(name for name in loads if name.split(".")[1:2] and name.split(".")[1] in parts)


def test_nothing_goes_round_in_a_circle() -> None:
    assert circles(own_imports(read_imports())) == []


def test_imports_go_in_one_direction() -> None:
    assert upward(own_imports(read_imports())) == []


def test_samples_need_no_pytorch() -> None:
    graph = read_imports()
    assert with_torch(graph, WITHOUT_TORCH) == []


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("video/timeline.py", "from caption_extents.video.decoders.cpu import CpuDecoder", "circle"),
        ("video/crop.py", "def f() -> None:\n    from caption_extents.video.decoders import cpu", "circle"),
        ("chunks/plan.py", "from caption_extents.pipeline import stages", "upward"),
        ("storage/keys.py", "import torch", "torch"),
        ("samples.py", "from caption_extents.model.captioner import CaptionModel", "torch"),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str, found: str, tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("*.pyc", "weights", "assets"))
    path = tmp_path / PACKAGE / module
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    graph = read_imports(tmp_path / PACKAGE)
    own = own_imports(graph)
    kinds = {"circle": circles(own), "upward": upward(own), "torch": with_torch(graph, ["storage", "video"])}
    assert kinds[found]


def test_a_run_on_a_gpu_imports_no_pytorch() -> None:
    """It is imported where the model computes; the run begins meanwhile."""
    code = "import sys, caption_extents.job.run, caption_extents.engine\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_processes_start_before_anything_large_is_imported() -> None:
    code = (
        "import sys, caption_extents.job.ahead\n"
        "print([m for m in ('torch', 'numpy', 'av', 'obstore', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_a_user_imports_first_is_light() -> None:
    code = (
        "import sys, caption_extents, caption_extents.cli\n"
        "print([m for m in ('torch', 'numpy', 'av', 'obstore', 'pysubs2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
