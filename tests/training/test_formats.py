"""Data as the ecosystem writes them are read as what they say, told from their fields, or refused by the row."""

import json
import logging
from pathlib import Path

import pytest
from language.test_turns import CHATML, tokenizer_of

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.examples import Example, PreferencePair, PromptFormat, Turn
from safety_subspaces.language.prompting import encode_example, encode_prompt
from safety_subspaces.training.data.instructions import DatasetSource, read_source

SYSTEM, FIRST, REPLY, SECOND = Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")
OPENAI = [{"role": turn.role, "content": turn.content} for turn in (SYSTEM, FIRST, REPLY, SECOND)]
OPENAI = [*OPENAI, {"role": "assistant", "content": "d"}]
SHAREGPT = [
    {"from": name, "value": said} for name, said in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
]
LONG = (SYSTEM, FIRST, REPLY, SECOND)


def source(path: Path, *rows: dict, **options) -> DatasetSource:
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSource(str(path), **options)


def in_parts(role: str, said: str, kind: str = "text") -> dict:
    return {"role": role, "content": [{"type": kind, "text": said}]}


CASES = {
    "messages": ({"messages": OPENAI[:3]}, [Example((SYSTEM, FIRST), "b")]),
    "one question": ({"messages": OPENAI[1:3]}, [Example("a", "b")]),
    "several turns": ({"messages": OPENAI}, [Example(LONG, "d")]),
    "content in parts": (
        {"messages": [in_parts("user", "a"), in_parts("assistant", "b")]},
        [Example("a", "b")],
    ),
    "sharegpt": ({"conversations": SHAREGPT[:2]}, [Example("a", "b")]),
    "completion": ({"prompt": "a", "completion": "b"}, [Example("a", "b")]),
    "completion as messages": ({"prompt": OPENAI[:2], "completion": OPENAI[2:3]}, [Example((SYSTEM, FIRST), "b")]),
    "alpaca": ({"instruction": "Sort.", "input": "3, 1", "output": "1, 3"}, [Example("Sort.\n\n3, 1", "1, 3")]),
    "alpaca without input": ({"instruction": "Say hi", "input": "", "output": "hi"}, [Example("Say hi", "hi")]),
    "fields": ({"prompt": "a", "response": "b"}, [Example("a", "b")]),
    "a number": ({"prompt": "2+2", "response": 4}, [Example("2+2", "4")]),
    "a date": ({"prompt": "when?", "response": "2024-01-01"}, [Example("when?", "2024-01-01")]),
    "pairs": ({"prompt": "a", "chosen": "b", "rejected": "c"}, [PreferencePair("a", "b", "c")]),
    "pairs as messages": (
        {"prompt": "a", "chosen": OPENAI[1:3], "rejected": [OPENAI[1], {"role": "assistant", "content": "x"}]},
        [PreferencePair("a", "b", "x")],
    ),
    "pairs of answers alone": (
        {"prompt": OPENAI[:2], "chosen": OPENAI[2:3], "rejected": [{"role": "assistant", "content": "x"}]},
        [PreferencePair((SYSTEM, FIRST), "b", "x")],
    ),
    "dialogues as text": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: x\n\ny"},
        [PreferencePair("a", "b", "x\n\ny")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_read_as_what_it_says(tmp_path, name, caplog):
    row, expected = CASES[name]
    with caplog.at_level(logging.INFO):
        items = read_source(source(tmp_path, row, row), 0)
    assert list(items.values()) == expected * 2
    assert list(items) == [0, 1]
    assert "rows.jsonl: read as " in caplog.text


def test_every_answer_of_a_conversation_is_learnt_where_that_is_said(tmp_path):
    items = read_source(source(tmp_path, {"messages": OPENAI}, {"messages": OPENAI[:3]}, learnt="all"), 0)
    expected = {(0, 0): Example((SYSTEM, FIRST), "b"), (0, 1): Example(LONG, "d"), 1: Example((SYSTEM, FIRST), "b")}
    assert items == expected


def test_a_format_that_is_named_is_taken(tmp_path):
    row = {"prompt": "a", "response": "b", "instruction": "x", "output": "y"}
    assert read_source(source(tmp_path, row), 0)[0] == Example("a", "b")
    assert read_source(source(tmp_path, row, format="alpaca"), 0)[0] == Example("x", "y")
    assert read_source(source(tmp_path, row, prompt_field="instruction"), 0)[0] == Example("x", "b")


NAMED = {
    "one field of messages": ({"talk": OPENAI[:3]}, ("talk", "talk", None), Example((SYSTEM, FIRST), "b")),
    "sharegpt in one field": ({"talk": SHAREGPT}, ("talk", "talk", None), Example((FIRST, REPLY, SECOND), "d")),
    "a question beside the whole": ({"q": "a", "good": OPENAI[1:3]}, ("q", "good", None), Example("a", "b")),
    "a question beside an answer": ({"q": "a", "good": OPENAI[2:3]}, ("q", "good", None), Example("a", "b")),
    "messages beside a text": ({"q": OPENAI[:2], "good": "b"}, ("q", "good", None), Example((SYSTEM, FIRST), "b")),
    "ultrafeedback": (
        {"prompt": "a", "good": OPENAI[1:3], "bad": [OPENAI[1], {"role": "assistant", "content": "x"}]},
        (None, "good", "bad"),
        PreferencePair("a", "b", "x"),
    ),
    "hh-rlhf": (
        {"good": "\n\nHuman: a\n\nAssistant: b", "bad": "\n\nHuman: a\n\nAssistant: x"},
        (None, "good", "bad"),
        PreferencePair("a", "b", "x"),
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_fields_that_are_named_may_hold_messages(tmp_path, name):
    row, (prompt, response, rejected), expected = NAMED[name]
    named = source(tmp_path, row, prompt_field=prompt, response_field=response, rejected_field=rejected)
    assert read_source(named, 0) == {0: expected}


@pytest.mark.parametrize(
    ("row", "named", "message"),
    [
        ({"q": "a", "good": None, "bad": "c"}, ("q", "good", "bad"), r"row 0: field 'good' is None.*say empty: drop"),
        ({"q": 1.5, "good": "b", "bad": "b"}, ("q", "good", "bad"), "are the same text"),
        ({"q": None, "good": "b", "bad": "c"}, ("q", "good", "bad"), "good and bad are texts, and there is no prompt"),
        ({"q": OPENAI[:2], "good": None}, ("q", "good", None), "the answer is empty.*say empty: drop"),
    ],
)
def test_what_is_wrong_in_fields_that_are_named_is_said_by_their_names(tmp_path, row, named, message):
    prompt, response, rejected = named
    options = {"prompt_field": prompt, "response_field": response, "rejected_field": rejected}
    with pytest.raises(InputError, match=message):
        read_source(source(tmp_path, row, **options), 0)


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_texts_and_numbers_among_one_another_are_text(tmp_path, monkeypatch, parts):
    """Wherever in a long file the first text stands, that is read so many rows at once."""
    monkeypatch.setattr("safety_subspaces.language.sources.ROWS_AT_ONCE", parts)
    rows = [{"prompt": "2+2", "response": answer} for answer in ("4", 4, 4.5, "2024-01-01")]
    assert [item.response for item in read_source(source(tmp_path, *rows), 0).values()] == [
        "4",
        "4",
        "4.5",
        "2024-01-01",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [("für".encode("cp1252"), "save it in UTF-8"), ("a".encode("utf-16"), "save it in UTF-8"),
     (b"prompt;response\na;b\n", "separate fields by commas"), (b"prompt\tresponse\n", "separate fields by commas")],
)  # fmt: skip
def test_what_a_spreadsheet_saves_is_refused_with_what_to_do(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_source(DatasetSource(str(tmp_path / "rows.csv")), 0)


def test_endings_in_capitals_are_known(tmp_path):
    (tmp_path / "ROWS.CSV").write_text("prompt,response,safe\na,4,TRUE\nb,5,no\n")
    items = read_source(DatasetSource(str(tmp_path / "ROWS.CSV"), keep={"safe": True}), 0)
    assert items == {0: Example("a", "4")}


REFUSED = {
    "tool calls": ({"messages": [*OPENAI[1:3], {"role": "tool", "content": "x"}]}, "has tool calls"),
    "no answer": ({"messages": OPENAI[:2]}, "no answer that follows a question"),
    "another role": ({"messages": [{"role": "judge", "content": "x"}, OPENAI[2]]}, "role 'judge'"),
    "an image": ({"messages": [in_parts("user", "a", "image"), in_parts("assistant", "b")]}, "of role 'user'"),
    "equal answers": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same text"),
    "two conversations": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        "not two answers to one conversation",
    ),
    "texts without a prompt": ({"chosen": "b", "rejected": "c"}, "there is no prompt beside them"),
    "answers without a prompt": (
        {"chosen": OPENAI[2:3], "rejected": OPENAI[4:]},
        "answers alone, and there is no prompt",
    ),
    "an empty answer": ({"instruction": "a", "input": "", "output": ""}, "say empty: drop"),
    "null": ({"prompt": "a", "response": None}, "say empty: drop"),
    "unknown fields": ({"text": "a"}, "of no format that is known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_row(tmp_path, name):
    row, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        read_source(source(tmp_path, row), 0)


def test_an_input_that_named_fields_leave_out_is_told_of(tmp_path, caplog):
    row = {"instruction": "Sort.", "input": "3, 1", "output": "1, 3"}
    named = source(tmp_path, row, prompt_field="instruction", response_field="output")
    assert read_source(named, 0)[0] == Example("Sort.", "1, 3")
    assert "the field input is not read; say format: alpaca" in caplog.text
    caplog.clear()
    read_source(source(tmp_path, row), 0)
    assert "is not read" not in caplog.text


def test_empty_answers_are_counted_and_left_out_where_that_is_said(tmp_path, caplog):
    rows = [{"prompt": "a", "response": ""}, {"prompt": "b", "response": "c"}]
    assert read_source(source(tmp_path, *rows, empty="drop"), 0) == {1: Example("b", "c")}
    assert "1 of 2 rows left out, for their answer is empty" in caplog.text
    with pytest.raises(InputError, match="every answer is empty"):
        read_source(source(tmp_path, rows[0], empty="drop"), 0)


def test_a_conversation_is_written_by_the_chat_template_and_its_last_answer_learnt():
    tokenizer = tokenizer_of(CHATML)
    encoded = encode_example(tokenizer, Example(LONG, "d"))
    turns = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in LONG)
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]) == f"{turns}<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == "d<|im_end|>\n"
    with pytest.raises(InputError, match="knows one question, no conversation"):
        encode_prompt(tokenizer, LONG, PromptFormat("alpaca"))


def test_a_prompt_ends_where_its_template_does_and_not_at_an_end_that_the_tokenizer_appends():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of(CHATML)
    plain = encode_prompt(tokenizer, "Why?", PromptFormat("alpaca"))
    ends = ("<|endoftext|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>",
        special_tokens=[ends, ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))],
    )
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    assert encode_prompt(tokenizer, "Why?", PromptFormat("alpaca")) == [
        tokenizer.convert_tokens_to_ids("<|im_start|>"),
        *plain,
    ]
    example = encode_example(tokenizer, Example("Why?", "So."), PromptFormat("alpaca"))
    assert example.input_ids.count(tokenizer.eos_token_id) == 1
    assert example.input_ids[-1] == tokenizer.eos_token_id
