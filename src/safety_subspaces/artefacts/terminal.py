"""What stands between this program and a terminal: its encoding, and what control characters would do to it."""

import codecs
import io
import locale
import os
import re
import sys
from typing import Any

from safety_subspaces.artefacts.text import shown

# What a progress bar writes to move the cursor: to the start of its line, and between the lines of several bars.
CURSOR_MOVES = re.compile(r"\n*(\x1b\[A)*\Z|\r")
MOST_IN_BAR = 1000  # characters; no terminal is as wide


def use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: files are UTF-8 everywhere.

    Libraries open files in the encoding of the locale, and so are names of files read. Standard output stays in the
    terminal's encoding.
    """
    encoding = locale.getpreferredencoding(False)
    if sys.flags.utf8_mode or codecs.lookup(encoding).name == "utf-8":
        return
    streams = os.environ.get("PYTHONIOENCODING", f"{encoding}:backslashreplace")
    os.environ.update({"PYTHONUTF8": "1", "PYTHONIOENCODING": streams})
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def show_as_text(stream: Any) -> None:
    """Have a stream show control characters as text, but those that progress bars move the cursor by.

    The stream itself is changed: handlers of logs and bars hold on to it.
    """
    if not isinstance(stream, io.TextIOWrapper) or "write" in vars(stream):
        return
    stream.reconfigure(errors="backslashreplace")
    write = stream.write

    def write_shown(text: str) -> int:
        moves = CURSOR_MOVES.match(text)
        start = moves.end() if moves else 0
        write(text[:start] + shown(text[start:], most=MOST_IN_BAR if start else len(text)))
        return len(text)

    stream.write = write_shown  # type: ignore[method-assign]
