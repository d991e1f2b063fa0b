"""Program of the process that draws SVG files, run as a script: it imports nothing but the renderer.

Its arguments are the folder of the renderer, the most bytes of memory, and the resolution. It reads drawings from
standard input and writes PNG files to standard output until the input ends.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import BinaryIO

REQUEST = struct.Struct(">QII")  # bytes of the drawing, length of its longer side, seconds of processor time
ANSWER = struct.Struct(">?Q")  # whether it was drawn, bytes of the PNG or of the reason


def main(renderer: str, memory: int, dpi: float) -> None:
    """Answer requests. A drawing beyond a limit, or one that crashes the renderer, ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the main process ends this one
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the renderer prints is no answer
    sys.path.append(renderer)
    import resvg_py

    _limit_once(memory)
    while request := source.read(REQUEST.size):
        length, size, seconds = REQUEST.unpack(request)
        drawing = source.read(length).decode("utf-8")
        _limit_time(seconds)
        try:
            png = bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=size, height=size, dpi=dpi))
        except BaseException as error:  # a panic inside the renderer is a BaseException
            _answer(sink, False, (" ".join(str(error).split()) or type(error).__name__).encode("utf-8", "replace"))
        else:
            _answer(sink, True, png)


def _answer(sink: BinaryIO, drawn: bool, content: bytes) -> None:
    sink.write(ANSWER.pack(drawn, len(content)))
    sink.write(content)
    sink.flush()


def _limit_once(memory: int) -> None:
    """Limit address space and forbid core files and written files, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        except (OSError, ValueError):  # macOS has no limit of the address space
            continue


def _limit_time(seconds: int) -> None:
    """Allow `seconds` more of processor time."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
