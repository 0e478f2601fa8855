"""What the two entry points share: plug-ins, interpolation in YAML, and errors that are read without a traceback."""

import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from jsonargparse import set_parsing_settings
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.artefacts.secrets import masked, read_variable
from safety_subspaces.artefacts.trust import import_only_trusted, plugin_folders, unknown_module

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
# What a configuration may cast a value to.
COERCED = ("bool", "bytes", "float", "int", "str")
# What a parser says of a class path that may not be imported.
DENIED = re.compile(
    r"Importing '([^'.]+)[^']*' is not allowed, denied by the '[^']+' entry of the import path denylist\. "
    r"Add the import path to import_path_allowlist in set_parsing_settings to allow it\."
)
INTERRUPTED = 130  # the exit status of a process that Ctrl-C ended


def configure() -> None:
    """Set up parsing and logging; call it before a parser is made, and after what the command needs was imported."""
    # A subcommand's options are nested under its name; absolute ${run_dir} then needs to become relative.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True, instantiate_subclass_spec_in_any=False)
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


def restrict(arguments: Sequence[str]) -> None:
    """Let the files that a command reads name no code but what is trusted, and read no secret of the environment.

    Secrets are left out of tracebacks too.

    Args:
        arguments: The command line, with the entry point.

    Raises:
        InputError: It names a folder of plug-ins that is not there.
    """
    names = import_only_trusted(Path(arguments[0]).resolve().parent, plugin_folders(arguments))
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(names))
    sys.excepthook = _print_masked
    for name, resolver in (("oc.env", read_variable), ("oc.coerce", _coerced)):
        OmegaConf.register_resolver(name, resolver, replace=True, annotation_validation="off")


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as the interpreter does, without secrets."""
    print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)  # noqa: T201


def _coerced(kind: str, value: Any) -> Any:
    """Cast a value as OmegaConf does, but to Python's own types alone: another's name would be imported."""
    if kind not in COERCED:
        raise InputError(f"oc.coerce to {kind!r} in a configuration: expected one of {', '.join(COERCED)}")
    return oc.coerce(kind, value)


def explained(message: str) -> str:
    """Return what a parser says without secrets, and of a class path that it does not import in our own words."""
    return masked(DENIED.sub(lambda found: unknown_module(found[1]), message))


def run(main: Callable[[], Any]) -> None:
    """Run an entry point; an :class:`InputError` is printed in one message, and the exit status is 2."""
    try:
        restrict(sys.argv)
        main()
        torch = sys.modules.get("torch")
        if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else its threads abort the interpreter at its end
    except (InputError, OmegaConfBaseException) as error:
        print(f"error: {masked(str(error))}", file=sys.stderr)  # noqa: T201
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
