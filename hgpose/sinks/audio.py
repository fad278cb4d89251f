"""The sound of a source, taken along into its overlay."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import av
from av.container import InputContainer, OutputContainer

#: Codecs that players know in an MP4; any other becomes AAC.
_COPIED = {"aac", "ac3", "alac", "eac3", "mp3", "opus"}
_AAC_RATE_HZ = 48_000

SoundPacket: TypeAlias = "av.Packet[av.AudioStream]"


def add_sound(
    path: Path, out: OutputContainer, start_s: Fraction, resources: ExitStack
) -> Iterator[SoundPacket]:
    """Adds a stream with the sound of a file to a video that has not been written to yet.

    Sound is a courtesy: where it is missing or damaged it ends, and the pictures go on.

    Args:
        path: a file with or without sound.
        out: the video.
        start_s: the time in the file that is 0 in the video.
        resources: keeps the file open.

    Returns:
        What is to be muxed into ``out``, in the order of time, from ``start_s`` on.
    """
    with suppress(av.FFmpegError, OSError):
        # A file object, as the source reads it: no name is taken for a protocol or a playlist.
        file = resources.enter_context(io.FileIO(path))
        options = {"protocol_whitelist": "none"}
        container = av.open(file, "r", options=options, metadata_errors="replace")
        resources.enter_context(container)
        stream = container.streams.best("audio")
        if isinstance(stream, av.AudioStream) and stream.codec_context is not None:
            if stream.codec_context.codec.canonical_name in _COPIED:
                target = out.add_stream_from_template(stream)
                packets = _from(start_s, container, stream)
            else:
                layout = "mono" if stream.codec_context.layout.nb_channels == 1 else "stereo"
                target = out.add_stream("aac", rate=_AAC_RATE_HZ, layout=layout)
                packets = _encoded(_from(start_s, container, stream), target)
            return _shifted(packets, start_s, target)
    return iter(())


def _from(start_s: Fraction, container: InputContainer, stream: av.AudioStream) -> Iterator[SoundPacket]:
    """The packets of a file that are heard at ``start_s`` or later, and the one a decoder warms up on."""
    with suppress(av.FFmpegError, OSError):
        for packet in container.demux(stream):
            if packet.pts is None or (packet.pts + (packet.duration or 0)) * packet.time_base >= start_s:
                yield packet


def _encoded(packets: Iterator[SoundPacket], target: av.AudioStream) -> Iterator[SoundPacket]:
    """The sound of ``packets`` as ``target`` has it."""
    with suppress(av.FFmpegError):
        for packet in packets:
            for frame in packet.decode():
                yield from target.encode(frame)
        yield from target.encode(None)


def _shifted(
    packets: Iterator[SoundPacket], start_s: Fraction, target: av.AudioStream
) -> Iterator[SoundPacket]:
    """The packets with ``start_s`` as 0; one that does not come later than the one before is left out."""
    last: int | None = None
    for packet in packets:
        shift = round(start_s / packet.time_base)
        if packet.pts is None or packet.dts is None or (last is not None and packet.dts <= last):
            continue
        last = packet.dts
        packet.pts -= shift
        packet.dts -= shift
        packet.stream = target
        yield packet
