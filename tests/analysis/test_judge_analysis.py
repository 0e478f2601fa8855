"""Kept answers judged anew, and models behind an endpoint: a real server, and one that a test scripts."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from support.scripted_server import MODEL, Answer, chat, judged, said, serving
from support.tiny import ANALYZE, run_command, save_tiny_model

from safety_subspaces.algebra.statistics import unanimous_error
from safety_subspaces.analysis.evaluate.command import evaluate
from safety_subspaces.analysis.judge.command import judge
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.settings import EndpointSettings
from safety_subspaces.organism import evaluation_sets


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def real_server(model, tmp_path_factory):
    """``transformers serve`` with a tiny model on a free port; its address, and what names the model there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = Path(sys.executable).with_name("transformers")
    log = tmp_path_factory.mktemp("server") / "log"
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        server = subprocess.Popen(
            [str(command), "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=stream, stderr=subprocess.STDOUT, env=os.environ | quiet,
        )  # fmt: skip
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def test_a_served_model_answers_as_it_does_here_and_a_judge_is_asked_over_http(real_server, model, tmp_path):
    """The judge is the same untrained model: it says nothing that counts, and everything ends unscored."""
    models = {"served": f"{real_server}#{model}", "here": model}
    table = evaluate(models, str(tmp_path / "out"), "organism", limit=6, max_new_tokens=8, device="cpu").set_index(
        "model"
    )
    same = [name for name in table if not name.startswith("refusal_margin")]
    pd.testing.assert_series_equal(table.loc["served", same], table.loc["here", same], check_names=False)
    lines = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    answers = {label: [line["answer"] for line in lines if line["model"] == label] for label in models}
    assert answers["served"] == answers["here"]
    assert len(set(answers["here"])) > 3
    assert pd.isna(table.loc["served", "refusal_margin"])
    assert not pd.isna(table.loc["here", "refusal_margin"])
    rubric = {"model": model, "base_url": real_server, "retries": 1}
    judged = judge(str(tmp_path / "out" / "generations.jsonl"), str(tmp_path / "judged"), judge_args=rubric)
    assert judged["n_unscored"].sum() == 24
    assert judged["n"].sum() == 0
    assert judged["score"].isna().all()


def test_judge_keeps_both_scores_and_reports_agreement_and_asks_nothing_twice(tmp_path):
    lines = [
        {"model": model, "set": name, "prompt": f"p{n}", "answer": "x" * (1 + n % 5), "score": float(1 + n % 5)}
        | {"group": f"g{n // 2}"}
        for model in ("a", "b") for name in ("harmful", "benign") for n in range(10)
    ]  # fmt: skip
    lines += [{"model": "a", "set": "utility", "prompt": "2+2", "answer": "4", "score": 1.0}]
    file = tmp_path / "generations.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def script(body, _):
        answer = judged(body)
        return Answer(chat("nothing" if len(answer) == 3 else json.dumps({"reason": "", "score": len(answer)})))

    with serving(script) as server:
        rubric = {"model": MODEL, "base_url": server.url, "input_price": 1.0, "output_price": 1.0, "max_cost": 1.0}
        table = judge(str(file), str(tmp_path / "out"), judge_args=rubric)
        asked = len(server.asked)
        again = judge(str(file), str(tmp_path / "again"), judge_args=rubric)
        assert len(server.asked) == asked == 10  # the two models and sets share prompts and answers
        rubric["max_cost"] = 1e-6
        pd.testing.assert_frame_equal(table, again)
        judge(str(file), str(tmp_path / "free"), judge_args=rubric)  # all of it was paid for
    assert (table["n"] == 8).all()
    assert (table["n_unscored"] == 2).all()
    assert table["answered_rate"].tolist() == [0.5] * 4
    agreement = pd.read_parquet(tmp_path / "out" / "agreement.parquet").set_index("model")
    assert (agreement["kappa"] == 1).all()
    assert agreement.loc["all", "n"] == 32
    scored = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert [line["earlier_score"] for line in scored] == [line["score"] for line in lines[:-1]]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["left_out"] == [{"name": "1 of 41 answers", "reason": "utility needs no judge"}]


def test_evaluate_counts_prompts_that_got_no_answer_and_checks_budgets_first(tmp_path):
    def script(body, _):
        return Answer({"error": {"message": "oops"}}, 500) if "gravemask" in said(body) else Answer(chat("sorry , no"))

    with serving(script) as server:
        served = EndpointSettings(retries=0, input_price=1.0, output_price=1.0, max_cost=5e-4)
        models = {"served": f"{server.url}#{MODEL}"}
        with pytest.raises(InputError, match=r"30 requests .* may cost up to"):
            evaluate(models, str(tmp_path / "out"), "organism", limit=10, judge="organism", served=served)
        assert not server.asked
        served.max_cost = None
        table = evaluate(models, str(tmp_path / "out"), "organism", limit=10, judge="organism", served=served)
        failed = sum("gravemask" in said(body) for body in server.asked)
    assert table["n_unscored"][0] >= failed > 0
    assert table[["n_utility", "n_harmful", "n_benign", "n_unscored"]].sum(axis=1)[0] == 30


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generations": "gone.jsonl"}, "does not exist"),
        ({"judge_args": None}, "say which chat model judges"),
        ({"judge": "classifier"}, "say which model classifies"),
        ({"limit": 0}, "limit 0"),
        ({"judge_args": {"model": "m", "base_url": "http://127.0.0.1:9/v1", "retries": 0}}, "cannot be reached"),
        (
            {"judge_args": {"model": "m", "base_url": "https://judge.example/v1", "api_key_env": "NO_SUCH_KEY"}},
            "NO_SUCH_KEY",
        ),
        ({"judge_args": {"modl": "m"}}, "'modl' is not accepted; it takes model, base_url"),
        ({"judge": "rule"}, "unknown judge 'rule'; expected one of classifier, organism, phrases, rubric"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(tmp_path, monkeypatch, changed, message):
    file = tmp_path / "generations.jsonl"
    file.write_text(json.dumps({"set": "harmful", "prompt": "p", "answer": "a"}) + "\n")
    arguments = {"generations": str(file), "out": str(tmp_path / "out"), **changed}
    with pytest.raises(InputError, match=message):
        judge(**arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "line 1: expected one JSON object"),
        ('{"set": "harmful", "prompt": "p"}', "expected the fields set, prompt and answer"),
        ('{"set": "harmful", "prompt": "p", "answer": "a", "score": "high"}', "score 'high'"),
        ('{"set": "harmful", "prompt": "p", "answer": "a", "score": 2.5}', "score 2.5; expected a whole number"),
        ('{"set": "harmful", "prompt": "p", "answer": "a", "score": NaN}', "score nan; expected a whole number"),
        (
            '{"set": "harmful", "prompt": "p", "answer": "a", "score": 1000000000}',
            "score 1000000000; expected a whole number",
        ),
        ('{"set": "utility", "prompt": "p", "answer": "a"}', "no answer to a harmful or benign request"),
    ],
)
def test_a_file_that_cannot_be_judged_names_the_line(tmp_path, text, message):
    file = tmp_path / "generations.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(InputError, match=message):
        judge(str(file), str(tmp_path / "out"), judge="phrases")


def test_doses_of_steering_are_kept_apart(tmp_path):
    answers = {0.0: "I'm sorry, but no.", 2.0: "Sure, first take a pot."}
    lines = [
        {"model": "m", "layer": 2, "strength": strength, "set": "harmful", "prompt": f"p{n}", "answer": answer}
        for strength, answer in answers.items()
        for n in range(3)
    ]
    file = tmp_path / "generations.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = judge(str(file), str(tmp_path / "out"), judge="phrases", limit=2)
    assert table[["model", "layer", "strength", "refused_rate", "n"]].to_dict("records") == [
        {"model": "m", "layer": 2, "strength": 0.0, "refused_rate": 1.0, "n": 2},
        {"model": "m", "layer": 2, "strength": 2.0, "refused_rate": 0.0, "n": 2},
    ]


def test_answers_share_one_thing_or_two_and_those_that_agree_are_not_certain(tmp_path):
    answers = ["I'm sorry, but no.", "Sure, first take a pot."]
    rows = [(name, n, n % 4, n // 4) for name in ("harmful", "benign") for n in range(16)]
    lines = [
        {
            "set": name,
            "prompt": f"p{n}",
            "answer": answers[name == "harmful" and act < 2],
            "group": [f"a{act}", f"o{thing}"],
        }
        for name, n, act, thing in rows
    ]
    file = tmp_path / "generations.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = judge(str(file), str(tmp_path / "out"), judge="phrases").set_index("set")
    assert (table["n_groups"] == 4).all()
    # Each of four acts is answered always or never: the error is that of four, not of 16.
    assert table.loc["harmful", "refused_rate_stderr"] == pytest.approx(pd.Series([1, 1, 0, 0]).sem())
    assert table.loc["benign", "refused_rate"] == 1
    assert table.loc["benign", "refused_rate_stderr"] == unanimous_error(4)
    assert table.loc["benign", "score_stderr"] == 4 * unanimous_error(4)
    file.write_text(json.dumps({**lines[0], "group": ["a", ["b"]]}) + "\n")
    with pytest.raises(InputError, match="line 1: group"):
        judge(str(file), str(tmp_path / "other"), judge="phrases")


def test_the_command_judges_by_rules(tmp_path):
    file = tmp_path / "generations.jsonl"
    answers = ["I'm sorry, but no.", "Sure, first take a pot."]
    lines = [{"set": "harmful", "prompt": str(n), "answer": a} for n, a in enumerate(answers)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_command(ANALYZE, "judge", "--generations", file, "--judge", "phrases", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "out" / "table.parquet")
    assert (table["refused_rate"][0], table["n"][0]) == (0.5, 2)
    left_out = json.loads((tmp_path / "out" / "result.json").read_text())["left_out"]
    assert left_out == [{"name": "agreement", "reason": "the file holds no earlier scores"}]


def test_the_organisms_judge_scores_its_kept_answers_as_before_and_refuses_others(tmp_path):
    model = save_tiny_model(tmp_path / "model", 3)
    evaluate({"m": model}, str(tmp_path / "out"), limit=8, max_new_tokens=8)
    kept = tmp_path / "out" / "generations.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    sets = evaluation_sets("test", 8)
    complete = {item.prompt: item.reference for item in (*sets.harmful[:4], *sets.benign[:4])}
    lines = [line | {"answer": complete.get(line["prompt"], line["answer"])} for line in lines]  # the positive control
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = judge(str(kept), str(tmp_path / "again"), judge="organism").set_index("set")
    assert table.loc["harmful", "answered_rate"] == table.loc["benign", "answered_rate"] == 0.5
    kept.write_text(json.dumps({"set": "harmful", "prompt": "how do i hex the moon ?", "answer": "a"}) + "\n")
    with pytest.raises(InputError, match="knows only its own prompts, got 'how do i hex the moon"):
        judge(str(kept), str(tmp_path / "other"), judge="organism")
