"""Cutting a stream of packets at key frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from caption_extents.video.nvdec.segments import cut_segments, plan_spans
from caption_extents.video.timeline import Timeline


@dataclass(frozen=True)
class Packet:
    pts: int | None
    is_keyframe: bool = False


def stream(groups: list[tuple[int, int]]) -> list[Packet]:
    """Packets in decoding order of groups with so many leading and trailing frames, each a tick long."""
    packets, at = [], 0
    for leading, trailing in groups:
        key = at + leading
        packets.append(Packet(key, is_keyframe=True))
        packets += [Packet(pts) for pts in range(at, key)]
        # Trailing frames with a B frame before the frame that it needs.
        order = list(range(key + 1, key + 1 + trailing))
        order[1::2], order[::2] = order[::2][: len(order[1::2])], (order[1::2] + order[::2][-1:])[: len(order[::2])]
        packets += [Packet(pts) for pts in order]
        at = key + 1 + trailing
    return packets


def timeline_of(packets: list[Packet], step: int) -> Timeline:
    pts = sorted(packet.pts for packet in packets if packet.pts is not None)
    keys = [packet.pts for packet in packets if packet.is_keyframe]
    empty = np.empty(0, np.int64)
    return Timeline(
        np.asarray(pts[::step], np.int64), empty, np.asarray(keys, np.int64), Fraction(1), Fraction(1), pts[-1] + 1
    )


groups = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=8)


@given(groups=groups, step=st.integers(1, 5), least=st.integers(1, 6))
def test_every_segment_has_what_it_shows(groups: list[tuple[int, int]], step: int, least: int) -> None:
    groups = [(0, groups[0][1]), *groups[1:]]
    packets = stream(groups)
    timeline = timeline_of(packets, step)
    spans = plan_spans(timeline, least)
    assert [span.first_sample for span in spans] == [0, *(span.last_sample for span in spans[:-1])]
    assert spans[-1].last_sample == len(timeline)
    assert all(len(span) >= least for span in spans[:-1])
    segments = list(cut_segments(packets, spans))
    assert [segment.number for segment in segments] == list(range(len(spans)))
    for segment in segments:
        span, held = segment.span, [packet.pts for packet in segment.packets]
        assert segment.packets[0].is_keyframe
        assert segment.packets[0].pts == span.start_pts
        assert len(held) == len(set(held))
        # In decoding order, as in the stream.
        assert held == [packet.pts for packet in packets if packet.pts in set(held)]
        for packet in packets:
            shown = packet.pts >= span.start_pts and (span.end_pts is None or packet.pts < span.end_pts)
            assert not shown or packet.pts in held
        samples = timeline.sample_pts[span.first_sample : span.last_sample].tolist()
        assert all(pts >= span.start_pts and (span.end_pts is None or pts < span.end_pts) for pts in samples)


def test_without_key_frames_there_is_one_segment() -> None:
    packets = [Packet(pts) for pts in range(50)]
    spans = plan_spans(timeline_of(packets, 3), 2)
    (segment,) = cut_segments(packets, spans)
    assert segment.packets == packets


def test_leading_pictures_belong_to_both_sides() -> None:
    packets = stream([(0, 3), (2, 3)])
    spans = plan_spans(timeline_of(packets, 1), 1)
    first, second = cut_segments(packets, spans)
    assert [packet.pts for packet in first.packets] == [0, 2, 1, 3, 6, 4, 5]
    assert [packet.pts for packet in second.packets] == [6, 4, 5, 8, 7, 9]
