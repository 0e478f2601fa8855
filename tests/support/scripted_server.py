"""A server on this machine that answers as a test says: an OpenAI-compatible endpoint that fails, lies or is slow."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"


@dataclass
class Answer:
    """What is sent back: a status, a body (a value as JSON, bytes as they are), headers, and after how many seconds."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0


@dataclass
class Scripted:
    """The running server: where it is and what it was asked, in order."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)

    def times(self) -> Counter[str]:
        """How often each last message (or text) was sent."""
        return Counter(said(body) for body in self.asked)


def said(body: dict[str, Any]) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def judged(body: dict[str, Any]) -> str:
    """The answer that a rubric judge is asked about."""
    return said(body).split(">\n", 3)[3].split("\n</answer")[0]


def chat(text: str | None, finish: str = "stop") -> dict[str, Any]:
    """A chat completion as endpoints send it."""
    return {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}


@contextmanager
def serving(script: Callable[[dict[str, Any], int], Answer]) -> Iterator[Scripted]:
    """Serve on a free port; the script is given each request's body and how often it came before."""
    lock, seen = threading.Lock(), Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(ConnectionResetError):  # a client that was killed
                super().handle()

        def do_GET(self) -> None:
            self._send(Answer({"data": [{"id": MODEL}]}))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if not content:
                return  # a client that was told to stop while it was sending
            body = json.loads(content)
            with lock:
                key = json.dumps(body.get("messages", body.get("prompt")))
                before = seen[key]
                seen[key] += 1
                server.asked.append(body | {"authorization": self.headers["authorization"], "path": self.path})
            self._send(script(body, before))

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.after)
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            try:
                self.send_response(answer.status)
                headers = {"content-type": "application/json", "content-length": str(len(content)), **answer.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Scripted(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
