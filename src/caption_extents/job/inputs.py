"""Finding and opening the video of a job: a local file, or an object in the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from urllib.request import url2pathname

from caption_extents.errors import VideoError
from caption_extents.job.resources import Resources
from caption_extents.options import Job
from caption_extents.pipeline.clocks import Progress, ProgressCallback
from caption_extents.storage.keys import is_key
from caption_extents.storage.store import Store
from caption_extents.video.demux import check_file
from caption_extents.video.video import Decoding, StartedVideo, Video, open_arriving, open_local
from caption_extents.watchdog import Watchdog


@contextmanager
def open_input(
    job: Job, store: Store, decoding: Decoding, resources: Resources, watchdog: Watchdog
) -> Iterator[tuple[Path, Video]]:
    """Open the video of a job; yields the path of its (possibly downloaded) file and the opened video.

    Args:
        job: the job; its ``video_key`` is a local path or a key in the store.
        store: the store that may contain the video.
        decoding: which decoder to use.
        resources: child processes that read and decode it.
        watchdog: the run's watchdog.

    Raises:
        VideoError: the video does not exist or cannot be used.
    """
    local = _local_path(job.video_key, store)
    if local is not None:
        resources.begin_decoding()
        with watchdog.entered(repr(job.video_key), _opened(local, job, decoding, resources)) as video:
            yield local, video
        return
    if store.folder is not None or not is_key(job.video_key) or not store.exists(job.video_key):
        raise VideoError(
            f"there is no video {job.video_key!r}: no file of this name here, and no object in {store.address}"
        )
    with (
        TemporaryDirectory(prefix="caption-extents-") as folder,
        store.start_download(job.video_key, Path(folder) / "video", _download_progress(job.progress)) as download,
    ):
        if decoding.isolated is not None or not resources.reads_arriving:
            download.wait()
            opening = _opened(download.path, job, decoding, resources)
        else:
            opening = open_arriving(download, job.rate, decoding)
        resources.begin_decoding()
        with watchdog.entered(repr(job.video_key), opening) as video:
            yield download.path, video


@contextmanager
def _opened(path: Path, job: Job, decoding: Decoding, resources: Resources) -> Iterator[Video]:
    with ExitStack() as opened:
        if decoding.gpu is None:
            video = open_local(path, job.rate, decoding, resources.children)
        else:
            started = opened.enter_context(closing(resources.started(job, path, decoding.gpu)))
            video = StartedVideo(started.reader, started.sessions, decoding)
        yield opened.enter_context(video)


def _local_path(key: str, store: Store) -> Path | None:
    """Path of the video's local file (possibly in a folder store); None if it can only be an object in the store.

    Raises:
        VideoError: the path is not a regular file, or ``key`` is a URL of another scheme than ``file``.
    """
    scheme = key.partition("://")[0] if "://" in key else ""
    if scheme not in {"", "file"}:
        raise VideoError(
            f"{key!r} is an address, and videos are read from this machine or from the store; "
            "download it first, or give its key in the store"
        )
    local = Path(os.path.expanduser(url2pathname(urlsplit(key).path) if scheme else key))  # noqa: PTH111 never raises
    if _is_there(local):
        check_file(local)
        return local
    if store.folder is not None and is_key(key) and _is_there(object_ := store.folder / key):
        check_file(object_)
        return object_
    return None


def _is_there(path: Path) -> bool:
    """Whether the path exists; also True if its status cannot be read, for example for lack of permission."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass
    return True


def _download_progress(progress: ProgressCallback | None) -> Callable[[int, int], None] | None:
    """Downloaded bytes as progress of the stage ``download``, in MiB."""
    if progress is None:
        return None
    return lambda done, total: progress(Progress("download", done >> 20, max(1, total >> 20)))
