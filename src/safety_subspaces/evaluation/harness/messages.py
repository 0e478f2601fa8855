"""What lm-eval logs and prints, cut down to what a user can act on."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

logger = logging.getLogger(__name__)

# Parts of warnings that need no action: of a model in memory, of settings that were asked for, of a task's defaults,
# and of prompts that were cut, which the table counts.
EXPECTED = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model",
    "Custom kwargs can be passed",
    "Overwriting default num_fewshot",
    "specified through cli",
    "Multiple max token args provided",
    "is defined, but aggregation is not",
    "is defined, but higher_is_better is not",
    "No `generation_kwargs` specified",
    "No `until` specified",
    "num_fewshot > 0 but fewshot_split is None",
    "Left truncation applied",
    "exceeds model's maximum length",
)


class _Relay(logging.Handler):
    """Passes on warnings and errors that are not expected, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._seen and not any(part in message for part in EXPECTED):
            self._seen.add(message)
            logger.log(record.levelno, "lm-eval: %s", message)


@contextmanager
def quieted() -> Iterator[None]:
    """Keep lm-eval's prints and its expected messages from the terminal; its progress bars stay."""
    source, relay = logging.getLogger("lm_eval"), _Relay()
    level, propagate = source.level, source.propagate
    source.addHandler(relay)
    source.setLevel(logging.WARNING)
    source.propagate = False
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        source.removeHandler(relay)
        source.setLevel(level)
        source.propagate = propagate
