"""Assigns a frame to each sample in exact rational time, and finds the packets that need not be decoded.

Sample k is the frame that a player shows k / frame_rate seconds after the first frame: the last one whose pts is not
later. Nothing here is rounded: pts are integers, the time base and the frame rate are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import av
import av.container
import av.error
import numpy as np

from caption_extents.errors import VideoError
from caption_extents.video.demux import MAX_PACKETS_PER_SECOND, OpenFile, decode_or_skip, open_container, read_packets
from caption_extents.video.info import WITHOUT_PRESENTATION_TIMES, PresentationClock, VideoFacts, no_times
from caption_extents.video.packets import NonReferenceFinder
from caption_extents.watchdog import report_progress

MAX_SAMPLES = 10 * 3600 * 48
"""Maximum number of samples: two days at ten per second; a longer timeline is treated as damaged timestamps."""

MAX_PACKETS = 48 * 3600 * 120
"""Two days at 120 frames a second."""

MAX_FRAME_SECONDS = 600
"""Maximum duration of one frame; a longer gap between timestamps is treated as damage.

It is also the longest time for which the last picture stands.
"""

_FIELD_PACKET_CONTAINERS = frozenset({"mpegts", "mpeg"})
"""Containers in which each field of a frame may be a separate packet with its own time."""

_CONCATENABLE_CONTAINERS = frozenset({"mpegts", "mpeg", "flv"})
"""Containers that can be concatenated as they are, so that each part may start its clock again."""

_BACK_SECONDS = 0.1
_MAX_LATE_PACKETS = 25
"""Number of late packets (about one second of video) up to which they are treated as damage, not as a clock reset."""

_MAX_UNTIMED_SHARE = 0.01

_STANDING_SECONDS = Fraction(1, 2)
"""Other streams must go on for this long after the last frame's own end."""


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
        end_pts: end of the last frame's display, in ticks.
    """

    sample_pts: np.ndarray
    skippable_pts: np.ndarray
    key_pts: np.ndarray
    frame_rate: Fraction
    time_base: Fraction
    end_pts: int

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
    return place_samples(index_frames(facts, arriving), facts.time_base, frame_rate)


def _until_sound_ends(
    index: FrameIndex, facts: VideoFacts, container: av.container.InputContainer, stream: av.VideoStream
) -> FrameIndex:
    """The index with the end of its last frame: where other streams go on, a player shows it until they end.

    Slides and screen recordings store a picture only when it changes. What the container says of its length is not
    believed if packets of sound do not last as long. A sound that ends a moment after the picture, as most do, changes
    nothing.
    """
    end, last = index.end_pts * facts.time_base, int(index.pts[-1])
    container_end = _end_of_container(container)
    at_least = end + _STANDING_SECONDS
    if not container.streams.audio or (container_end is not None and container_end <= at_least):
        return index
    end_of_sound = _end_of_sound(container, stream, (last, facts.first_pts))
    if container_end is not None:
        # The last packet may hold more than is to be heard (padding of the encoder).
        end_of_sound = min(end_of_sound, container_end)
    if end_of_sound < at_least:
        return index
    longest = last + int(MAX_FRAME_SECONDS / facts.time_base)
    return replace(index, end_pts=max(index.end_pts, min(longest, int(end_of_sound / facts.time_base))))


def _end_of_sound(container: av.container.InputContainer, stream: av.VideoStream, starts: tuple[int, ...]) -> Fraction:
    """When the last packet of sound ends, in seconds; read from the first of some times after which there is any."""
    end = Fraction(0)
    for start in starts:
        try:
            # Some demuxers (FLV) find nothing beyond the last key frame.
            container.seek(start, stream=stream, backward=True)
            for packet in container.demux(container.streams.audio):
                report_progress()
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * Fraction(packet.time_base))
        except (av.error.FFmpegError, IndexError):
            pass  # what has been read so far counts
        if end:
            break
    return end


def _end_of_container(container: av.container.InputContainer) -> Fraction | None:
    """When the container says that it ends, in seconds; None if it does not say."""
    start, length = container.start_time, container.duration
    return None if length is None else Fraction((start or 0) + length, av.time_base)


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
        end_pts=index.end_pts,
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
    # If the two fields of a frame are separate packets, the first one has the frame's time; only decoding pairs them.
    in_fields = facts.interlaced and facts.codec == "h264" and facts.container in _FIELD_PACKET_CONTAINERS
    if facts.container in WITHOUT_PRESENTATION_TIMES or in_fields:
        return _index_by_decoding(facts, arriving)
    pts: list[int] = []
    durations: list[int] = []
    non_reference: list[int] = []
    keys: list[int] = []
    order, is_one_stream = _ClockResetDetector(facts), True
    with open_container(facts.path, facts.stream_index, arriving=arriving) as (container, stream):
        finder = NonReferenceFinder(facts.codec, stream.codec_context.extradata)
        try:
            for packet in read_packets(container, stream):
                if order.count > MAX_PACKETS:
                    raise VideoError(f"{str(facts.path)!r} has more than {MAX_PACKETS} packets of video")
                if packet.size == 0 or (facts.codec == "vp8" and _is_hidden_vp8(packet)):
                    continue
                order.add(packet)
                if packet.pts is None:
                    return _index_by_decoding(facts, arriving)
                if packet.is_discard or packet.pts < facts.first_pts:
                    continue
                pts.append(packet.pts)
                durations.append(packet.duration or 0)
                is_one_stream = is_one_stream and not packet.has_sidedata("new_extradata")
                if packet.is_keyframe:
                    keys.append(packet.pts)
                elif finder(packet):
                    non_reference.append(packet.pts)
        except av.error.FFmpegError:
            # A damaged tail ends the video where reading ends; what can be decoded is decided by the decoder.
            if not pts:
                raise
        order.check()
        skippable = non_reference if finder.reliable else []
        # If parameter sets change in mid-stream, a decoder that starts at a later key frame lacks them: list none.
        index = _frame_index(facts, pts, durations, skippable, keys if is_one_stream else [], order.count)
        return _until_sound_ends(index, facts, container, stream)


def _is_hidden_vp8(packet: av.Packet[av.VideoStream]) -> bool:
    """Whether a packet's frame is there for others to refer to, and never shown (RFC 6386, 9.1)."""
    return not memoryview(packet)[0] >> 4 & 1


class _ClockResetDetector:
    """Detects that timestamps restart within a file, as in concatenated recordings, whose frames would be mixed up."""

    def __init__(self, facts: VideoFacts) -> None:
        self._facts = facts
        self.count = 0
        """Packets so far."""
        self._latest: int | None = None
        self._late = self._first_late = self._back = 0

    def add(self, packet: av.Packet[av.VideoStream]) -> None:
        """Take the next packet, in the order of the file."""
        self.count += 1
        dts = packet.dts
        if dts is None or self._facts.container not in _CONCATENABLE_CONTAINERS:
            return
        if self._latest is None or dts > self._latest:
            self._latest = dts
        elif (self._latest - dts) * self._facts.time_base > _BACK_SECONDS:
            if not self._late:
                self._first_late, self._back = self.count - 1, self._latest - dts
            self._late += 1

    def check(self) -> None:
        """Raise a VideoError if the timestamps restarted."""
        if self._late > _MAX_LATE_PACKETS:
            raise VideoError(
                f"the timestamps of {str(self._facts.path)!r} go back by "
                f"{float(self._back * self._facts.time_base):.1f} s at frame {self._first_late}, as in recordings "
                "that were put one after the other; give them one clock: ffmpeg -i IN -c copy out.mkv"
            )


def _index_by_decoding(facts: VideoFacts, arriving: OpenFile | None) -> FrameIndex:
    """Index the frames by decoding the whole file; used if packets do not give the presentation time of every frame."""
    pts: list[int] = []
    durations: list[int] = []
    keys: set[int] = set()
    untimed = 0
    clock, order = PresentationClock(facts.container, facts.usual_duration), _ClockResetDetector(facts)
    with open_container(facts.path, facts.stream_index, 0, arriving) as (container, stream):
        for packet in read_packets(container, stream):
            if packet.size:
                order.add(packet)
            if packet.is_keyframe and packet.pts is not None:
                keys.add(packet.pts)
            for frame in decode_or_skip(packet):
                untimed += frame.pts is None
                time = clock(frame)
                if time is not None and time >= facts.first_pts:
                    pts.append(time)
                    # Of a frame in two packets it is half of what the frame is shown.
                    durations.append(0 if facts.interlaced else frame.duration or 0)
        order.check()
        if untimed > _MAX_UNTIMED_SHARE * len(pts) and facts.times_every_frame:
            raise no_times(facts.path)
        # Estimated times depend on decoding from the first frame, so decoders must not start at later key frames.
        key_pts = sorted(keys.intersection(pts)) if facts.times_every_frame else []
        index = _frame_index(facts, pts, durations, [], key_pts, order.count)
        return _until_sound_ends(index, facts, container, stream)


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
    # Frames with the same pts cannot be distinguished: never skip them, and do not use them as key frames.
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
    """Assumed duration, in ticks, of a last frame without one: that of the frame before it, or the header's average."""
    if len(pts) > 1:
        return int(pts[-1] - pts[-2])
    return facts.usual_duration
