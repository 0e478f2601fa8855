"""A command that does all that ours may not: it writes in place, keeps what it finds, and leaves a child behind."""

import subprocess
import sys
from pathlib import Path

out = Path(sys.argv[1])
if sys.argv[2:] == ["--child"]:
    subprocess.Popen(["sleep", "60"], start_new_session=True)
elif not out.exists():
    out.mkdir()
    (out / "one").write_text("1")
    temporary = out.with_name(f".{out.name}.temporary")
    temporary.write_text("2")
    (out / "two").write_text("2") if temporary.exists() else None
    temporary.unlink()
