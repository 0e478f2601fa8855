"""What is written beside a number is of this process."""

import subprocess
import sys

from support.tiny import ROOT

CHILD = (
    "import sys; sys.path.insert(0, 'src'); from safety_subspaces.artefacts.provenance import peak_memory_bytes; "
    "print(peak_memory_bytes())"
)


def test_peak_memory_is_that_of_this_program_not_of_the_one_that_started_it() -> None:
    """getrusage's maximum survives fork and exec: a small program started by a large one seems large."""
    starter = (
        f"import subprocess, sys; held = bytearray(400 * 2**20); subprocess.run([sys.executable, '-c', {CHILD!r}])"
    )
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 5 * 2**20 < int(done.stdout) < 200 * 2**20


def test_peak_memory_grows_with_what_was_held() -> None:
    grown = CHILD.replace("print", "held = bytearray(200 * 2**20); print")
    done = subprocess.run([sys.executable, "-c", grown], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) > 200 * 2**20
