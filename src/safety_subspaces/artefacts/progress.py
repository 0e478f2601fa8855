"""Progress bars: a job has one line, whatever runs inside it, and a file gets few of them."""

import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from tqdm import tqdm

# Seconds between two states of a bar that is written to a file, where each stays.
PIPED_SECONDS: Final = 60.0
_open: "list[Bar]" = []


class Bar(tqdm):
    """A bar of tqdm. Where another is open in this process, that one tells what this one would.

    Args:
        arguments: As of tqdm.
        disable: Whether to show nothing.
        options: As of tqdm.
    """

    quiet = False  # of the whole process: ``--quiet``

    def __init__(self, *arguments: Any, disable: bool = False, **options: Any) -> None:
        self._outer = _open[0] if _open and not disable else None
        self._label, self._own, self._told = str(options.get("desc") or ""), "", 0.0
        if not sys.stderr.isatty():
            options = {"mininterval": PIPED_SECONDS, "maxinterval": PIPED_SECONDS, **options}
        hidden = disable or self.quiet or self._outer is not None
        super().__init__(*arguments, disable=hidden, dynamic_ncols=True, **options)
        if not hidden:
            _open.append(self)

    def __iter__(self) -> Iterator[Any]:
        if self._outer is None:
            yield from super().__iter__()
            return
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n: int | float | None = 1) -> bool | None:
        """Count what was done."""
        if self._outer is None:
            return super().update(n)
        self.n += n or 0
        self._outer.tell(f"{self._label} {self.n:g}/{self.total:g}" if self.total else self._label)
        return None

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Say something behind the bar."""
        self._own = s
        if not self.disable:
            super().set_postfix_str(s, refresh)

    def tell(self, inside: str) -> None:
        """Say behind the bar what runs inside it, as often as a bar is drawn; nothing when that has ended."""
        now = time.monotonic()
        if self.disable or (inside and now - self._told < self.mininterval):
            return
        self._told = now
        super().set_postfix_str(", ".join(filter(None, [self._own, inside])), refresh=bool(inside))

    def close(self) -> None:
        """End the bar."""
        outer: Bar | None = getattr(self, "_outer", None)  # not there yet where tqdm refused its arguments
        if outer is not None:
            outer.tell("")
        if self in _open:
            _open.remove(self)
        super().close()
