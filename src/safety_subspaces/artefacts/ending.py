"""How our processes end: at a signal with its exit status and a word how to go on, and never later than their parent.

A signal is heard by Python's main thread only between two of its own instructions, which is never while a collective
waits for a rank that is gone. A thread therefore hears it too, and ends a process that takes too long to end itself.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A command has this long to put its files in order.
GRACE_SECONDS = 15.0
# Between two looks at a parent that the kernel does not watch for us.
POLL_SECONDS = 1.0
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Stopped(SystemExit):
    """A signal ends this command. Its notes say how to go on; left alone it ends the interpreter without a traceback.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        self.status = 128 + signum
        super().__init__(self.status)
        self.name = signal.Signals(signum).name

    def __str__(self) -> str:
        return f"stopped by {self.name}"


class LostProcessError(RuntimeError):
    """A worker or rank of ours has ended, or is silent, through no fault of the input; what it kept on disk is good."""


def listen() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP raise :class:`Stopped` once; what was ignored before stays so, as by ``nohup``."""
    _hearing.start(_raise_stopped, _end_late)


def obey(parent: int) -> None:
    """Hand signals on to the parent, which ends its children; and end when it ends.

    Args:
        parent: The process that started this one.
    """
    end_with(parent)
    _hearing.start(_leave_to_thread, lambda signum: os.kill(parent, signum))
    _hearing.obeyed = parent


def listen_again() -> None:
    """Take the signals back from a library that took them, in a process that listens or obeys."""
    _hearing.take_signals()


def end_obeyed(message: str) -> None:
    """Say why, and kill the parent that this process obeys, if it does: one that is stopped ends by nothing else."""
    if _hearing.obeyed is not None:
        _say(message)
        os.kill(_hearing.obeyed, signal.SIGKILL)  # this process ends with it


def received() -> Stopped | None:
    """Return what :func:`listen` has raised, if it has: a library may have made another error of it."""
    return _hearing.stopped


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends, also while it is stopped.

    Args:
        parent: The process that started this one, from its main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    else:
        watch_parent(parent, lambda: os._exit(1))
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def watch_parent(parent: int, then: Callable[[], Any]) -> None:
    """Do something when a parent ends whose threads are not known: the kernel would count a thread's end as its own."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        then()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_at_once(message: str, status: int = 1) -> NoReturn:
    """Say why, and end this process from any of its threads, whatever the others do."""
    _say(message)
    os._exit(status)


class _Hearing:
    """What this process does at a signal; a fork hears nothing of its own until it asks.

    A thread hears signals at once, whatever the main thread waits for.
    """

    def __init__(self) -> None:
        self.stopped: Stopped | None = None
        self.obeyed: int | None = None
        self.pid = os.getpid()
        self._handlers: dict[int, Callable[[int, Any], None]] = {}
        os.register_at_fork(after_in_child=self._forget)

    def start(self, handler: Callable[[int, Any], None], act: Callable[[int], None]) -> None:
        """Call ``handler`` in the main thread and ``act`` in another for each ending signal that is not ignored."""
        self._forget()
        self.pid = os.getpid()
        self._handlers = {each: handler for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN}
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(reading, act), name="signals", daemon=True).start()
        self.take_signals()

    def take_signals(self) -> None:
        """Set the handlers."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def _hear(self, reading: int, act: Callable[[int], None]) -> None:
        while received := os.read(reading, 1):
            if received[0] in self._handlers:
                act(received[0])

    def _forget(self) -> None:
        if self._handlers:
            signal.set_wakeup_fd(-1)  # else what a fork receives would be heard by its parent
        self._handlers, self.stopped, self.obeyed = {}, None, None


_hearing = _Hearing()


def _say(message: str) -> None:
    sys.stderr.write(f"\n{message}\n")  # below a progress bar
    sys.stderr.flush()


def _raise_stopped(signum: int, _: Any) -> None:
    if os.getpid() != _hearing.pid:  # a fork that was ended before it had handlers of its own
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    if _hearing.stopped is None:  # once: what puts files in order meanwhile is not to be stopped in turn
        _hearing.stopped = Stopped(signum)
        raise _hearing.stopped


def _leave_to_thread(signum: int, _: Any) -> None:
    """Do nothing, where the signal's default would end the process."""


def _end_late(signum: int) -> None:
    time.sleep(GRACE_SECONDS)
    stopped = _hearing.stopped or Stopped(signum)
    end_at_once("\n".join([str(stopped), *getattr(stopped, "__notes__", [])]), stopped.status)
