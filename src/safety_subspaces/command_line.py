"""What the two entry points share: plug-ins, interpolation in YAML, and errors that are read without a traceback."""

import inspect
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from jsonargparse import set_parsing_settings
from omegaconf.errors import OmegaConfBaseException

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.machine import refusal
from safety_subspaces.artefacts.plugins import Plugins

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


def run(main: Callable[[], Any]) -> None:
    """Run an entry point; an :class:`InputError` is one message and exit status 2, what the machine refuses is 1."""
    sys.path.append(os.getcwd())  # noqa: PTH109 - plug-ins may stand where the command runs
    threading.excepthook = _tell_of_thread
    try:
        main()
        torch = sys.modules.get("torch")
        if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else its threads abort the interpreter at its end
    except (InputError, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (refused := refusal(error)) is not None:
            print(f"error: {refused}", file=sys.stderr)  # noqa: T201
            sys.exit(1)
        if not isinstance(error, RuntimeError) or not any(text in str(error) for text in LOST_RANK):
            raise
        print(  # noqa: T201
            f"error: another rank of this run has ended ({str(error).splitlines()[0]}). Its own message is above if it "
            "left one; a rank that was killed may have run out of memory. Go on from the last checkpoint with --resume",
            file=sys.stderr,
        )
        sys.exit(1)


def _tell_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Say in a line what the machine refused a thread, such as TensorBoard's, which hands its error on besides."""
    refused = None if ended.exc_value is None else refusal(ended.exc_value)
    if refused is None:
        threading.__excepthook__(ended)
    else:
        print(f"error: {refused}", file=sys.stderr)  # noqa: T201
