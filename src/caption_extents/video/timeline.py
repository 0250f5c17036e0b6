"""Which frame is sample k, in exact rational time, and which packets must be decoded for the samples.

Sample k is the frame that a player shows k / frame_rate seconds after the first frame: the last one whose pts is not
later. Nothing here is rounded: pts are integers, the time base and the frame rate are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av.error
import numpy as np

from caption_extents.errors import VideoError
from caption_extents.video.packets import NonReferenceFinder
from caption_extents.video.source import (
    MAX_PACKETS_PER_SECOND,
    WITHOUT_PRESENTATION_TIMES,
    OpenFile,
    PresentationClock,
    VideoFacts,
    decode_or_skip,
    open_video,
    read_packets,
)

MAX_SAMPLES = 10 * 3600 * 48
"""Two days at ten samples a second; a longer timeline is taken for damaged timestamps."""

MAX_PACKETS = 48 * 3600 * 120
"""Two days at 120 frames a second."""

MAX_FRAME_SECONDS = 600
"""Films and screen recordings show no picture longer than this without storing it again."""

_FALLBACK_FRAME_SECONDS = Fraction(1, 25)


@dataclass(frozen=True)
class FrameIndex:
    """Timestamps of all frames of a stream, in presentation order.

    Attributes:
        pts: int64 (F,), strictly increasing, in ticks.
        end_pts: end of the last frame's display, in ticks.
        skippable_pts: int64, sorted; frames that no other frame needs.
        key_pts: int64, sorted; frames that the container marks as key frames.
    """

    pts: np.ndarray
    end_pts: int
    skippable_pts: np.ndarray
    key_pts: np.ndarray


@dataclass(frozen=True)
class Timeline:
    """The samples of a video.

    Attributes:
        sample_pts: int64 (N,); pts of the frame that is sample k.
        skippable_pts: int64, sorted; frames that neither a sample nor another frame needs: packets to leave out.
        key_pts: int64, sorted; frames that the container marks as key frames.
        frame_rate: samples a second.
        time_base: seconds in a tick.
    """

    sample_pts: np.ndarray
    skippable_pts: np.ndarray
    key_pts: np.ndarray
    frame_rate: Fraction
    time_base: Fraction

    def __len__(self) -> int:
        return len(self.sample_pts)


def build_timeline(facts: VideoFacts, frame_rate: Fraction, arriving: OpenFile | None = None) -> Timeline:
    """Read all packets of the video and place its samples; see :func:`index_frames`.

    Args:
        facts: of the video.
        frame_rate: samples a second.
        arriving: how to read the file, if it is not all there yet.

    Raises:
        VideoError: the file cannot be read, or its timestamps span more than two days.
    """
    index = index_frames(facts, arriving)
    return place_samples(index, facts.time_base, frame_rate)


def place_samples(index: FrameIndex, time_base: Fraction, frame_rate: Fraction) -> Timeline:
    """The timeline of indexed frames.

    Raises:
        VideoError: more than ``MAX_SAMPLES`` samples.
    """
    first = int(index.pts[0])
    ticks = frame_rate * time_base
    # All k with k / frame_rate before the end of the last frame: k < (end - first) * time_base * frame_rate.
    span = (index.end_pts - first) * ticks
    count = max(1, -(-span.numerator // span.denominator))
    if count > MAX_SAMPLES:
        raise VideoError(
            f"the timestamps span {float(span / frame_rate / 3600):.1f} hours, {count} samples; "
            f"at most {MAX_SAMPLES} are allowed. If the file is shorter, its timestamps are damaged: remux it"
        )
    frames = np.searchsorted(index.pts, sample_times(first, count, time_base, frame_rate), side="right") - 1
    sample_pts = index.pts[frames]
    return Timeline(
        sample_pts=sample_pts,
        skippable_pts=np.setdiff1d(index.skippable_pts, sample_pts),
        key_pts=index.key_pts,
        frame_rate=frame_rate,
        time_base=time_base,
    )


def sample_times(first_pts: int, count: int, time_base: Fraction, frame_rate: Fraction) -> np.ndarray:
    """When the first ``count`` samples are shown, in ticks rounded down; int64 (count,)."""
    ticks = frame_rate * time_base
    # floor(k / (frame_rate * time_base)); in Python's integers where 64 bits would overflow.
    if count * ticks.denominator < 2**63:
        return first_pts + np.arange(count, dtype=np.int64) * ticks.denominator // ticks.numerator
    times = (first_pts + k * ticks.denominator // ticks.numerator for k in range(count))
    return np.fromiter(times, np.int64, count)


def index_frames(facts: VideoFacts, arriving: OpenFile | None = None) -> FrameIndex:
    """Timestamps of all frames: from packets where the container keeps presentation times, else by decoding."""
    if facts.container in WITHOUT_PRESENTATION_TIMES:
        return _index_by_decoding(facts, arriving)
    pts: list[int] = []
    durations: list[int] = []
    non_reference: list[int] = []
    keys: list[int] = []
    count = 0
    with open_video(facts.path, arriving=arriving) as (container, stream):
        finder = NonReferenceFinder(facts.codec, stream.codec_context.extradata)
        try:
            for packet in read_packets(container, stream):
                if count > MAX_PACKETS:
                    raise VideoError(f"{str(facts.path)!r} has more than {MAX_PACKETS} packets of video")
                if packet.size == 0:
                    continue
                count += 1
                if packet.pts is None:
                    return _index_by_decoding(facts, arriving)
                if packet.is_discard or packet.pts < facts.first_pts:
                    continue
                pts.append(packet.pts)
                durations.append(packet.duration or 0)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                elif finder(packet):
                    non_reference.append(packet.pts)
        except av.error.FFmpegError:
            # A damaged tail ends the video where reading ends; what can be decoded is decided by the decoder.
            if not pts:
                raise
    skippable = non_reference if finder.reliable else []
    return _frame_index(facts, pts, durations, skippable, keys, count)


def _index_by_decoding(facts: VideoFacts, arriving: OpenFile | None) -> FrameIndex:
    """Presentation times as the decoder knows them: the file is decoded once more than otherwise."""
    pts: list[int] = []
    durations: list[int] = []
    count, clock = 0, PresentationClock(facts.container)
    with open_video(facts.path, 0, arriving) as (container, stream):
        for packet in read_packets(container, stream):
            count += packet.size > 0
            for frame in decode_or_skip(packet):
                time = clock(frame)
                if time is not None and time >= facts.first_pts:
                    pts.append(time)
                    durations.append(frame.duration or 0)
    return _frame_index(facts, pts, durations, [], [], count)


def _frame_index(
    facts: VideoFacts, pts: list[int], durations: list[int], skippable: list[int], keys: list[int], packets: int
) -> FrameIndex:
    if not pts:
        raise VideoError(f"no frame of {str(facts.path)!r} has a timestamp; the file is damaged")
    times = np.asarray(pts, np.int64)
    unique = np.unique(times)
    _check_density(facts, packets, int(unique[-1] - unique[0]))
    last = int(unique[-1])
    _check_gaps(facts, unique)
    duration = int(np.asarray(durations, np.int64)[times == last].max())
    if not 0 < duration * facts.time_base <= MAX_FRAME_SECONDS:
        duration = _likely_duration(facts, unique)
    # Two frames with one pts share their fate: left out only if both may be.
    repeated = unique[np.unique(times, return_counts=True)[1] > 1]
    return FrameIndex(
        pts=unique,
        end_pts=last + duration,
        skippable_pts=np.setdiff1d(np.asarray(skippable, np.int64), repeated),
        key_pts=np.setdiff1d(np.asarray(keys, np.int64), repeated),
    )


def _check_density(facts: VideoFacts, packets: int, span: int) -> None:
    seconds = float(span * facts.time_base)
    if packets > MAX_PACKETS_PER_SECOND * (1 + seconds):
        raise VideoError(
            f"{str(facts.path)!r} has {packets} packets in {seconds:.1f} s; {MAX_PACKETS_PER_SECOND} a second are "
            "allowed. If the film is longer, its timestamps are damaged: remux it"
        )


def _check_gaps(facts: VideoFacts, pts: np.ndarray) -> None:
    gaps = np.diff(pts)
    longest = int(gaps.argmax()) if len(gaps) else 0
    seconds = float(int(gaps[longest]) * facts.time_base) if len(gaps) else 0.0
    if seconds > MAX_FRAME_SECONDS:
        raise VideoError(
            f"the timestamps of {str(facts.path)!r} jump by {seconds:.0f} s after frame {longest}, and a frame may "
            f"stay for {MAX_FRAME_SECONDS} s at most; its timestamps are damaged: remux it"
        )


def _likely_duration(facts: VideoFacts, pts: np.ndarray) -> int:
    """Ticks of a last frame that does not tell: as the one before it, or as the header's average."""
    if len(pts) > 1:
        return int(pts[-1] - pts[-2])
    seconds = 1 / facts.average_rate if facts.average_rate else _FALLBACK_FRAME_SECONDS
    return max(1, round(seconds / facts.time_base))
