"""Recognises recordings by their first bytes, where raw samples are expected.

A recording taken for samples would be noise, and noise becomes text. Samples may begin with any
bytes, so a short mark must appear again at the start of the next frame.
"""

from collections.abc import Callable

# Kinds of recordings by a mark that no samples of speech begin with: its position, mark, name.
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (0, b"FORM", "AIFF"),
    (0, b"caff", "CAF"),
    (0, b".snd", "AU"),
    (0, b"FLV\x01", "FLV"),
    (0, b"#!AMR", "AMR"),
    (0, b"riff\x2e\x91\xcf\x11", "W64"),
    (0, b"RIFX", "big-endian WAV"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "TTA"),
    (0, b"ADIF", "AAC"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"\0\0\1\xba", "MPEG video"),
    (0, b"Creative Voice", "VOC"),
    (0, b".RMF", "RealMedia"),
    (0, b"#EXTM3U", "a playlist"),
    (4, b"ftyp", "MP4"),
    (4, b"moov", "MP4"),
    (4, b"mdat", "MP4"),
    (8, b"AVI ", "AVI"),
)
_TS_SYNC = 0x47
_TS_PACKETS = ((0, 188), (4, 192))  # position of the first mark and size of a packet, in bytes
_FRAMES_IN_A_ROW = 3

# ISO 11172-3 and 13818-3: kbit/s by index; the keys are MPEG 1 or 2, and the layer.
_BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)  # of MPEG 1; half as high in MPEG 2, a quarter in MPEG 2.5
_ADTS_HEADER = 7  # bytes


def recognise(start: bytes, look_ahead: Callable[[int], bytes]) -> str | None:
    """Return the kind of recording that begins with `start`; None for a WAV or possible samples.

    Args:
        start: the first 12 bytes, or all bytes if there are fewer.
        look_ahead: returns that many of the first bytes, or all bytes if there are fewer. Called
            only if `start` looks like the beginning of a frame, because a live pipe takes time.
    """
    for place, mark, kind in _MARKS:
        if start.startswith(mark, place):
            return kind
    if start.startswith(b"RIFF") and start[8:12] != b"WAVE":
        return f"RIFF of kind {start[8:12]!r}"
    if len(start) < 5:
        return None
    for place, size in _TS_PACKETS:
        if start[place] == _TS_SYNC:
            packets = look_ahead(place + size * _FRAMES_IN_A_ROW)
            marks = packets[place::size]
            if len(marks) == _FRAMES_IN_A_ROW and set(marks) == {_TS_SYNC}:
                return "MPEG-TS"
    for kind, frame_size in (("AAC", _adts_frame), ("MP3", _mpeg_frame)):
        if frame_size(start) and _frames_follow(frame_size, look_ahead):
            return kind
    return None


def _frames_follow(frame_size: Callable[[bytes], int], look_ahead: Callable[[int], bytes]) -> bool:
    """Whether three frames follow one another from the first byte."""
    position, header = 0, _ADTS_HEADER
    for _ in range(_FRAMES_IN_A_ROW):
        content = look_ahead(position + header)
        size = frame_size(content[position:])
        if not size:
            return False
        position += size
    return True


def _adts_frame(head: bytes) -> int:
    """Return the bytes of the AAC frame that begins here (ISO 13818-7, section 6.2); 0 if none."""
    if len(head) < _ADTS_HEADER or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    if head[2] >> 2 & 15 > 12:
        return 0  # no such sample rate
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > _ADTS_HEADER else 0


def _mpeg_frame(head: bytes) -> int:
    """Return the bytes of the MP1, MP2 or MP3 frame that begins here; 0 if none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version = {0: 4, 2: 2, 3: 1}.get(head[1] >> 3 & 3)  # 4 for MPEG 2.5
    layer = 4 - (head[1] >> 1 & 3)
    rate_index, sample_rate_index = head[2] >> 4, head[2] >> 2 & 3
    if version is None or layer == 4 or not 0 < rate_index < 15 or sample_rate_index == 3:
        return 0
    table = (1, layer) if version == 1 else (2, min(layer, 2))
    bits = _BIT_RATES[table][rate_index - 1] * 1000
    rate = _RATES[sample_rate_index] // version
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4
    slots = 72 if layer == 3 and version != 1 else 144
    return slots * bits // rate + padding
