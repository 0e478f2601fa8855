"""What the machine refuses, in our words, whoever met it: Python, PyArrow, what is written in Rust, or PyTorch."""

import errno
import re

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
# How Rust ends an error of the system, pandas says that a folder is gone, and PyTorch that it could not write.
BY_RUST = re.compile(r"\(os error (\d+)\)")
BY_PANDAS = "non-existent directory"
BY_PYTORCH = re.compile(r"PytorchStreamWriter failed|inline_container.*(write|writing) failed")
AGAIN = "then run the same command again: it goes on, or begins anew"


def refusal(error: BaseException) -> str | None:
    """Return the message of an error by which the machine refused something; ``None`` for an error of another kind."""
    number, place = error.errno if isinstance(error, OSError) else None, getattr(error, "filename", None)
    if (by_rust := BY_RUST.search(str(error))) is not None:
        number = int(by_rust[1])
    if isinstance(error, OSError) and BY_PANDAS in str(error):
        number = errno.ENOENT
    if number is None:
        if isinstance(error, RuntimeError) and BY_PYTORCH.search(str(error)):
            first = str(error).splitlines()[0]
            return f"a file of tensors could not be written ({first}); make room or mend the disk, {AGAIN}"
        return None
    where = str(place) if place else "a file"
    if number in NO_ROOM:
        return f"there is no room on the disk for {where} ({error}); make room, {AGAIN}"
    if number in NOT_ALLOWED:
        return f"{where} may not be written or read ({error}); allow it or choose another place, {AGAIN}"
    if number in NOT_THERE:
        return f"{where} is not there, or has gone while the command ran ({error}); put it back, {AGAIN}"
    return f"the machine refused {where} ({error}); mend that, {AGAIN}"
