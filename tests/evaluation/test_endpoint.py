"""Endpoints that fail in every way: each request ends with a text or a reason, none is lost, sent or paid for twice."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest
from support.scripted_server import MODEL, Answer, chat, said, serving

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.endpoint.client import Endpoint, Reply, Request
from safety_subspaces.evaluation.endpoint.request_cache import RequestCache, default_cache, key_of
from safety_subspaces.evaluation.settings import EndpointSettings

PATIENT = {"retries": 3, "timeout_seconds": 1.0, "concurrency": 4}


def asking(*texts: str) -> list[Request]:
    return [Request(({"role": "user", "content": text},), 8) for text in texts]


def settings(url: str, tmp_path: Path, **changed) -> EndpointSettings:
    return EndpointSettings(MODEL, url, cache=str(tmp_path / "replies.sqlite"), **{**PATIENT, **changed})


def echo(body, _):
    return Answer(chat(f"re {said(body)}"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Back-off of a hundredth of its length."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)


def test_every_request_has_its_own_reply_in_order_and_is_sent_once(tmp_path):
    texts = [f"prompt {number}" for number in range(30)]
    with serving(echo) as server:
        endpoint = Endpoint(settings(server.url, tmp_path))
        replies = endpoint.ask(asking(*texts, *texts[:5]))
        assert [reply.text for reply in replies] == [f"re {text}" for text in [*texts, *texts[:5]]]
        assert server.times() == dict.fromkeys(texts, 1)
        # Another process finds them in the file; one more prompt is one more request.
        again = Endpoint(settings(server.url, tmp_path)).ask(asking(*texts, "another"))
        assert [reply.text for reply in again] == [*(f"re {text}" for text in texts), "re another"]
        assert len(server.asked) == 31
    sent = server.asked[0]
    assert sent["temperature"] == 0
    assert sent["max_tokens"] == 8
    assert sent["model"] == MODEL


def test_what_passes_is_tried_again_and_what_does_not_has_a_reason(tmp_path):
    """429 and 500 pass at the third try, a slow one at the second; others never do, each in its own way."""

    def script(body, before):
        kind = said(body)
        if kind == "busy" and before < 2:
            return Answer({"error": {"message": "slow down"}}, 429, {"retry-after": "0.01"})
        if kind == "broken" and before < 2:
            return Answer({"error": {"message": "oops"}}, 500)
        if kind == "slow" and before < 1:
            return Answer(chat("late"), after=1.5)
        bad = {
            "always broken": Answer({"error": {"message": "oops"}}, 503),
            "always slow": Answer(chat("late"), after=1.5),
            "too long": Answer({"error": {"message": "context length exceeded"}}, 400),
            "no json": Answer(b"<html>busy</html>"),
            "half json": Answer(b'{"choices": [{"mess'),
            "no choices": Answer({"object": "error", "choices": []}),
            "a list": Answer([1, 2]),
            "text is a number": Answer({"choices": [{"message": {"content": 5}}]}),
        }
        return bad.get(kind) or echo(body, before)

    good = ["fine", "busy", "broken", "slow"]
    bad = [
        "always broken",
        "always slow",
        "too long",
        "no json",
        "half json",
        "no choices",
        "a list",
        "text is a number",
    ]
    with serving(script) as server:
        endpoint = Endpoint(settings(server.url, tmp_path, concurrency=12))
        replies = dict(zip([*good, *bad], endpoint.ask(asking(*good, *bad)), strict=True))
        assert {name: replies[name].text for name in good} == {name: f"re {name}" for name in good}
        assert all(replies[name].text is None and replies[name].reason for name in bad)
        assert "status 503" in replies["always broken"].reason
        assert "no reply within 1 s" in replies["always slow"].reason
        assert "context length exceeded" in replies["too long"].reason
        times = server.times()
        assert times["busy"] == times["broken"] == 3
        assert times["too long"] == times["no choices"] == 1  # it would be the same again
        # What failed is asked again the next time, what came is not.
        endpoint.ask(asking(*good, "too long"))
        assert server.times()["too long"] == 2
        assert server.times()["fine"] == 1


def test_fields_that_a_server_does_not_know_are_left_out_or_renamed_and_found_in_the_cache_all_the_same(tmp_path):
    def script(body, before):
        if "response_format" in body:
            return Answer({"error": {"message": "response_format is not supported"}}, 400)
        if "max_tokens" in body:
            return Answer({"error": {"message": "use 'max_completion_tokens' instead of max_tokens"}}, 400)
        return echo(body, before)

    requests = [Request(({"role": "user", "content": text},), 8, {"type": "object"}) for text in ("a", "b", "c")]
    with serving(script) as server:
        own = settings(server.url, tmp_path, concurrency=1)
        assert [reply.text for reply in Endpoint(own).ask(requests)] == ["re a", "re b", "re c"]
        assert len(server.asked) == 5  # two lessons, learnt once
        assert server.asked[-1]["max_completion_tokens"] == 8
        Endpoint(own).ask(requests)
        assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer({"error": {"message": "Incorrect API key provided: sk-verysecret"}}, 401), "does not take the key"),
        (Answer({"error": {"message": "no"}}, 403), "does not take the key"),
        (Answer({"error": {"message": "model gone"}}, 404), "has no model 'scripted'.*model gone"),
        (Answer({"error": {"message": "pay", "code": "insufficient_quota"}}, 429), "no credit left"),
    ],
)
def test_what_every_request_would_meet_ends_all_and_never_shows_the_key(tmp_path, monkeypatch, answer, message):
    monkeypatch.setenv("MY_KEY", "sk-verysecret")
    with serving(lambda body, _: answer) as server:
        endpoint = Endpoint(settings(server.url, tmp_path, api_key_env="MY_KEY", concurrency=1, retries=0))
        with pytest.raises(InputError, match=message) as raised:
            endpoint.ask(asking(*"abcdef"))
        assert "sk-verysecret" not in str(raised.value)
        assert len(server.asked) == 1
        assert server.asked[0]["authorization"] == "Bearer sk-verysecret"
        assert b"sk-verysecret" not in (tmp_path / "replies.sqlite").read_bytes()


def message(**said) -> Answer:
    return Answer({"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **said}}]})


WAYS = {
    "parts": (message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), Reply("ab")),
    "refusal": (message(content=None, refusal="I cannot."), Reply("I cannot.")),
    "thought": (message(content="so", reasoning_content="hm"), Reply("<think>hm</think>\n\nso")),
    "thought alone": (message(content=None, reasoning="hm"), Reply("<think>hm")),
    "filtered": (Answer(chat("", "content_filter")), Reply(None, "stopped by the server's content filter")),
    "blank": (Answer(chat("  ")), Reply("  ")),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_say_something_is_an_answer_or_a_reason(tmp_path, way):
    answer, expected = WAYS[way]
    with serving(lambda body, before: answer) as server:
        endpoint = Endpoint(settings(server.url, tmp_path))
        assert endpoint.ask(asking("a")) == [expected]
        # What was blank, or filtered, is asked again; the rest is kept.
        assert endpoint.ask(asking("a")) == [expected]
        assert len(server.asked) == (2 if way in ("blank", "filtered") else 1)


def test_a_server_that_takes_no_temperature_is_asked_without_one(tmp_path, caplog):
    def script(body, before):
        if "temperature" in body:
            return Answer({"error": {"message": "Unsupported value: 'temperature' does not support 0"}}, 400)
        return echo(body, before)

    with serving(script) as server:
        assert Endpoint(settings(server.url, tmp_path)).ask(asking("a")) == [Reply("re a")]
    assert "its answers are samples" in caplog.text


def test_filters_leave_single_requests_unanswered_and_refusals_of_all_end_the_run_at_the_first_dozen(tmp_path):
    def filtering(body, before):
        if said(body) == "3":
            return Answer({"error": {"message": "stopped by our content management policy"}}, 400)
        return echo(body, before)

    texts = [str(number) for number in range(40)]
    with serving(filtering) as server:
        replies = Endpoint(settings(server.url, tmp_path)).ask(asking(*texts))
        assert [reply.text is None for reply in replies] == [text == "3" for text in texts]
        assert "content filter" in replies[3].reason
    wrong = Answer({"error": {"message": "messages: unknown field"}}, 400)
    with serving(lambda body, before: wrong) as server:
        with pytest.raises(InputError, match=r"refused 12 requests in a row .*unknown field"):
            Endpoint(settings(server.url, tmp_path / "other", concurrency=1)).ask(asking(*texts))
        assert len(server.asked) == 12


def test_a_key_that_a_server_sends_back_is_kept_nowhere(tmp_path, monkeypatch):
    key = "sk-Very7Secret9Key-of-42"
    monkeypatch.setenv("MY_KEY", key)

    def script(body, before):
        said_back = {
            "whole": Answer(chat(f"you sent {key}")),
            "part": Answer(chat(f"you sent {key[:12]}")),
            "usage": Answer(chat("fine") | {"usage": {"for": key}}),
            "refused": Answer({"error": {"message": f"wrong: {key}"}}, 400),
            "starred": Answer({"error": {"message": f"wrong: {key[:6]}****{key[-4:]}"}}, 400),
            "no choices": Answer({"object": key}),
        }
        return said_back[said(body)]

    asked = ["whole", "part", "usage", "refused", "starred", "no choices"]
    with serving(script) as server:
        for _ in range(2):  # the second time most come from the cache
            endpoint = Endpoint(settings(server.url, tmp_path, api_key_env="MY_KEY"))
            replies = dict(zip(asked, endpoint.ask(asking(*asked)), strict=True))
            assert replies["whole"].text == replies["part"].text == "you sent ***"
            assert replies["usage"].text == "fine"
            assert all("***" in replies[name].reason for name in ("refused", "starred", "no choices"))
            shown = " ".join(f"{reply.text} {reply.reason}" for reply in replies.values())
            assert not any(part in shown for part in (key[:6], key[-4:]))
        assert server.asked[0]["authorization"] == f"Bearer {key}"
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key[:8].encode() not in kept


def test_a_server_that_goes_away_ends_the_run_and_keeps_what_came(tmp_path):
    with serving(echo) as server:
        own = settings(server.url, tmp_path, concurrency=2, retries=0)
        Endpoint(own).ask(asking("first"))
    endpoint = Endpoint(own)
    with pytest.raises(InputError, match="cannot be reached"):
        endpoint.ask(asking("first", *(f"prompt {number}" for number in range(20))))
    assert endpoint.ask(asking("first"))[0].text == "re first"


def test_an_endpoint_is_checked_before_it_is_used(tmp_path, monkeypatch):
    def script(body, before):
        return echo(body, before) if body["model"] in (MODEL, "unlisted") else Answer({"detail": "no such model"}, 404)

    with serving(script) as server:
        Endpoint(settings(server.url, tmp_path)).check()
        assert not server.asked
        unlisted = settings(server.url, tmp_path)
        unlisted.model = "unlisted"  # some servers list none of what they serve
        Endpoint(unlisted).check()
        unlisted.model = "unknown"
        with pytest.raises(InputError, match=r"has no model 'unknown'.*It lists scripted"):
            Endpoint(unlisted).check()
    with pytest.raises(InputError, match="cannot be reached"):
        Endpoint(settings(server.url, tmp_path)).check()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="set the environment variable OPENAI_API_KEY"):
        Endpoint(EndpointSettings("gpt", cache=str(tmp_path / "c.sqlite")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_url": "localhost:8000"}, "expected an address"),
        ({"base_url": "http://me:secret@localhost/v1"}, "credentials"),
        ({"base_url": "http://localhost/v1?key=secret"}, "credentials or a query"),
        ({"model": ""}, "no model named"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"max_cost": 1.0}, "max_cost needs input_price and output_price"),
        ({"max_cost": -1.0, "input_price": 1.0, "output_price": 1.0}, "expected 0 or more"),
        ({"cache": "/proc/no/such.sqlite"}, "cannot be used"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_secrets_not_repeated(tmp_path, changed, message):
    good = {"model": MODEL, "base_url": "http://localhost:1/v1", "cache": str(tmp_path / "c.sqlite")}
    with pytest.raises(InputError, match=message) as raised:
        Endpoint(EndpointSettings(**{**good, **changed}))
    assert "secret" not in str(raised.value)


def test_nothing_is_sent_that_may_cost_more_than_allowed(tmp_path):
    priced = {"input_price": 1.0, "output_price": 10.0}
    with serving(echo) as server:
        free = Endpoint(settings(server.url, tmp_path))
        assert free.most_it_costs(asking("a")) is None
        endpoint = Endpoint(settings(server.url, tmp_path, **priced, max_cost=1.0))
        one, ten = (endpoint.most_it_costs(asking(*"abcdefghij"[:count])) for count in (1, 10))
        assert one == pytest.approx((32 + 1 + 8 * 10) / 1e6)  # a byte rounds to a token
        assert ten == pytest.approx(10 * one)
        # Seven fit the budget, and an eighth does not after them: what was answered before costs nothing.
        endpoint = Endpoint(settings(server.url, tmp_path, **priced, max_cost=7.5 * one))
        with pytest.raises(InputError, match=r"10 requests to scripted may cost up to \$0.00113.*nothing was sent"):
            endpoint.ask(asking(*"abcdefghij"))
        assert not server.asked
        endpoint.ask(asking(*"abcdefg"))
        endpoint.ask(asking(*"abcdefg"))
        with pytest.raises(InputError, match="max_cost"):
            endpoint.ask(asking(*"abcdefgh"))
        assert len(server.asked) == 7


KILLED = """
import sys
sys.path[:0] = {paths!r}
from safety_subspaces.evaluation.endpoint.client import Endpoint, Request
from safety_subspaces.evaluation.settings import EndpointSettings
endpoint = Endpoint(EndpointSettings({model!r}, {url!r}, cache={cache!r}, concurrency=1))
endpoint.ask([Request(({{"role": "user", "content": f"prompt {{n}}"}},), 8) for n in range(40)])
"""


def test_killed_and_resumed_nothing_that_was_answered_is_sent_again(tmp_path):
    cache = tmp_path / "replies.sqlite"

    def script(body, before):
        return Answer(chat(f"re {said(body)}"), after=0.05)

    with serving(script) as server:
        code = KILLED.format(paths=["src"], model=MODEL, url=server.url, cache=str(cache))
        child = subprocess.Popen([sys.executable, "-c", code])
        while len(server.asked) < 8 and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with sqlite3.connect(cache) as connection:
            kept = {json.loads(reply)["text"] for (reply,) in connection.execute("SELECT reply FROM replies")}
        assert 0 < len(kept) < 40
        asked_before = len(server.asked)
        own = EndpointSettings(MODEL, server.url, cache=str(cache), concurrency=1)
        replies = Endpoint(own).ask(asking(*(f"prompt {number}" for number in range(40))))
        assert [reply.text for reply in replies] == [f"re prompt {number}" for number in range(40)]
        assert len(server.asked) - asked_before == 40 - len(kept)
        assert all(count == 1 for text, count in server.times().items() if f"re {text}" in kept)


def keep_many(path: str, name: str) -> None:
    cache = RequestCache(Path(path))
    for number in range(50):
        cache.keep(key_of({"of": name, "number": number}), {"text": f"{name} {number}"})


def test_a_cache_takes_from_several_processes_at_once(tmp_path):
    path = tmp_path / "folder" / "replies.sqlite"
    context = get_context("spawn")
    children = [context.Process(target=keep_many, args=(str(path), name)) for name in ("one", "two", "three")]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    keys = {key_of({"of": name, "number": n}): f"{name} {n}" for name in ("one", "two", "three") for n in range(50)}
    found = RequestCache(path).find([*keys, key_of({"of": "nobody"})])
    assert {key: reply["text"] for key, reply in found.items()} == keys


def test_a_cache_is_where_the_user_keeps_such_files_and_a_file_of_another_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "safety-subspaces" / "replies.sqlite"
    other = tmp_path / "notes.txt"
    other.write_text("no database " * 100)
    with pytest.raises(InputError, match="cannot be used"):
        RequestCache(other)
    assert other.read_text().startswith("no database")


def test_a_text_is_asked_by_the_other_route_and_a_short_reply_says_so(tmp_path):
    def script(body, _):
        return Answer({"choices": [{"text": f"{body['prompt']} on", "finish_reason": "length"}]})

    with serving(script) as server:
        (reply,) = Endpoint(settings(server.url, tmp_path)).ask([Request("Once", 4)])
        assert reply == Reply("Once on", "cut short at the longest reply")
        assert server.asked[0]["path"] == "/v1/completions"
    assert os.environ.get("OPENAI_API_KEY") is None or server.asked[0]["authorization"]


@pytest.mark.parametrize("reply", ["[" * 100_000, "3", "{}", '{"text": 3}', "", b"\xff", None, 7])
def test_what_was_not_written_here_is_asked_again(tmp_path, reply):
    cache = RequestCache(tmp_path / "replies.sqlite")
    cache.keep("good", {"text": "a", "finish": "stop"})
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("CREATE TABLE other (key TEXT PRIMARY KEY, reply)")
        connection.execute("INSERT INTO other SELECT * FROM replies")
        connection.execute("INSERT INTO other VALUES ('bad', ?)", (reply,))
        connection.execute("DROP TABLE replies")
        connection.execute("ALTER TABLE other RENAME TO replies")
    assert set(RequestCache(cache.path).find(["good", "bad"])) == {"good"}
