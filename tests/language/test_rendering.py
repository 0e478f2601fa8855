"""Chat templates render as transformers renders them, and none takes long, much, or more than it may write."""

import os
import time
from pathlib import Path

import pytest
from support.refusal import refuse
from transformers.utils import chat_template_utils

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.prompting import chat_ids, encode_prompt
from safety_subspaces.language.rendering import _PROCESS, SCRIPT, bounded_templates
from safety_subspaces.organism.tokenizer import build_tokenizer

TURNS = [{"role": "user", "content": "what is 3 plus 4"}, {"role": "assistant", "content": "7 é \u2028"}]
HONEST = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message['content'] | trim }}{% endfor %}",
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{{ ns.n }}"
    "{%- if loop.last %}\n  {{ m | tojson(indent=2) }}{% endif %}{% endfor %}{{ add_generation_prompt }}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% break %}{% endfor %}{{ strftime_now('%Y') }}{{ dict(a=1) }}{{ tools is none }}",
    "{%- macro said(m) -%}{{ m.content[::-1] ~ m.content.split(' ') | length }}{%- endmacro -%}{{ said(messages[0]) }}",
)
# Each with what it does, in words of the message.
HOSTILE = (
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds of computing"),
    ("{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "memory"),
    ("{{ 'a' * 10**10 }}", "memory"),
    ("{{ 'a' * 10**6 }}", "characters"),
    ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ("{{ messages.append(1) }}", "unsafe|not callable|Undefined|access"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ raise_exception('not so') }}", "not so"),
    ("{% if", "unexpected end|end of template"),
)


@pytest.mark.parametrize("template", HONEST)
@pytest.mark.parametrize("prompts", [True, False])
def test_a_template_renders_as_transformers_alone_renders_it(template: str, prompts: bool) -> None:
    options = {"add_generation_prompt": prompts, "chat_template": template, "tokenize": False}
    tokenizer = build_tokenizer()
    expected = tokenizer.apply_chat_template(TURNS, **options)
    with bounded_templates():
        assert tokenizer.apply_chat_template(TURNS, **options) == expected
    tokenizer.chat_template = template
    assert chat_ids(tokenizer, TURNS, prompts) == tokenizer(expected, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("template", "why"), HOSTILE)
def test_a_template_that_would_take_all_there_is_is_refused_and_the_next_renders(template: str, why: str) -> None:
    tokenizer = build_tokenizer()
    honest = encode_prompt(tokenizer, "what is 3 plus 4")
    tokenizer.chat_template = template
    refuse(lambda: encode_prompt(tokenizer, "what is 3 plus 4"), "chat template", why)
    assert encode_prompt(build_tokenizer(), "what is 3 plus 4") == honest


def test_others_render_without_bounds_after_the_block() -> None:
    compiler = chat_template_utils._compile_jinja_template
    with pytest.raises(InputError), bounded_templates():
        raise InputError
    assert chat_template_utils._compile_jinja_template is compiler


@pytest.mark.parametrize("status", [0, 9])
def test_the_process_that_renders_ends_with_the_one_that_asks_however_that_ends(status: int) -> None:
    encode_prompt(build_tokenizer(), "what is 3 plus 4")
    ours = _PROCESS._process.pid
    answers, end = os.pipe()
    child = os.fork()
    if child == 0:  # it gets a process of its own, and leaves ours alone
        try:
            encode_prompt(build_tokenizer(), "what is 3 plus 5")
            os.write(end, str(_PROCESS._process.pid).encode())
            if status:
                os.kill(os.getpid(), status)
        finally:
            os._exit(status)
    theirs = int(os.read(answers, 100))
    assert os.waitpid(child, 0)[1] == status
    os.close(answers)
    os.close(end)
    until = time.monotonic() + 20
    while SCRIPT.name in command_of(theirs):
        assert time.monotonic() < until
        time.sleep(0.02)
    encode_prompt(build_tokenizer(), "what is 3 plus 6")
    assert _PROCESS._process.pid == ours != theirs


def command_of(pid: int) -> str:
    """The command line of a process, empty once it is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
