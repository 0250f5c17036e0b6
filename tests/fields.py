"""H.264 that no encoder at hand writes, bit by bit: pictures in two fields, and headers that leave something out."""

from __future__ import annotations

import numpy as np


class Bits:
    """Bits of a NAL unit's payload, in the codes of ITU-T H.264, 9.1."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def u(self, width: int, *values: int) -> Bits:
        for value in values:
            self.bits += [value >> place & 1 for place in range(width - 1, -1, -1)]
        return self

    def ue(self, *values: int) -> Bits:
        for value in values:
            length = (value + 1).bit_length()
            self.u(length - 1, 0).u(length, value + 1)
        return self

    def align(self) -> Bits:
        return self.u(-len(self.bits) % 8, 0)

    def unit(self, header: int) -> bytes:
        """The NAL unit with its start code."""
        self.u(1, 1).align()
        return b"\0\0\0\1" + bytes([header]) + escaped(np.packbits(np.asarray(self.bits, np.uint8)).tobytes())


def escaped(payload: bytes) -> bytes:
    """With emulation prevention (7.4.1)."""
    out, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def field_pairs(lumas: list[np.ndarray], group: int) -> list[tuple[bytes, bytes]]:
    """Access units of both fields of each picture, uint8 (H, W), in I_PCM macroblocks; others refer to the even ones.

    H must be a multiple of 32 and W one of 16; chroma is grey. Every ``group`` pictures a key frame begins.
    """
    height, width = lumas[0].shape
    sps = Bits().u(8, 77, 0, 30).ue(0, 4, 0, 4, 2).u(1, 0).ue(width // 16 - 1, height // 32 - 1)
    # Fields and no macroblock-adaptive frames; of the VUI only that nothing is reordered.
    sps.u(1, 0, 0, 1, 0, 1).u(1, 0, 0, 0, 0, 0, 0, 0, 0).u(1, 1, 1).ue(0, 0, 10, 10, 0, 2)
    pps = Bits().ue(0, 0).u(1, 0, 0).ue(0, 0, 0).u(1, 0).u(2, 0).ue(0, 0, 0).u(1, 1, 0, 0)
    parameters, pairs, number, order = sps.unit(0x67) + pps.unit(0x68), [], 0, 0
    for index, luma in enumerate(lumas):
        is_key, is_reference = index % group == 0, index % 2 == 0
        number, order = (0, 0) if is_key else (number, order)
        first = _field(luma[0::2], is_key, False, is_reference, number, order, index // group & 1)
        second = _field(luma[1::2], False, True, is_reference, number, order + 1, 0)
        pairs.append(((parameters if is_key else b"") + first, second))
        number, order = (number + is_reference) % 256, order + 2
    return pairs


def _field(
    luma: np.ndarray, is_key: bool, is_bottom: bool, is_reference: bool, number: int, order: int, key_number: int
) -> bytes:
    slice_ = Bits().ue(0, 7, 0).u(8, number).u(1, 1, int(is_bottom))
    if is_key:
        slice_.ue(key_number)
    slice_.u(8, order & 255)
    if is_reference:
        slice_.u(1, *([0, 0] if is_key else [0]))
    slice_.ue(0, 1)  # no other quantiser, and no deblocking
    grey = np.full(128, 128, np.uint8)
    for top in range(0, luma.shape[0], 16):
        for left in range(0, luma.shape[1], 16):
            block = np.clip(luma[top : top + 16, left : left + 16], 1, 254).ravel()
            slice_.ue(25).align()
            slice_.bits += np.unpackbits(np.concatenate([block, grey])).tolist()
    return slice_.unit((0x40 if is_reference else 0) | (5 if is_key else 1))


def without_vui(unit: bytes) -> bytes:
    """An Annex B access unit of a progressive stream, its SPS without the VUI, which tells what is reordered."""
    nals = [nal.removesuffix(b"\0") for nal in unit.split(b"\0\0\1")]
    return b"".join(b"\0\0\0\1" + (_shortened(nal) if nal[0] & 0x1F == 7 else nal) for nal in nals if nal)


def _shortened(sps: bytes) -> bytes:
    bits = np.unpackbits(np.frombuffer(sps[1:].replace(b"\0\0\3", b"\0\0"), np.uint8)).tolist()
    at = 24

    def ue() -> int:
        nonlocal at
        zeros = bits[at:].index(1)
        at += 2 * zeros + 1
        return int("".join(map(str, bits[at - zeros - 1 : at])), 2) - 1

    ue()
    if sps[1] == 100:  # High: 4:2:0 at 8 bits, no bypass of the transform, no scaling lists
        assert [ue(), ue(), ue(), *bits[at : at + 2]] == [1, 0, 0, 0, 0]
        at += 2
    ue()
    if ue() == 0:
        ue()
    ue()
    at += 1
    ue(), ue()
    assert bits[at]
    at += 2
    at += 1
    if bits[at - 1]:
        ue(), ue(), ue(), ue()
    assert bits[at]
    kept = Bits()
    kept.bits = [*bits[:at], 0]
    return kept.unit(sps[0])[4:]
