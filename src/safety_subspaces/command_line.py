"""What the two entry points share: plug-ins, interpolation in YAML, and errors that are read without a traceback."""

import codecs
import inspect
import io
import locale
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from jsonargparse import set_parsing_settings
from omegaconf.errors import OmegaConfBaseException

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.artefacts.text import encodable, shown

# Subcommands of analyze.py: each is the function of its name in a package's command.py.
ANALYSES = Plugins(
    "subcommand",
    inspect.isfunction,
    folder="safety_subspaces.analysis",
    group="safety_subspaces.analyses",
    within=".command",
    beside=("safety_subspaces.report",),
)
# "omegaconf+" resolves ${name} after the command line was read, so that --seed_everything 1 moves every path with it.
PARSER_MODE = "omegaconf+"
# What gloo and NCCL say on the ranks that are left.
LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended
# What a progress bar writes to move the cursor: to the start of its line, and between the lines of several bars.
CURSOR_MOVES = re.compile(r"\n*(\x1b\[A)*\Z|\r")
MOST_IN_BAR = 1000  # characters; no terminal is as wide


def configure() -> None:
    """Set up parsing and logging; call it before a parser is made, and after what the command needs was imported."""
    # A subcommand's options are nested under its name; absolute ${run_dir} then needs to become relative.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpx2", "openai", "datasets", "torchao", "fsspec", "tensorboard"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.callbacks.model_checkpoint"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads fight the loader's
    torch = sys.modules.get("torch")  # a report does without it, and without the seconds of its import
    if torch and not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which transformers imports, warns of it
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # text needs none
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # inside Lightning
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # inside transformers
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # our DataModules are
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")  # a resumed run
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need.*")
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # nothing to validate
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # DPO's frozen reference
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")  # what DeepSpeed calls


def use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: files are UTF-8 everywhere.

    Libraries open files in the encoding of the locale, and so are names of files read. Standard output stays in the
    terminal's encoding.
    """
    encoding = locale.getpreferredencoding(False)
    if sys.flags.utf8_mode or codecs.lookup(encoding).name == "utf-8":
        return
    streams = os.environ.get("PYTHONIOENCODING", f"{encoding}:backslashreplace")
    os.environ.update({"PYTHONUTF8": "1", "PYTHONIOENCODING": streams})
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def run(main: Callable[[], Any]) -> None:
    """Run an entry point; an :class:`InputError` is printed in one message, and the exit status is 2."""
    for stream in (sys.stdout, sys.stderr):
        _show_as_text(stream)
    sys.path.append(os.getcwd())  # noqa: PTH109 - plug-ins may stand where the command runs
    try:
        unreadable = [argument for argument in sys.argv if argument != encodable(argument)]
        if unreadable:
            raise InputError(f"argument {unreadable[0]} is no text in UTF-8; name files and labels in UTF-8")
        main()
        torch = sys.modules.get("torch")
        if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else its threads abort the interpreter at its end
    except (InputError, OmegaConfBaseException) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except RuntimeError as error:
        if not any(text in str(error) for text in LOST_RANK):
            raise
        print(  # noqa: T201
            f"error: another rank of this run has ended ({str(error).splitlines()[0]}). Its own message is above if it "
            "left one; a rank that was killed may have run out of memory. Go on from the last checkpoint with --resume",
            file=sys.stderr,
        )
        sys.exit(1)


def _show_as_text(stream: Any) -> None:
    """Have a stream show control characters as text, but those that progress bars move the cursor by.

    The stream itself is changed: handlers of logs and bars hold on to it.
    """
    if not isinstance(stream, io.TextIOWrapper) or "write" in vars(stream):
        return
    stream.reconfigure(errors="backslashreplace")
    write = stream.write

    def write_shown(text: str) -> int:
        moves = CURSOR_MOVES.match(text)
        start = moves.end() if moves else 0
        write(text[:start] + shown(text[start:], most=MOST_IN_BAR if start else len(text)))
        return len(text)

    stream.write = write_shown  # type: ignore[method-assign]
