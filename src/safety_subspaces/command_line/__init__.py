"""What the two entry points share: plug-ins, interpolation in YAML, and errors that are read without a traceback."""

import inspect
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from safety_subspaces.artefacts import ending
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import check_yaml, in_short, reading
from safety_subspaces.artefacts.machine import refusal
from safety_subspaces.artefacts.plugins import Plugins
from safety_subspaces.artefacts.secrets import masked, read_variable
from safety_subspaces.artefacts.terminal import show_as_text, use_utf8
from safety_subspaces.artefacts.text import encodable, shown
from safety_subspaces.artefacts.trust import import_only_trusted, plugin_folders
from safety_subspaces.command_line.shipped import with_paths

# Subcommands of analyze.py: each is the function of its name in a package's command.py.
ANALYSES = Plugins(
    "subcommand",
    inspect.isfunction,
    folder="safety_subspaces.analysis",
    group="safety_subspaces.analyses",
    within=".command",
    beside=("safety_subspaces.report", "safety_subspaces.findings", "safety_subspaces.compare"),
)
# "omegaconf+" resolves ${name} after the command line was read, so that --seed_everything 1 moves every path with it.
PARSER_MODE = "omegaconf+"
# What gloo and NCCL say on the ranks that are left.
LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Timed out waiting")
# The process that started this one as a rank of the same run, told from others by its number.
FIRST_RANK = "SAFETY_SUBSPACES_FIRST_RANK"
# What a configuration may cast a value to.
COERCED = ("bool", "bytes", "float", "int", "str")

# What an installation calls by one command, a clone by two files.
COMMAND = "safety-subspaces"
SCRIPT = re.compile(r"python (train|analyze)\.py\b")


def begin() -> None:
    """Listen to signals and to the end of the parent; call it before the imports, which take seconds."""
    if not __debug__:
        sys.stderr.write("error: python -O and -OO leave out checks that results rest on; run it without them\n")
        sys.exit(2)
    use_utf8()
    is_external = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("SLURM_NTASKS", "1") != "1"
    if os.environ.get("LOCAL_RANK", "0") != "0" and FIRST_RANK in os.environ and not is_external:
        ending.obey(int(os.environ[FIRST_RANK]))
        return
    os.environ[FIRST_RANK] = str(os.getpid())
    ending.listen()
    if is_external:  # a launcher that is killed can end its ranks no more
        ending.watch_parent(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))


def configure() -> None:
    """Set up parsing and logging; call it before a parser is made, and after what the command needs was imported."""
    _bound_yaml()
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
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")  # what it calls
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # text needs none
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # inside Lightning
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # inside transformers
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # our DataModules are
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")  # a resumed run
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need.*")
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # nothing to validate
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # DPO's frozen reference
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")  # of an installed command
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")  # what DeepSpeed calls


def _bound_yaml() -> None:
    """Have jsonargparse refuse YAML that would be huge, and say so of any that its loader stumbles over."""
    loader = get_yaml_default_loader()
    if getattr(loader, "is_bounded", False):
        return
    begin, construct = loader.__init__, loader.construct_document

    def check_and_begin(self: Any, stream: str) -> None:
        check_yaml(stream)
        begin(self, stream)

    def construct_or_say(self: Any, node: yaml.Node) -> Any:
        try:
            return construct(self, node)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:  # as !!int of a word
            raise yaml.YAMLError(in_short(error)) from error

    loader.__init__, loader.construct_document, loader.is_bounded = check_and_begin, construct_or_say, True


def _check_config_files(arguments: Sequence[str]) -> None:
    """Refuse a configuration file that jsonargparse would stumble over before it parses it: text of another kind."""
    for option, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = option.partition("=")
        path = Path(value if equals else following)
        if name in ("--config", "-c") and path.is_file():
            with reading(path, "a YAML file in UTF-8", "mend it"):
                check_yaml(path.read_text(encoding="utf-8"))


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


def run(main: Callable[[], Any]) -> None:
    """Run an entry point; what ends it that is no fault of the code is one message and an exit status, no traceback.

    Args:
        main: The entry point. Its :class:`InputError` ends the process with 2, a signal with 128 and its number, a
            worker or rank that was lost with 1.
    """
    for stream in (sys.stdout, sys.stderr):
        show_as_text(stream)
    threading.excepthook = _tell_of_thread
    try:
        unreadable = [argument for argument in sys.argv if argument != encodable(argument)]
        if unreadable:
            raise InputError(f"argument {unreadable[0]} is no text in UTF-8; name files and labels in UTF-8")
        sys.argv[:] = with_paths(sys.argv)
        _check_config_files(sys.argv[1:])
        restrict(sys.argv)
        main()
        torch = sys.modules.get("torch")
        if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else its threads abort the interpreter at its end
    except BaseException as error:
        status, message = _told(error)
        if status is None:
            raise
        told = as_called("\n".join([message, *getattr(error, "__notes__", [])]))
        print(shown(masked(told)), file=sys.stderr)  # noqa: T201
        torch = sys.modules.get("torch")
        if not (torch and torch.distributed.is_available() and torch.distributed.is_initialized()):
            sys.exit(status)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # waits for no collective that never ends; the other ranks end with this process


def as_called(text: str) -> str:
    """Return a text with the commands in it as an installation calls them, where this process was called so."""
    return SCRIPT.sub(rf"{COMMAND} \1", text) if Path(sys.argv[0]).stem == COMMAND else text


def _told(error: BaseException) -> tuple[int | None, str]:
    """Return the exit status and the message of an error, or no status for one that is a fault of the code."""
    stopped = ending.received()
    if stopped is not None:  # whatever a library made of it
        return stopped.status, f"\n{stopped}"  # below a progress bar
    if isinstance(error, InputError | OmegaConfBaseException):
        return 2, f"error: {error}"
    if isinstance(error, ending.LostProcessError):
        return 1, f"error: {error}"
    if isinstance(error, Exception) and (refused := refusal(error)) is not None:
        return 1, f"error: {refused}"
    if isinstance(error, RuntimeError) and any(text in str(error) for text in LOST_RANK):
        return 1, (
            f"error: another rank of this run has ended ({str(error).splitlines()[0]}). Its own message is above if it "
            "left one; a rank that was killed may have run out of memory"
        )
    return None, ""


def _tell_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Say in a line what the machine refused a thread, such as TensorBoard's, which hands its error on besides."""
    refused = None if ended.exc_value is None else refusal(ended.exc_value)
    if refused is None:
        threading.__excepthook__(ended)
    else:
        print(f"error: {refused}", file=sys.stderr)  # noqa: T201
