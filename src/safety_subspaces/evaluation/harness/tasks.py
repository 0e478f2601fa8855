"""Tasks of lm-eval by id, from its own collection, a folder of YAMLs or the organism; checked before a model is loaded.

Nothing of lm-eval is imported before it is needed: it takes seconds, and is an extra.
"""

import difflib
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.extras import check_extra
from safety_subspaces.artefacts.foreign import check_yaml, reading
from safety_subspaces.evaluation.harness.messages import quieted
from safety_subspaces.evaluation.settings import ORGANISM

logger = logging.getLogger(__name__)

TASK_FILES = Path(__file__).parent / "definitions"
TRUST_ADVICE = "read it, and say --trust_task_code true on the command line to run it"


@dataclass(frozen=True)
class HarnessSettings:
    """What lm-eval is asked for.

    Args:
        tasks: Ids of tasks, tags or groups; ``organism`` is the embedded one.
        include_path: Folder of further task YAMLs; a task there hides one of lm-eval's of the same id.
        num_fewshot: Worked examples in each prompt; ``None`` for what the task says.
        limit: At most so many documents of each task, the first ones.
        batch_size: Sequences at once.
        template: ``chat`` for the tokenizer's chat template (examples as turns), ``none`` for plain text.
        split: Split of the organism's problems.
        max_new_tokens: Longest answer, in tokens; ``None`` for what the task says.
        unsafe_code: Whether a task may run code that a model has written, or that a metric fetches from the Hub.
        trust_task_code: Whether the YAMLs of ``include_path`` may call Python, and their templates reach into it.
        seed: Seed of lm-eval's four generators: Python's, NumPy's, torch's and that of the worked examples.
    """

    tasks: tuple[str, ...]
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 32
    template: Literal["chat", "none"] = "chat"
    split: Literal["dev", "test"] = "test"
    max_new_tokens: int | None = None
    unsafe_code: bool = False
    trust_task_code: bool = False
    seed: int = 0


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks that are loaded with their data.

    Args:
        manager: lm-eval's ``TaskManager``.
        chosen: lm-eval's tasks and groups, as they were asked for.
        leaves: Each single task by its name.
        groups: Each group by its name.
    """

    manager: Any
    chosen: list[Any]
    leaves: Mapping[str, Any]
    groups: Mapping[str, Any]


def task_files(include_path: str | None) -> list[str]:
    """List the files that define the tasks of a folder: YAML, and the Python that it calls.

    Raises:
        InputError: The folder is missing, or a YAML in it cannot be read.
    """
    if include_path is None:
        return []
    folder = Path(include_path)
    if not folder.is_dir():
        raise InputError(f"include_path {include_path} is no folder; expected one that holds task YAMLs")
    for path in sorted(folder.rglob("*.yaml")):
        _read_definition(path)
    return sorted(str(path) for pattern in ("*.yaml", "*.py") for path in folder.rglob(pattern))


def load_tasks(settings: HarnessSettings) -> HarnessTasks:
    """Find the tasks, check them, and load their data.

    Raises:
        InputError: lm-eval is not installed; a number out of range; an id that is unknown; a YAML that is broken; a
            data set that cannot be loaded; code that may not be run, of a model or of a YAML; worked examples that a
            task does not take, or would draw from the documents that it grades.
    """
    check_installed()
    _check_numbers(settings)
    task_files(settings.include_path)
    if settings.include_path is not None and not settings.trust_task_code:
        for path in sorted(Path(settings.include_path).rglob("*.yaml")):
            _check_calls(path)
    with quieted(), restricted_templates(settings):
        manager = _manager(settings)
        for name in settings.tasks:
            _check_known(name, manager, settings)
            if not settings.unsafe_code:
                for definition in _definitions(name, manager.task_index):
                    _check_code(name, definition, settings.trust_task_code)
        chosen: list[Any] = []
        for name in settings.tasks:
            loaded = _load(name, manager, settings)
            chosen += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
        try:
            loaded = manager.load(chosen)
        except ValueError as error:  # a task alone and in a group
            raise InputError(f"tasks: {error}; name it once") from error
        for name, task in loaded["tasks"].items():
            _check_examples(name, task, settings.num_fewshot)
            _check_groups(name, task)
    return HarnessTasks(manager, chosen, loaded["tasks"], loaded["groups"])


def group_fields(task: Any) -> list[str]:
    """Return the fields of a task's documents that are equal where they stand and fall together.

    The task's metadata name one as ``group_field``, or two in a list; without it there are none.
    """
    named = (task.config.metadata or {}).get("group_field")
    return [] if named is None else list(named) if isinstance(named, list) else [named]


def check_installed() -> None:
    """Check that the extra is there.

    Raises:
        InputError: It is not.
    """
    for package in ("lm_eval", "accelerate"):  # lm-eval's Hugging Face models import the second
        check_extra(package, "utility")


def _check_numbers(settings: HarnessSettings) -> None:
    if not settings.tasks:
        raise InputError("no task given; say --tasks=gsm8k, --tasks='[gsm8k,arc_easy]' or --tasks=organism")
    if settings.num_fewshot is not None and settings.num_fewshot < 0:
        raise InputError(f"num_fewshot is {settings.num_fewshot}; expected 0 or more")
    for name in ("limit", "batch_size", "max_new_tokens"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")


def _manager(settings: HarnessSettings) -> Any:
    """Return lm-eval's index of tasks. Reading its own 14,000 takes ten seconds, so only where one is asked for."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=settings.include_path, include_defaults=False)
    single = {name for name, entry in manager.task_index.items() if entry.kind.name in ("TASK", "PY_TASK")}
    if set(settings.tasks) <= single | {ORGANISM}:
        return manager
    logger.info("reading lm-eval's index of tasks")
    return TaskManager(include_path=settings.include_path)


def _check_known(name: str, manager: Any, settings: HarnessSettings) -> None:
    if name == ORGANISM or name in manager.task_index:
        return
    near = difflib.get_close_matches(name, [ORGANISM, *manager.task_index], n=5)
    nearest = f"the nearest ids are {', '.join(near)}" if near else "no id is near it"
    advice = (
        f"the YAMLs in {settings.include_path} define no such task"
        if settings.include_path
        else "for a task of your own say --include_path=<the folder of its YAML>"
    )
    raise InputError(f"lm-eval has no task, tag or group {name!r}; {nearest}; {advice}")


def _load(name: str, manager: Any, settings: HarnessSettings) -> Any:
    try:
        return manager.load([_organism(settings.split) if name == ORGANISM else name])
    except Exception as error:  # a task's own code may raise anything
        task = _downloading(error)
        cause = _first_line(error)
        if task is None:
            raise InputError(f"task {name} cannot be used as its YAML defines it: {cause}") from error
        config = task.config
        files = (config.dataset_kwargs or {}).get("data_files")
        if files:
            advice = "paths of data files are read from the folder that the command runs in"
        else:
            advice = (
                "load it once where the Hub can be reached, and copy its cache (HF_HOME); or give a task upon local "
                "files by --include_path (docs/utility.md)"
            )
        data = " ".join(str(part) for part in (task.DATASET_PATH, task.DATASET_NAME, files) if part)
        raise InputError(f"data set {data} of task {config.task} could not be loaded ({cause}); {advice}") from error


def _organism(split: str) -> dict[str, Any]:
    return _read_yaml(TASK_FILES / "organism.yaml") | {"test_split": split, "dataset_kwargs": {"split": split}}


def _downloading(error: Exception) -> Any | None:
    """Return the task whose data were being read when the error was raised, or ``None`` where it was something else."""
    # A task loads its data in its constructor and lets any error of `datasets` through: only the frames of the
    # traceback show which task of a group it was, and whether it was loading data.
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "download" and "self" in frame.f_locals:
            return frame.f_locals["self"]
    return None


def _definitions(spec: Any, index: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the definition of a task, or of each task of a tag or group, without running any of their code."""
    if isinstance(spec, str):
        entry = index.get(spec)
        if entry is None:
            return
        if entry.kind.name == "TAG":
            for member in entry.tags:
                yield from _definitions(member, index)
            return
        spec = entry.cfg
    members = spec.get("task")
    if isinstance(members, list):
        for member in members:
            yield from _definitions(member, index)
        return
    if members in index and index[members].cfg is not spec:  # a member of a group, with changes
        yield from _definitions(members, index)
    yield spec


@contextmanager
def restricted_templates(settings: HarnessSettings) -> Iterator[None]:
    """Fill the templates of task YAMLs in Jinja's sandbox, unless their code is trusted: lm-eval's own has none.

    Raises:
        InputError: Inside: a template reaches for Python's own attributes.
    """
    if settings.include_path is None or settings.trust_task_code:
        yield
        return
    from jinja2 import StrictUndefined
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    usual = utils.env
    utils.env = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    utils.env.filters.update(usual.filters)
    try:
        yield
    except SecurityError as error:
        raise InputError(
            f"a template in {settings.include_path} reaches into Python ({error}); {TRUST_ADVICE}"
        ) from error
    finally:
        utils.env = usual


def _check_calls(path: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Refuse a YAML that calls Python, itself or in what it includes; nothing of it is run. Lm-eval's own may."""
    if _is_installed(path):
        return
    with path.open("rb") as stream:
        for event in yaml.parse(stream, Loader=yaml.SafeLoader):
            tag = getattr(event, "tag", None)
            if tag is not None and (":python/" in tag or not tag.startswith("tag:yaml.org,2002:")):
                called = f"{tag} {getattr(event, 'value', '')}".strip()
                raise InputError(
                    f"task file {path} calls Python ({called}), which may run code that lies beside it; {TRUST_ADVICE}"
                )
    included = _read_yaml(path, resolve_func=False, recursive=False).get("include") or []
    for name in included if isinstance(included, list) else [included]:
        beside = path.parent / name
        if beside not in seen:
            _check_calls(beside, seen | {path})


def _check_code(name: str, definition: Mapping[str, Any], trust_task_code: bool) -> None:
    """Refuse what runs code that nobody here has read.

    Data sets cannot: since version 4 `datasets` runs no loading script, whatever the YAML says of remote code.
    """
    from lm_eval.api import metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    task = definition.get("task", name)
    advice = "read it, and say --unsafe_code true to run it all the same"
    if definition.get("unsafe_code", False) is not False:
        raise InputError(f"task {task} runs code that the model writes; {advice}, in a sandbox")
    if definition.get("process_results") is not None:
        return  # it grades by itself, and its metrics are only names
    for entry in definition.get("metric_list") or []:
        metric = entry.get("metric") if isinstance(entry, dict) else None
        # A function beside the YAML, which the index of tasks names by its path; else `evaluate` would run that file.
        local = not isinstance(metric, str) or _is_called(metric, trust_task_code)
        if not local and (entry.get("hf_evaluate") or metric not in metric_registry):
            raise InputError(
                f"task {task} grades by {metric}, which is none of lm-eval's own metrics: its code would be fetched "
                f"from the Hub and run; {advice}"
            )


def _is_called(metric: str, trust_task_code: bool) -> bool:
    return Path(metric).is_absolute() and (trust_task_code or _is_installed(Path(metric)))


def _is_installed(path: Path) -> bool:
    """Tell whether a file is one of lm-eval's own."""
    import lm_eval

    return path.resolve().is_relative_to(Path(lm_eval.__file__).resolve().parent)


def _check_examples(name: str, task: Any, num_fewshot: int | None) -> None:
    """Refuse worked examples that lm-eval would leave out, lack, or draw from what is being graded."""
    default = task.config.num_fewshot
    if default == 0 and num_fewshot:
        raise InputError(
            f"task {name} fixes num_fewshot at 0, so {num_fewshot} would not be heeded; leave it out, or run the task "
            "apart from those that take examples"
        )
    count = default if num_fewshot is None else num_fewshot
    config, pool = getattr(task, "fewshot_cfg", None), getattr(task, "sampler", None)
    if not count or config is None or pool is None:
        return
    beside = (config.split, config.samples, task.config.training_split, task.config.validation_split)
    if not any(beside):
        raise InputError(
            f"task {name} has no split to draw {count} worked examples from but the one that it grades, so an answer "
            "could stand in its own prompt; say --num_fewshot 0, or give its YAML a fewshot_split"
        )
    drawn = count + (config.split == task.config.test_split)  # the graded document itself is put aside
    if drawn > len(pool.df):
        raise InputError(
            f"task {name} has {len(pool.df)} documents to draw worked examples from; num_fewshot={count} asks for more"
        )


def _check_groups(name: str, task: Any) -> None:
    fields = group_fields(task)
    if len(fields) > 2 or any(field not in task.features for field in fields):
        named = fields[0] if len(fields) == 1 else fields
        raise InputError(
            f"group_field of task {name} is {named!r}; its documents have {', '.join(task.features)}: name one of "
            "those, or a list of two that cross"
        )


def _read_definition(path: Path) -> None:
    """Read a YAML and what it includes as lm-eval does, which would pass over one that is broken."""
    with reading(f"task file {path}", "the YAML of a task", "mend it or move it away"):
        check_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(_read_yaml(path, resolve_func=False), dict):
            raise ValueError("it holds no settings by name")


def _read_yaml(path: Path, resolve_func: bool = True, recursive: bool = True) -> dict[str, Any]:
    # The only private function of lm-eval that is used: its public TaskManager skips a broken file, and gives no
    # definition that could be changed.
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(path, resolve_func=resolve_func, recursive=recursive)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
