"""Chat templates within bounds: transformers renders them in a process of their own, which the system limits.

The process starts at the first rendering and is asked all that follow; it ends with this one, however that ends.
"""

import atexit
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from safety_subspaces.artefacts.errors import InputError

# Templates in use take milliseconds, and few megabytes beside the interpreter's fifty.
SECONDS = 1
BYTES = 512 * 2**20
# A process that is stopped, or on a machine that is busy with other things, is waited for.
WAIT_SECONDS = 60
# Characters that a template may add of its own, and how often it may repeat what it is given.
OWN_CHARACTERS, REPEATS = 2**18, 4
SCRIPT = Path(__file__).with_name("template_process.py")
COMPILER = "_cached_compile_jinja_template"


class BoundedTemplate:
    """A chat template, in the place of one that transformers has compiled.

    Args:
        source: The template.
    """

    def __init__(self, source: str) -> None:
        self._source = source

    def render(self, **values: Any) -> str:
        """Render it on plain values.

        Raises:
            InputError: It takes too long or too much memory, or writes too long a text.
            TemplateError: What the template itself raises; or it is no template.
        """
        longest = OWN_CHARACTERS + REPEATS * len(json.dumps(values))
        answer = _PROCESS.ask({"template": self._source, "values": values, "longest": longest})
        if "beyond" in answer:
            raise InputError(
                f"the chat template of the model goes beyond {answer['beyond']}, which no honest one needs. Ask where "
                "the model comes from, or choose a named prompt template instead"
            )
        if "error" in answer:
            raise TemplateError(answer["error"])
        return answer["text"]


@contextmanager
def bounded_templates() -> Iterator[None]:
    """Have transformers render chat templates within bounds inside the block, whoever asks it to."""
    compiler = chat_template_utils._compile_jinja_template
    chat_template_utils._compile_jinja_template = BoundedTemplate
    try:
        yield
    finally:
        chat_template_utils._compile_jinja_template = compiler


class _TemplateProcess:
    """The process that renders, started when it is first asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """Return its answer, or what bound it went beyond; then another process is started the next time."""
        with self._lock:
            process = self._process = self._process or _start()
            try:
                answer = _exchange(process, request)
            except BaseException:  # interrupted between question and answer: the next would get this one's
                self._end()
                raise
            if answer:
                return json.loads(answer)
            status = self._end()
            if status == -signal.SIGXCPU:
                return {"beyond": f"{SECONDS} seconds of computing"}
            return {"beyond": f"what its process may do (it ended with status {status})"}

    def close(self) -> None:
        """End it, if it runs."""
        with self._lock:
            if self._process:
                self._end()

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        self._lock = threading.Lock()
        if self._process:
            for stream in (self._process.stdin, self._process.stdout):
                os.close(stream.fileno())  # type: ignore[union-attr]
        self._process = None

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.stdout.close()  # type: ignore[union-attr]
        try:
            process.stdin.close()  # type: ignore[union-attr]
            return process.wait(timeout=1)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            return process.wait()


def _start() -> "subprocess.Popen[bytes]":
    compiler = inspect.getsource(getattr(chat_template_utils, COMPILER))
    limits = {"seconds": SECONDS, "bytes": BYTES, "compiler": compiler, "name": COMPILER}
    process = subprocess.Popen(
        [sys.executable, "-I", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
    )
    process.stdin.write(json.dumps(limits).encode() + b"\n")  # type: ignore[union-attr]
    return process


def _exchange(process: "subprocess.Popen[bytes]", request: dict[str, Any]) -> bytes:
    """Return the line of the answer; nothing where none comes."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    ready, _, _ = select.select([process.stdout], [], [], WAIT_SECONDS)
    return process.stdout.readline() if ready else b""


_PROCESS = _TemplateProcess()
atexit.register(_PROCESS.close)
os.register_at_fork(after_in_child=_PROCESS.forget)
