"""A process that renders chat templates: a script that :mod:`.rendering` starts, on the standard library and Jinja.

A template is a program that came with a checkpoint. Jinja's sandbox keeps it from files and Python's internals, but not
from looping for ever or from doubling a text until memory ends: here the system's limits do. Requests and answers are
lines of JSON. The first line holds the limits, and the source of the function of transformers that compiles templates.
"""

import contextlib
import datetime
import functools
import json
import resource
import sys
from typing import Any


def main() -> None:
    """Serve requests until standard input ends."""
    import jinja2.ext
    import jinja2.sandbox

    limits = json.loads(sys.stdin.readline())
    names: dict[str, Any] = {
        "jinja2": jinja2,
        "json": json,
        "datetime": datetime.datetime,
        "contextmanager": contextlib.contextmanager,
        "Extension": jinja2.ext.Extension,
        "ImmutableSandboxedEnvironment": jinja2.sandbox.ImmutableSandboxedEnvironment,
        "is_jinja_available": lambda: True,
        "no_type_check": lambda function: function,
        "version": _Versions,
    }
    exec(limits["compiler"], names)
    compiled = functools.lru_cache(maxsize=8)(names[limits["name"]])
    resource.setrlimit(resource.RLIMIT_AS, (limits["bytes"], limits["bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        _allow_seconds(limits["seconds"])
        sys.stdout.write(json.dumps(_answer(compiled, json.loads(line))) + "\n")
        sys.stdout.flush()


class _Versions:
    """Stands for ``packaging.version``: the compiler asks whether Jinja is of a version without known escapes."""

    @staticmethod
    def parse(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))


def _allow_seconds(seconds: int) -> None:
    """Have the system end this process once it has computed for so long from now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answer(compiled: Any, request: dict[str, Any]) -> dict[str, str]:
    try:
        text = compiled(request["template"]).render(**request["values"])
    except MemoryError:
        return {"beyond": "its memory"}
    except Exception as error:  # noqa: BLE001 - a template raises what it likes; it is told there
        return {"error": str(error)[:1000] or type(error).__name__}
    return {"text": text} if len(text) <= request["longest"] else {"beyond": f"{request['longest']:,} characters"}


if __name__ == "__main__":
    main()
