"""What the machine has, and what to do where something is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from caption_extents import doctor
from caption_extents.cli import app
from caption_extents.model import captioner
from caption_extents.storage.folder import LOCK_NAME


def run(store: Path | str, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    result = CliRunner().invoke(app, ["doctor", "--store", str(store), "--json", *options])
    return result.exit_code, {finding["name"]: finding for finding in json.loads(result.stdout)}


def test_a_machine_that_has_all_it_needs(tmp_path: Path) -> None:
    code, found = run(tmp_path / "store")
    assert code == 0
    assert {found[name]["state"] for name in ("python", "ffmpeg", "decoders", "encoder", "model", "store")} == {"ok"}
    assert "libavcodec" in found["ffmpeg"]["detail"]
    assert not (tmp_path / "store").exists()
    if not torch.cuda.is_available():
        assert found["gpu"]["state"] == "missing"
        assert "runs use the CPU" in found["gpu"]["remedy"]


def test_it_prints_for_people(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path)])
    assert result.exit_code == 0
    assert f"ok       store        {tmp_path} can be written and read" in result.output
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "store")])
    assert result.exit_code == 0
    assert "versions are claimed by hard links and a lock on the folder" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, found = run(tmp_path / "file")
    assert code == 1
    assert found["store"]["state"] == "broken"
    assert found["store"]["remedy"]


def test_what_is_missing_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "rapidocr" else find(name, *a))
    monkeypatch.setattr(doctor, "DECODERS", ("h264", "betamax"))
    monkeypatch.setattr(doctor, "ENCODER", "no-such-encoder")
    monkeypatch.setattr(captioner, "DEFAULT_WEIGHTS", tmp_path / "gone.safetensors")
    code, found = run(tmp_path / "store")
    assert code == 1
    assert {name for name, finding in found.items() if finding["state"] == "broken"} == {"encoder", "model"}
    assert found["decoders"]["detail"] == "no betamax"
    assert "[ocr]" in found["ocr"]["remedy"]
    assert all(finding["remedy"] for finding in found.values() if finding["state"] != "ok")
