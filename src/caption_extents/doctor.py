"""Checks whether this machine has everything that a run needs, and names the remedy if it has not."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterator

import av.codec
from av import __version__ as pyav_version
from av import library_versions

from caption_extents.errors import CaptionExtentsError
from caption_extents.machine import has_torch
from caption_extents.model.captioner import CaptionModel
from caption_extents.storage.store import Store, open_store
from caption_extents.video.inspection import Finding
from caption_extents.video.nvdec import driver
from caption_extents.video.nvdec.capabilities import decode_engines

DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video")
ENCODER = "libvpx-vp9"
GPU_CODECS = ("h264", "hevc", "vp9", "av1")


def examine(store: str) -> Iterator[Finding]:
    """Run all checks, and yield each finding. Objects written to check the store are removed again."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _ffmpeg()
    yield from _codecs()
    yield _model()
    yield from _gpu()
    yield _ocr()
    yield _store(store)


def _ffmpeg() -> Finding:
    libraries = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in sorted(library_versions.items()))
    return Finding("ffmpeg", "ok", f"PyAV {pyav_version} with {libraries}")


def _codecs() -> Iterator[Finding]:
    missing = [name for name in DECODERS if not _has_codec(name, "r")]
    if missing:
        remedy = (
            "install PyAV's wheel from PyPI, which carries FFmpeg with all of them: pip install --force-reinstall av"
        )
        yield Finding("decoders", "missing", f"no {', '.join(missing)}", remedy)
    else:
        yield Finding("decoders", "ok", ", ".join(DECODERS))
    if _has_codec(ENCODER, "w"):
        yield Finding("encoder", "ok", ENCODER)
    else:
        yield Finding("encoder", "broken", f"no {ENCODER}", "install PyAV's wheel from PyPI: its FFmpeg has libvpx")


def _has_codec(name: str, mode: str) -> bool:
    try:
        av.codec.Codec(name, mode)  # type: ignore[arg-type]
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _model() -> Finding:
    start = time.perf_counter()
    try:
        with CaptionModel() as model:
            return Finding("model", "ok", f"{model.version}, loaded in {time.perf_counter() - start:.2f} s")
    except CaptionExtentsError as error:
        return Finding("model", "broken", str(error), "install the package again: its weights are missing or damaged")


def _gpu() -> Iterator[Finding]:
    if not has_torch():
        count = driver.device_count()
        detail = f"{count} for decoding, none for the model: PyTorch is not installed" if count else "none"
        remedy = "runs use the CPU; with an NVIDIA GPU: install its driver, and pip install 'caption-extents[gpu]'"
        yield Finding("gpu", "missing", detail, remedy)
        return
    import torch

    built = f"PyTorch {torch.__version__}"
    if not torch.cuda.is_available():
        wants = torch.version.cuda
        detail = f"none that {built} can use" + (f" (built for CUDA {wants})" if wants else " (built for the CPU)")
        remedy = (
            "runs use the CPU. With an NVIDIA GPU: install its driver, and a CUDA build of PyTorch from pytorch.org"
        )
        yield Finding("gpu", "missing", detail, remedy)
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        yield Finding(
            f"cuda:{index}", "ok", f"{name}, {free >> 20} of {total >> 20} MiB free, {built}, CUDA {torch.version.cuda}"
        )
        engines = {codec: decode_engines(codec, device.index or 0) for codec in GPU_CODECS}
        known = {codec: found.count for codec, found in engines.items() if found is not None}
        if known:
            listed = ", ".join(f"{codec} {count}" for codec, count in known.items())
            yield Finding(f"nvdec:{index}", "ok", f"engines by codec: {listed}; other codecs are decoded on the CPU")
        else:
            remedy = "give a container the driver capability 'video' (NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
            yield Finding(f"nvdec:{index}", "missing", "the driver's video library is not there", remedy)


def _ocr() -> Finding:
    missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "to read captions' text: pip install 'caption-extents[ocr]'"
        return Finding("ocr", "missing", f"no {' and no '.join(missing)}", remedy)
    from caption_extents.ocr.tesseract import installed_languages

    known = len(installed_languages())
    beside = f"; Tesseract with {known} languages" if known else "; no Tesseract, which would read other languages"
    return Finding("ocr", "ok", f"rapidocr for Chinese, Japanese and Latin letters without Vietnamese{beside}")


def _try_store(store: Store, data: bytes) -> tuple[bool, str]:
    """Write, copy, read and remove; whether what was read is what was written, and how versions are claimed."""
    key = f"doctor/{uuid.uuid4().hex}"
    copy, probe = f"{key}-copy", "doctor/temporary/conditions/probe"
    try:
        store.put(key, data, "text/plain")
        same = store.get(key) == data and store.publish(key, copy) and store.get(copy) == data
        return same, store.protocol(key)
    finally:
        store.delete([key, copy, probe])


def _store(address: str) -> Finding:
    data = sys.version.encode()
    try:
        store = open_store(address)
        if store.folder is None or store.folder.exists():
            same, protocol = _try_store(store, data)
        else:
            # The folder does not exist yet: test a temporary folder next to it instead of creating it.
            trial = store.folder.with_name(f"{store.folder.name}-doctor-{uuid.uuid4().hex[:8]}")
            try:
                same, protocol = _try_store(open_store(trial), data)
            finally:
                shutil.rmtree(trial, ignore_errors=True)
    except (CaptionExtentsError, OSError) as error:
        remedy = "check address, credentials and rights; docs/storage.md says which variables are read"
        return Finding("store", "broken", str(error), remedy)
    if not same:
        return Finding("store", "broken", f"{address} gave back other bytes", "use another store")
    return Finding("store", "ok", f"{address} can be written and read; {protocol}")
