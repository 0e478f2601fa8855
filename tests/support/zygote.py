"""A process that has imported what the entry points import, and forks one that runs a command each time it is asked.

A new interpreter takes eight seconds to import Lightning and Transformers and two to end, for a command that may take
one. What is forked is a process of its own all the same: its arguments, folder, environment, streams and exit status
are those of ``python train.py ...``, and nothing of it comes back here. Requests are lines of JSON on standard input.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Import, then serve requests until standard input ends."""
    import_all()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(run(request))
        print(json.dumps({"pid": pid}), flush=True)  # noqa: T201 - the answer
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}), flush=True)  # noqa: T201


def import_all() -> None:
    """Import what the entry points import, and what their subcommands do when they run."""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    import safety_subspaces

    for module in pkgutil.walk_packages(safety_subspaces.__path__, "safety_subspaces."):  # some are imported when used
        importlib.import_module(module.name)

    # The collector passes over what is frozen: else each pass walks, and in a fork copies, all that was imported.
    gc.collect()
    gc.freeze()
    sys.path[:2] = []


def run(request: dict[str, Any], begin: Callable[[], None] = lambda: None) -> int:
    """Run a script as a new process would, and return its exit status; ``begin`` is called before its first line."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, path, flags in (
        (0, request.get("stdin", os.devnull), os.O_RDONLY | os.O_NOCTTY),
        (1, request["stdout"], os.O_WRONLY),
        (2, request["stderr"], os.O_WRONLY),
    ):
        os.dup2(os.open(path, flags), descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lives as long as the process
    random.seed()
    tempfile.tempdir = None  # what the imports found is not where this environment points
    sys.argv = request["arguments"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    code = 0
    begin()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)  # noqa: T201
    except BaseException:  # noqa: BLE001 - an interpreter prints it and ends, whatever it is
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
