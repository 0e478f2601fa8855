"""Ways in which a file can be wrong: damaged, cut, of another kind, or made to do harm."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

# Stands in a JSON text for what `json.dumps` would not write, and is replaced afterwards.
RAW = "raw-text-goes-here"
RAW_TEXTS = (
    "[" * 100_000,
    '{"a":' * 100_000,
    "[" * 500 + "]" * 500,
    "[" * 60 + "]" * 60,
    "1e999",
    "NaN",
    "-Infinity",
    "9" * 5000,
    '"\\ud800"',
    '"\x00"',
    "1" + "0" * 400,
    "tru",
)
HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    10**6,
    10**9,
    10**12,
    2**63,
    2**64,
    0.5,
    -0.0,
    1e308,
    1e-320,
    "",
    " ",
    "x",
    "0",
    "1",
    "../../outside",
    "/absolute/name",
    "a/b",
    "..",
    "~root",
    "a" * 10_000,
    "\u202e\u0000\ud800",
    "{prompt}",
    "(a+)+$",
    "${a}",
    "<script>",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, "2"],
    {"a": {"b": {}}},
    ["x"] * 1000,
)
HOSTILE_BYTES = (
    b"\x00",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xe9",
    b"{",
    b"}",
    b"[" * 5000,
    b'"',
    b"\\",
    b",",
    b"\n",
    b"\r",
    b"\x1b[2J",
    b"../../",
    b"1e999",
    b"NaN",
    b"9" * 5000,
    b"null",
    b"\xf0\x9f",
    b"&a *a",
    b"${",
    b"!!python/name:os.system ",
    b"\x00" * 64,
    b"\xff" * 8,
    (2**63 - 1).to_bytes(8, "little"),
    (2**32 - 1).to_bytes(4, "little"),
    b"{% for i in range(99999) %}",
)
TEMPLATES = (
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{{ 'a' * 10**10 }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ messages | tojson(indent=10**8) }}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{{ ''.__class__.__mro__ }}",
    "{% if",
    "{{ x.y.z }}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{" * 2000,
    "{{ messages[9].content }}",
    "",
    "{% include 'x' %}",
    "{{ (99999999 ** 99999999) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum(n=10**6) }}",
    "{{ range(99999) | join }}",
    "{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}",
)
BOMB = "k0: &k0 [x, x]\n" + "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 10))
YAML_TEXTS = (
    BOMB,
    "a: &a\n  b: *a\n",
    "a: &a [*a]\n",
    "[" * 5000,
    "a: !!python/object/apply:os.system [true]\n",
    "a: !!int word\n",
    "a: !!timestamp 2020-99-99\n",
    "a: !!binary '%%%'\n",
    "? [a, b]\n: c\n",
    "<<: 3\n",
    "- a\n- b\n",
    "just text\n",
    "a: ${b}\nb: ${a}\n",
    "models: ${oc.env:NO_SUCH_VARIABLE}\n",
    "out: ${unclosed\n",
    "out: ${..x}\n",
    "seed: ${seed}\n",
    "limit: .inf\n",
    "limit: 1e400\n",
    "models: '&a [*a]'\n",
    json.dumps({"limit": BOMB}),
    "%YAML 9.9\n---\na: 1\n",
    "a: 1\n---\nb: 2\n",
    "\t- a\n",
    "a: @x\n",
    "x: " + "9" * 5000 + "\n",
    "models: {<<: &m {a: b}, <<: *m}\n",
    'out: "\\ud800"\n',
)

Mutation = Callable[[random.Random, bytes], bytes]


def mutate_file(draw: random.Random, path: Path) -> None:
    """Change one file in place, by its kind or by its bytes alone."""
    fate = draw.random()
    if fate < 0.02:
        path.unlink()
    elif fate < 0.03:
        path.unlink()
        path.mkdir()
    elif fate < 0.05:
        path.write_bytes(b"")
    else:
        data = path.read_bytes()
        kinds = KINDS.get(path.suffix, ())
        change = draw.choice(kinds) if kinds and draw.random() < 0.65 else any_bytes
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            try:
                data = change(draw, data)
            except (ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError):
                data = any_bytes(draw, data)  # an earlier change has left nothing of that kind
        path.write_bytes(data)


def any_bytes(draw: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, remove or insert bytes, more often near the start, where headers are."""
    end = len(data) if draw.random() < 0.5 else min(len(data), 400)
    place = draw.randrange(end + 1)
    length = draw.choice((1, 1, 2, 4, 8, 64, 1000))
    kind = draw.randrange(6)
    if kind == 0 and data:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 4, 32))):
            changed[draw.randrange(end)] = draw.randrange(256)
        return bytes(changed)
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[place : place + length] + data[place:]
    if kind == 3:
        return data[:place] + data[place + length :]
    if kind == 4:
        new = draw.choice(HOSTILE_BYTES)
        return data[:place] + new + data[place + len(new) :]
    return data[:place] + draw.choice(HOSTILE_BYTES) + data[place:]


def json_text(draw: random.Random, data: bytes) -> bytes:
    """Change the structure of a JSON text."""
    value = json.loads(data)
    return _dumped(draw, changed_value(draw, value))


def json_lines(draw: random.Random, data: bytes) -> bytes:
    """Change the structure of one line of JSON."""
    lines = data.splitlines()
    index = draw.randrange(len(lines))
    lines[index] = json_text(draw, lines[index])
    return b"\n".join(lines) + b"\n"


def tensors(draw: random.Random, data: bytes) -> bytes:
    """Change the header of a safetensors file: names, types, shapes, offsets, texts."""
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    kind = draw.randrange(8)
    name = draw.choice(names)
    entry = header[name]
    if kind == 0:
        other = draw.choice(("/absolute", "../../up", "", "x" * 5000, "a\x00b", name + ".x", "é\ud800"))
        header = {other if n == name else n: e for n, e in header.items()}
    elif kind == 1:
        entry["dtype"] = draw.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "", 7, None))
    elif kind == 2:
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        count = size // 4
        fitting = ([count], [1, count], [count, 1, 1])
        odd = ([], [0], [10**12, 0], [10**12, 0, 4], [1] * 40, [-1], [2**63, 2], "x")
        entry["shape"] = draw.choice((*fitting, *odd))
        if isinstance(entry["shape"], list) and 0 in entry["shape"]:
            entry["data_offsets"] = [entry["data_offsets"][0]] * 2
    elif kind == 3:
        entry["data_offsets"] = draw.choice(([0, 0], [0, 2**63], [2**64, 0], [-4, 4], [8, 4], ["a", "b"], []))
    elif kind == 4:
        del header[name]
    elif kind == 5 and "__metadata__" in header:
        texts = header["__metadata__"]
        chosen = draw.choice(list(texts))
        try:
            inner = json.loads(texts[chosen])
            texts[chosen] = _dumped(draw, changed_value(draw, inner)).decode(errors="replace")
        except ValueError:
            texts[chosen] = draw.choice(("", "[" * 50_000, "left\x00", "null", "9" * 5000))
    elif kind == 6:
        length = draw.choice((0, 1, 2**63, 2**64 - 1, length + 1, length - 1, 10**8))
        return struct.pack("<Q", length) + data[8:]
    else:
        header = changed_value(draw, header)
    encoded = _dumped(draw, header)
    return struct.pack("<Q", len(encoded)) + encoded + numbers


def template_text(draw: random.Random, data: bytes) -> bytes:
    """Put a hostile piece into a chat template, or in its place."""
    piece = draw.choice(TEMPLATES).encode()
    place = draw.randrange(len(data) + 1)
    return piece if draw.random() < 0.5 else data[:place] + piece + data[place:]


def yaml_text(draw: random.Random, data: bytes) -> bytes:
    """Put hostile YAML beside the settings, in their place, or in the place of one value."""
    piece = draw.choice(YAML_TEXTS).encode()
    kind = draw.randrange(3)
    if kind == 0:
        return piece
    if kind == 1:
        return data + piece
    lines = data.splitlines()
    index = draw.randrange(len(lines))
    name, colon, _ = lines[index].partition(b":")
    value = draw.choice(HOSTILE_VALUES)
    lines[index] = name + colon + b" " + json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


def comma_separated(draw: random.Random, data: bytes) -> bytes:
    """Change rows or fields of a CSV file."""
    lines = data.split(b"\n")
    index = draw.randrange(len(lines))
    line = lines[index]
    lines[index] = draw.choice((b'"', b"," * 5, b"", b'"a""b', b"\x00,\x00", b"a" * 200_000, line + b',"', line[::-1]))
    return b"\n".join(lines)


def parquet(draw: random.Random, data: bytes) -> bytes:
    """Change a column of a Parquet file: its values' kind, its name, or take it away."""
    import io

    frame = pd.read_parquet(io.BytesIO(data))
    column = draw.choice(list(frame.columns))
    kind = draw.randrange(5)
    if kind == 0:
        frame = frame.drop(columns=column)
    elif kind == 1:
        frame = frame.rename(columns={column: draw.choice(("", "a" * 1000, "../x", "\u202e", "prompt "))})
    elif kind == 2:
        value = draw.choice(
            (None, 1, 2.5, True, "text", b"\xff\x00", [1, 2], {"a": 1}, pd.Timestamp(0), float("inf"), 2**62)
        )
        frame[column] = pd.Series([value] * len(frame), index=frame.index)
    elif kind == 3:
        frame = frame.iloc[:0]
    else:
        frame = pd.concat([frame] * 3, ignore_index=draw.random() < 0.5)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=draw.random() < 0.2)
    return buffer.getvalue()


def changed_value(draw: random.Random, value: Any) -> Any:
    """Replace, remove, add or swap something inside a JSON value."""
    holders: list[Any] = []
    level = [value]
    while level:
        holders += [inner for inner in level if isinstance(inner, dict | list) and inner]
        children = [list(inner.values()) if isinstance(inner, dict) else inner for inner in level]
        level = [inner for child in children if isinstance(child, list) for inner in child][:5000]
    if not holders or draw.random() < 0.03:
        return draw.choice((*HOSTILE_VALUES, RAW))
    # What is nearer to the top means more, and a vocabulary of thousands should not take all.
    holder = holders[min(draw.randrange(len(holders)), draw.randrange(len(holders)))]
    key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    kind = draw.randrange(8)
    if kind < 4:
        holder[key] = draw.choice((*HOSTILE_VALUES, RAW, RAW, RAW))
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[str(draw.choice(HOSTILE_VALUES))] = holder.pop(key)
    elif kind == 6 and isinstance(holder, dict):
        other = draw.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        old = holder[key]
        holder[key] = draw.choice(
            ([old], {"a": old}, str(old), [old] * 100, -old if isinstance(old, int | float) else None)
        )
    return value


def _dumped(draw: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    while f'"{RAW}"' in text:
        text = text.replace(f'"{RAW}"', draw.choice(RAW_TEXTS), 1)
    return text.encode(errors="surrogatepass")


KINDS: dict[str, tuple[Mutation, ...]] = {
    ".json": (json_text,),
    ".jsonl": (json_lines,),
    ".safetensors": (tensors,),
    ".jinja": (template_text,),
    ".yaml": (yaml_text,),
    ".csv": (comma_separated,),
    ".parquet": (parquet,),
}
