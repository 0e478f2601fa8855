"""Ends all ranks of a run when one of them is silent: stopped, hung with its machine, or cut off from the network.

Collectives have a time-out of their own, but it cannot be short: the first rank may work alone for hours, on a subspace
or an export, while the others wait for it. Here a thread of each rank tells all others every second that it is there.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, final

import torch.distributed

from safety_subspaces.constraint.collectives import gather_objects, is_running

# The longest that this thread itself may have been kept from running; after more, its own process was stopped.
OWN_PAUSE_SECONDS = 5.0
FAREWELLS = 3  # datagrams get lost


@final
class RankWatch:
    """A thread on each rank that hears the others, in datagrams: unlike a store, none waits for one that is stopped.

    A rank that was never heard, as behind a firewall, is not watched.

    Args:
        seconds: The longest that a rank may be silent.
        lost: What is called, in the thread, with the numbers of the silent ranks. The main thread may wait in a
            collective for ever, so that this has to end the process.
    """

    def __init__(self, seconds: float, lost: Callable[[list[int]], Any]) -> None:
        self._seconds, self._lost = seconds, lost
        self._period = min(1.0, seconds / 10)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; all ranks together, once they have joined. One process alone has nobody to watch."""
        if self._thread is not None or not is_running() or torch.distributed.get_world_size() == 1:
            return
        family, kind, _, _, first = socket.getaddrinfo(os.environ["MASTER_ADDR"], 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as towards_first:
            towards_first.connect(first)  # sends nothing: it only chooses the address that others reach this one by
            host = towards_first.getsockname()[0]
        ears = socket.socket(family, kind)
        ears.bind((host, 0))
        told = gather_objects((ears.getsockname(), secrets.token_bytes(8)))
        word = told[0][1]  # of this run, and of no other on these machines
        others = {rank: address for rank, (address, _) in enumerate(told) if rank != torch.distributed.get_rank()}
        self._thread = threading.Thread(
            target=self._watch, args=(ears, word, torch.distributed.get_rank(), others), name="ranks", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End; on each rank when it needs the others no more, which it tells them."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, ears: socket.socket, word: bytes, me: int, others: dict[int, Any]) -> None:
        heard: dict[int, float] = {}
        next_beat = time.monotonic()
        ears.settimeout(self._period / 2)
        while not self._over.is_set():
            began = time.monotonic()
            if began >= next_beat:
                _tell(ears, word + b"+%d" % me, others)
                next_beat = began + self._period
            sign, rank = _hear(ears, word)
            now = time.monotonic()
            if sign == b"+":
                heard[rank] = now
            elif sign == b"-":
                heard.pop(rank, None)
            if now - began > OWN_PAUSE_SECONDS:
                heard = dict.fromkeys(heard, now)
            silent = [rank for rank, last in heard.items() if now - last > self._seconds]
            if silent and not self._over.is_set():
                self._lost(silent)
                return
        for _ in range(FAREWELLS):
            _tell(ears, word + b"-%d" % me, others)
        ears.close()


def _tell(ears: socket.socket, message: bytes, others: dict[int, Any]) -> None:
    for address in others.values():
        try:
            ears.sendto(message, address)
        except OSError:  # a full buffer, a network that is down: what is not heard is what is watched for
            continue


def _hear(ears: socket.socket, word: bytes) -> tuple[bytes, int]:
    """Return the sign and rank of the next message, or no sign when there is none for a while."""
    try:
        message = ears.recv(64)
    except OSError:
        return b"", -1
    if not message.startswith(word):
        return b"", -1
    return message[len(word) : len(word) + 1], int(message[len(word) + 1 :])
