"""What must not be kept: keys and passwords of the environment and the command line, and whose home folder this was.

A secret is known by the name of the variable or option that holds it, or by the form that large services give their
keys. It is masked where something is recorded, and the mask says which variable it was.
"""

import getpass
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safety_subspaces.artefacts.errors import InputError

MASK = "***"
# Words in the name of a variable that holds a secret.
SECRET_WORDS = re.compile(r"(^|_)(APIKEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?|AUTH|JWT)(_|$)")
# Options and keys of a configuration: "max_new_tokens", "pad_token" and "api_key_env" are none.
SECRET_OPTION = re.compile(
    r"(^|_)(api_?key|access_?key|secret_?key|private_?key|secret|password|passwd|credentials?"
    r"|(access|api|auth|bearer|hf|hub|session)_token)$|^(key|token|auth)$",
    re.IGNORECASE,
)
# What keys of OpenAI, Anthropic, Hugging Face, GitHub, AWS, Slack and Google look like.
KNOWN_FORMS = re.compile(
    r"\b(sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,})"
)
# An entry of a mapping that a word of the command line holds, as YAML or JSON.
INLINE = re.compile(r"""(["']?)([\w.]+)\1(\s*:\s*)("[^"]*"|'[^']*'|[^"',}\]\s]+)""")
# A shorter value may well stand in a text for another reason: "true", "12345".
SHORTEST_SECRET = 8
# A part of a key that is no accident; shorter ones say little. A key that is shorter itself is masked whole, but for
# the one or two letters that stand for none.
SHORTEST_PART, SHORTEST_KEY = 8, 4
# Variables that a configuration may read: where things are, and what the shipped configurations ask for.
READABLE = frozenset(
    "ADVBENCH ALIGNED BASE BEAVERTAILS CUDA_VISIBLE_DEVICES DATA DATA_DIR FRACTION GSM8K_TEST HF_HOME HOME HOSTNAME "
    "LOCAL_RANK METAMATHQA OMP_NUM_THREADS PWD RANK SCRATCH SEED STUDY SUFFIX TMPDIR TUNED WORK WORLD_SIZE "
    "XDG_CACHE_HOME XSTEST_SAFE".split()
)
READABLE_PREFIXES = ("SLURM_", "SUBSPACES_")
HOMES = re.compile(r"(?<![\w.])/(?:home|Users)/[^/\s\"'<>&:,;)]+")


def is_secret_name(variable: str) -> bool:
    """Tell whether an environment variable is one that holds a secret, by its name."""
    return SECRET_WORDS.search(variable.upper()) is not None


def read_variable(name: str, *default: Any) -> str | None:
    """Return the value of an environment variable for a configuration, as OmegaConf's ``oc.env`` does.

    What a configuration reads is recorded with it, so only what may be recorded is read.

    Args:
        name: The variable.
        *default: What stands for it where it is not set.

    Raises:
        InputError: The variable is one that holds a secret, or none that configurations may read.
        KeyError: It is not set, and there is no default.
    """
    if is_secret_name(name):
        raise InputError(
            f"a configuration reads the environment variable {name}, whose value would be written into every record; "
            "name the variable itself where a key is asked for (api_key_env), and leave it to the program to read"
        )
    if name not in READABLE and not name.startswith(READABLE_PREFIXES):
        raise InputError(
            f"a configuration reads the environment variable {name}, and its value would be written into every record; "
            f"give it by an option of the command line, or call it {READABLE_PREFIXES[1]}{name}. Read are "
            f"{', '.join(f'{prefix}*' for prefix in READABLE_PREFIXES)} and {', '.join(sorted(READABLE))}"
        )
    if name in os.environ:
        return os.environ[name]
    if not default:
        raise KeyError(f"environment variable {name} is not set")
    return None if default[0] is None else str(default[0])


def masked(text: str) -> str:
    """Return a text without the values of secret variables, and without what has the form of a key."""
    for value, name in _secret_values():
        text = text.replace(value, f"{MASK}{name}{MASK}")
    return KNOWN_FORMS.sub(MASK, text)


def masked_command(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line without secrets: also the values of options that are named like one."""
    words: list[str] = []
    hides_next = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        is_secret = option.startswith("-") and _is_secret_option(option.lstrip("-"))
        if is_secret and equals:
            words.append(f"{option}={MASK}")
        else:
            words.append(MASK if hides_next and not argument.startswith("--") else INLINE.sub(_entry, masked(argument)))
        hides_next = is_secret and not equals
    return words


def without_secrets(value: Any) -> Any:
    """Return plain values without secrets: those of keys that are named like one, and inside texts."""
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(inner, str) and inner and _is_secret_option(str(key)) else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return masked(value) if isinstance(value, str) else value


def mask_of(secret: str) -> Callable[[Any], Any]:
    """Return what masks one secret, whole or in part, in plain values that somebody else has written.

    Args:
        secret: The secret. Any run of eight of its characters is taken for a part of it.
    """
    length = min(SHORTEST_PART, len(secret))
    parts = {secret[start : start + length] for start in range(len(secret) - length + 1) if length >= SHORTEST_KEY}

    def mask(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {mask(key): mask(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [mask(inner) for inner in value]
        return _without_parts(value, parts, length) if isinstance(value, str) else value

    return mask


def without_home(text: str) -> str:
    """Return a text in which home folders are ``~``, and the name of this user is no part of a path."""
    home, user = str(Path("~").expanduser()), _user()
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    text = HOMES.sub("~", text)
    return re.sub(rf"(?<!<)/{re.escape(user)}(?![\w.-])", "/~", text) if user else text  # no closing element


def passed_on(text: str) -> str:
    """Return a text as others may have it: without secrets, and without the names of home folders."""
    return without_home(masked(text))


def _entry(found: re.Match[str]) -> str:
    """Mask the value of an entry that is named like a secret."""
    return f"{found[1]}{found[2]}{found[1]}{found[3]}{MASK}" if _is_secret_option(found[2]) else found[0]


def _without_parts(text: str, parts: set[str], length: int) -> str:
    kept: list[str] = []
    hidden_until = 0
    for place, letter in enumerate(text):
        if text[place : place + length] in parts:
            if place >= hidden_until:
                kept.append(MASK)
            hidden_until = place + length
        if place >= hidden_until:
            kept.append(letter)
    return "".join(kept)


def _secret_values() -> list[tuple[str, str]]:
    """List the values of secret variables with their names, the longest first: one may hold another."""
    found = {
        value: name for name, value in os.environ.items() if len(value) >= SHORTEST_SECRET and is_secret_name(name)
    }
    return sorted(((value, name) for value, name in found.items() if not _is_place(value)), key=lambda p: -len(p[0]))


def _is_place(value: str) -> bool:
    """Tell whether a value is a path, as of a file with credentials or an agent's socket: no secret itself."""
    return value.startswith(("/", "~")) and os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111 - any text


def _is_secret_option(name: str) -> bool:
    return SECRET_OPTION.search(name.rpartition(".")[2]) is not None


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return ""
    return name if len(name) > 2 and name not in ("root", "user") else ""
