"""The process that commands under a fault are forked from: it adopts what they leave running.

Requests are lines of JSON on standard input, each with one answer: ``{"start": ...}`` forks a command, any other asks
which have ended.
"""

import ctypes
import json
import os
import sys
from functools import partial

from faults.hook import install
from support import zygote

CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans of the commands become children of this process


def main() -> None:
    """Import, then serve until standard input ends."""
    zygote.import_all()
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = {"pid": start(request["start"])}
        else:
            reap(ended)
            answer = {"ended": ended}
        print(json.dumps(answer), flush=True)


def start(request: dict) -> int:
    """Fork a command, and return its process id."""
    pid = os.fork()
    if pid == 0:
        fault = request.get("fault")
        os._exit(zygote.run(request, partial(install, fault)) if fault else zygote.run(request))
    return pid


def reap(ended: dict[int, int]) -> None:
    """Note the exit status of what has ended, adopted processes too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        ended[pid] = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
