"""Foreign bytes end in a value or in one message that names where they are from, in bounded time."""

import json
import time
from pathlib import Path

import pytest
import yaml
from support.refusal import refuse

from safety_subspaces.artefacts.description import read_manifest
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import MAX_DEPTH, check_pattern, check_yaml, parse_json, read_yaml, reading
from safety_subspaces.artefacts.provenance import ADAPTER_CONFIG, adapter_base, describe_input, read_adapter_config
from safety_subspaces.artefacts.tensors import read_index

BOMB = "k0: &k0 [x, x]\n" + "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 12))


class PanicException(BaseException):
    """What PyO3 raises where Rust panics."""


RAISED = (
    KeyError("a"),
    RecursionError(),
    MemoryError(),
    UnicodeDecodeError("utf-8", b"a", 0, 1, ""),
    PanicException("x"),
)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_parser_raises_names_the_file(error: BaseException) -> None:
    with (
        pytest.raises(InputError, match=r"a\.json cannot be read .*expected a map: (save it in UTF-8, or )?mend it"),
        reading("a.json", "a map", "mend it"),
    ):
        raise error


@pytest.mark.parametrize("error", [InputError("as it is"), KeyboardInterrupt(), SystemExit(3)])
def test_a_message_of_ours_and_what_ends_the_program_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, reading("a.json", "a map"):
        raise error
    assert passed.value is error


@pytest.mark.parametrize(
    "content",
    [b"\xff{}", b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"3", b"", b"9" * 5000, b"{" + b'"a":{' * 70 + b"}" * 71],
)
def test_json_that_is_none_or_nested_deeply_or_no_map_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    refuse(lambda: read_json(tmp_path / "a.json"), r"a\.json", "JSON")


def test_json_as_deep_as_is_allowed_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text)) == text
    with pytest.raises(ValueError, match="nested"):
        parse_json(f"[{text}]")


@pytest.mark.parametrize(
    "text",
    [BOMB, "a: &a [*a]", "a: &a\n  b: *a", "[" * 200 + "]" * 200, "a: !!python/object/apply:os.system [true]", "- a",
     "a: !!int word", "a: '\x00'"],
)  # fmt: skip
def test_yaml_that_would_be_huge_or_runs_something_is_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    started = time.process_time()
    refuse(lambda: read_yaml(tmp_path / "a.yaml"), r"a\.yaml cannot be read")
    assert time.process_time() - started < 1


def test_yaml_with_some_aliases_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 3}")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": 3}}
    with pytest.raises(yaml.YAMLError):
        check_yaml(BOMB)


# What libraries for fine-tuning write as target_modules, of multimodal models and of some layers.
BLOCKS, PROJECTIONS = "self_attn|attention|attn|mlp|feed_forward|ffn|dense", "q_proj|k_proj|v_proj|o_proj|gate_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        rf"(?:.*?(?:vision|image|language|text).*?(?:{BLOCKS}).*?(?:{PROJECTIONS}).*?)|"
        rf"(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{BLOCKS})\.(?:(?:{PROJECTIONS})))",
        rf"^(?!.*visual).*\.layers\.\d+\.(self_attn|mlp)\.({PROJECTIONS})$",
        r"model\.(layers\.)?(1[0-9]|2[0-3])\..*_proj", r"(layers\.)*q_proj", "a{1", "q_proj", "(a|b)*",
    ],
)  # fmt: skip
def test_a_pattern_that_people_use_is_read(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(.*)*x", ".*.*.*.*.*x", "(", "(a|aa)*x", "((a){2,}b?)*", "(?:.*(?:a|b.*)){2}.*.*x", "(?=(a+)+)",
        "(a|aa)" * 40, "a?" * 40 + "a" * 40, "(" * 5000,
    ],
)  # fmt: skip
def test_a_pattern_that_could_match_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "..", "", "a.bin", 7, None, ["a"]]
)
def test_an_index_places_tensors_in_files_beside_it_alone(tmp_path: Path, file: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}))
    refuse(lambda: read_index(index), "index.json places tensors in", "beside it")


@pytest.mark.parametrize("weight_map", [None, [], "a", {}, 3])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refuse(lambda: read_index(index), "no weight_map")


def write_adapter(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))
    return folder


def test_adapters_upon_one_another_in_a_circle_are_refused(tmp_path: Path) -> None:
    alone = write_adapter(tmp_path / "alone", base_model_name_or_path=str(tmp_path / "alone"))
    for name, base in (("one", "two"), ("two", "three"), ("three", "two")):
        write_adapter(tmp_path / name, base_model_name_or_path=str(tmp_path / base))
    for folder in (alone, tmp_path / "one", tmp_path / "two"):
        refuse(lambda folder=folder: adapter_base(folder), str(folder), "is upon")
        refuse(lambda folder=folder: describe_input(folder), str(folder), "is upon")


@pytest.mark.parametrize("base", [None, "", 3, ["a"], {"a": 1}, "a" * 5000, "~no-such-user/x"])
def test_an_adapter_whose_base_no_path_could_be_is_refused(tmp_path: Path, base: object) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path=base)
    refuse(lambda: adapter_base(folder), "base_model_name_or_path")


@pytest.mark.parametrize(
    "settings",
    [{"r": "8"}, {"r": 1.5}, {"lora_alpha": "x"}, {"lora_alpha": 10**400}, {"alpha_pattern": []},
     {"alpha_pattern": {"(a+)+$": 3}}, {"alpha_pattern": {"q": "3"}}, {"target_modules": 3}, {"target_modules": [3]},
     {"target_modules": "(a+)+$"}, {"modules_to_save": "a"}, {"peft_type": ["LORA"]}],
)  # fmt: skip
def test_adapter_settings_of_another_kind_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    refuse(lambda: read_adapter_config(write_adapter(tmp_path / "a", **settings)), r"adapter_config\.json", "PEFT")


@pytest.mark.parametrize(
    "field", [{"parts": {}}, {"inputs": 3}, {"config": []}, {"role": 3}, {"parts": ["a"]}, {"inputs": [1]}]
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, field: dict[str, object]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"parts": [], **field}))
    refuse(lambda: read_manifest(tmp_path / "manifest.json"), r"manifest\.json")
