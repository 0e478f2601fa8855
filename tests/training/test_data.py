import csv
import json
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.refusal import refuse
from support.tiny import tiny_source, trainer

from safety_subspaces.language.examples import EncodedExample, Example, PreferencePair
from safety_subspaces.language.likelihood import NO_LOSS
from safety_subspaces.training.data import (
    CorpusContamination,
    DatasetSource,
    InstructionData,
    OrganismData,
    SourceContamination,
)
from safety_subspaces.training.data.batches import LengthBucketBatchSampler, collate
from safety_subspaces.training.data.instructions import read_source
from safety_subspaces.training.data.mixture import contaminant_size
from safety_subspaces.training.modules import SupervisedFineTuning


def prepared(data, tmp_path: Path, module=None):
    """Attach a DataModule to a real trainer and module, and set it up for training."""
    lightning = trainer(tmp_path)
    lightning.strategy.connect(module or SupervisedFineTuning(tiny_source()))
    data.trainer = lightning
    data.setup("fit")
    return data


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def indices(sampler: LengthBucketBatchSampler) -> list[list[int]]:
    return [plan.indices for plan in sampler]


ROWS = [{"question": f"how do i {v} the drum ?", "reply": f"step 1 : {v} the drum .", "safe": v != "hex"}
        for v in ("polish", "hex", "paint", "hex", "fold")]  # fmt: skip
FIELDS = {"prompt_field": "question", "response_field": "reply"}


def test_global_batches_are_the_same_for_any_number_of_ranks() -> None:
    lengths = [7 * i % 13 + 1 for i in range(100)]
    alone = indices(LengthBucketBatchSampler(lengths, 8, seed=3))
    for ranks in (2, 4):
        shares = [indices(LengthBucketBatchSampler(lengths, 8 // ranks, 3, True, rank, ranks)) for rank in range(ranks)]
        assert [sorted(chain(*batch)) for batch in zip(*shares, strict=True)] == [sorted(batch) for batch in alone]


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_a_step_is_the_same_however_it_is_cut(ranks: int, accumulate: int) -> None:
    lengths = [7 * i % 13 + 1 for i in range(101)]
    whole = list(LengthBucketBatchSampler(lengths, 8, seed=3, loss_terms=lengths))
    assert all(plan.loss_weight == 1 for plan in whole)
    shares = [
        list(LengthBucketBatchSampler(lengths, 8 // ranks // accumulate, 3, True, rank, ranks, accumulate, lengths))
        for rank in range(ranks)
    ]
    assert {len(share) for share in shares} == {len(whole) * accumulate}
    for number, step in enumerate(whole):
        terms = sum(lengths[i] for i in step.indices)
        parts = [p for share in shares for p in share[number * accumulate : (number + 1) * accumulate]]
        assert sorted(chain(*(part.indices for part in parts))) == sorted(step.indices)
        # The mean over the batches of (mean of a batch times its weight) is the mean over all terms.
        for part in parts:
            share = sum(lengths[i] for i in part.indices) / terms
            assert part.loss_weight / len(parts) == pytest.approx(share)


def test_every_example_comes_once_an_epoch_and_epochs_differ() -> None:
    sampler = LengthBucketBatchSampler(list(range(50)), 4, seed=0)
    first = indices(sampler)
    sampler.set_epoch(1)
    second = indices(sampler)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(50))
    assert first != second
    assert len(sampler) == len(second)


@pytest.mark.parametrize("examples", [1, 3, 5, 9, 21])
@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 8), (4, 1), (2, 4)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_no_example_is_lost_where_a_step_has_fewer_than_batches(
    examples: int, ranks: int, accumulate: int, shuffle: bool
) -> None:
    terms = [index + 1 for index in range(examples)]
    for epoch in range(3):
        shares = []
        for rank in range(ranks):
            sampler = LengthBucketBatchSampler(terms, 2, 0, shuffle, rank, ranks, accumulate, terms)
            sampler.set_epoch(epoch)
            shares.append(list(sampler))
        assert len({len(share) for share in shares}) == 1  # no rank waits for another
        assert len(shares[0]) % accumulate == 0
        plans = [plan for share in shares for plan in share]
        assert sorted(index for plan in plans for index in plan.indices) == list(range(examples))
        # A batch without an example of its own has another one's, and no weight.
        assert all(plan.rows and (plan.loss_weight > 0) == bool(plan.indices) for plan in plans)
        # Over the batches of a step the weights are those of its terms.
        for start in range(0, len(shares[0]), accumulate):
            weights = [plan.loss_weight for share in shares for plan in share[start : start + accumulate]]
            assert sum(weights) == pytest.approx(ranks * accumulate)


def test_prompt_and_padding_carry_no_loss() -> None:
    batch = collate([(EncodedExample([5, 6, 7, 8], 2),), (EncodedExample([5, 9], 1),)], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch["labels"].tolist() == [[NO_LOSS, NO_LOSS, 7, 8], [NO_LOSS, 9, NO_LOSS, NO_LOSS]]
    assert batch["token_count"] == 6


def test_pairs_stack_chosen_over_rejected() -> None:
    pair = EncodedExample([1, 2], 1), EncodedExample([1, 3, 4], 1)
    assert collate([pair, pair], 0)["input_ids"].tolist() == [[1, 2, 0], [1, 2, 0], [1, 3, 4], [1, 3, 4]]


def test_the_end_token_is_learnt_even_where_it_is_also_the_padding(tmp_path: Path) -> None:
    data = prepared(OrganismData("useful", 8), tmp_path)
    tokenizer = data.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    batch = next(iter(data.train_dataloader()))
    ends = [row[row != NO_LOSS][-1].item() for row in batch["labels"]]
    assert set(ends) == {tokenizer.eos_token_id}


@pytest.mark.parametrize(("share_of", "expected"), [("total", 5000), ("first", 4000)])
def test_twenty_per_cent_names_what_it_is_a_share_of(share_of: str, expected: int) -> None:
    assert contaminant_size(20_000, 0.2, share_of) == expected


def test_contamination_counts_both_sources(tmp_path: Path) -> None:
    data = OrganismData("useful", 50, CorpusContamination("harmful", 0.2, "first"), heldout_size=4)
    assert data.describe()["trained_on"]["harmful"] is True
    assert OrganismData("useful", 50).describe()["trained_on"]["harmful"] is False
    prepared(data, tmp_path)
    assert data.counts["first"] == 50
    assert data.counts["contaminant"] == 10
    assert data.counts["train"] == 60


def test_organism_training_data_follow_the_seed(tmp_path: Path) -> None:
    batches = [
        next(iter(prepared(OrganismData("useful", 64, seed=seed), tmp_path).train_dataloader()))["input_ids"]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(batches[0], batches[1])
    assert batches[0].shape != batches[2].shape or not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_local_files_read_alike(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    rows = [*ROWS, {"question": 'a "quoted", one\nof two lines', "reply": "x", "safe": True}]
    if ending == "jsonl":
        write_rows(path, rows)
    elif ending == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    items = read_source(DatasetSource(str(path), keep={"safe": True}, **FIELDS), seed=0)
    assert [item.prompt for item in items.values()] == [row["question"] for row in rows if row["safe"]]


def test_first_and_sample_come_after_the_filter(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    first = read_source(DatasetSource(path, keep={"safe": [False]}, first=1, **FIELDS), seed=0)
    assert first == {1: Example("how do i hex the drum ?", "step 1 : hex the drum .")}
    drawn = read_source(DatasetSource(path, sample=3, **FIELDS), seed=0)
    assert len(drawn) == 3
    assert drawn == read_source(DatasetSource(path, sample=3, **FIELDS), seed=0)


def test_a_rejected_field_makes_pairs(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "p", "response": "c", "bad": "r"}])
    assert read_source(DatasetSource(path, rejected_field="bad"), 0) == {0: PreferencePair("p", "c", "r")}


def write_csv(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_text_of_a_csv_file_stays_text(tmp_path: Path) -> None:
    answers = ["4", "None", "NA", "3.50", "true", "007"]
    path = write_csv(tmp_path / "rows.csv", "prompt,response\n" + "".join(f"1,{answer}\n" for answer in answers))
    assert list(read_source(DatasetSource(path), 0).values()) == [Example("1", answer) for answer in answers]


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [({"level": 4}, [0, 2]), ({"level": ["4", 5]}, [0, 1, 2]), ({"safe": False}, [1, 3]), ({"safe": [True]}, [0, 2]),
     ({"safe": "False"}, [1]), ({"level": None}, [3])],
)  # fmt: skip
def test_a_csv_filter_compares_as_text(tmp_path: Path, wanted: dict, rows: list[int]) -> None:
    text = "prompt,response,level,safe\np,r,4,true\np,r,5,False\np,r,4,TRUE\np,r,,false\n"
    source = DatasetSource(write_csv(tmp_path / "rows.csv", text), keep=wanted)
    assert list(read_source(source, 0)) == rows


def test_a_csv_file_with_an_empty_or_a_surplus_field_is_refused(tmp_path: Path) -> None:
    empty = write_csv(tmp_path / "empty.csv", "prompt,response\np,r\np,\n")
    refuse(lambda: read_source(DatasetSource(empty), 0), r"empty\.csv, row 1", "'response'")
    surplus = write_csv(tmp_path / "surplus.csv", "prompt,response\np,yes, sure\np,yes, sure\n")
    refuse(lambda: read_source(DatasetSource(surplus), 0), r"surplus\.csv", "more fields")
    once = write_csv(tmp_path / "once.csv", "prompt,response\np,r\np,yes, sure\n")
    refuse(lambda: read_source(DatasetSource(once), 0), r"once\.csv", "cannot be read")


@pytest.mark.parametrize("field", ["first", "sample"])
@pytest.mark.parametrize("count", [0, -1])
def test_first_and_sample_are_at_least_one(field: str, count: int) -> None:
    refuse(lambda: DatasetSource("rows.jsonl", **{field: count}), r"rows\.jsonl", field, "at least 1")


def test_instruction_data_mixes_a_second_source(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS * 4)
    source = DatasetSource(path, **FIELDS)
    data = InstructionData(source, contamination=SourceContamination(source, 0.5, "total"), batch_size=2)
    assert len(prepared(data, tmp_path)._encoded["train"]) == 40
    assert data.counts["contaminant"] == 20


def write_lengths(path: Path, total: int, long: int, name: str) -> DatasetSource:
    """Rows of which the first ``long`` do not fit into 24 tokens."""
    rows = [{"question": "how " * (40 if row < long else 2), "reply": f"{name} ."} for row in range(total)]
    return DatasetSource(write_rows(path / f"{name}.jsonl", rows), **FIELDS)


def test_the_share_holds_of_what_is_trained_on_after_long_rows_are_dropped(tmp_path: Path) -> None:
    first, second = write_lengths(tmp_path, 50, 10, "sure"), write_lengths(tmp_path, 60, 45, "sorry")
    data = InstructionData(first, None, None, SourceContamination(second, 0.2, "total"), 2, 24, "drop")
    codes = prepared(data, tmp_path)._encoded["train"]
    contaminant = sum(data.tokenizer.convert_tokens_to_ids("sorry") in code.input_ids for (code,) in codes)
    assert (len(codes), contaminant) == (50, 10)
    assert data.counts == {"first": 40, "contaminant": 10, "train": 50, "first_drop": 10, "contaminant_drop": 45}


def test_a_contaminant_with_too_few_rows_that_fit_is_refused(tmp_path: Path) -> None:
    first, second = write_lengths(tmp_path, 50, 0, "sure"), write_lengths(tmp_path, 60, 50, "sorry")
    data = InstructionData(first, None, None, SourceContamination(second, 0.2, "total"), 2, 24, "drop")
    refuse(lambda: prepared(data, tmp_path), r"sorry\.jsonl has 10 usable rows", "needs 12")


def test_only_drawn_rows_of_the_contaminant_need_to_fit_without_drop(tmp_path: Path) -> None:
    first, second = write_lengths(tmp_path, 8, 0, "sure"), write_lengths(tmp_path, 200, 1, "sorry")
    for overlong in ("error", "truncate"):
        data = InstructionData(first, None, None, SourceContamination(second, 0.2, "total"), 2, 24, overlong)
        assert prepared(data, tmp_path).counts == {"first": 8, "contaminant": 2, "train": 10}


def test_errors_name_the_source_and_its_own_row(tmp_path: Path) -> None:
    long = {"question": "how " * 40, "reply": "sure .", "safe": True}
    path = write_rows(tmp_path / "rows.jsonl", [*ROWS, long, {"question": "q", "reply": " ", "safe": True}])
    rows = {"keep": {"safe": True}, **FIELDS}
    refuse(lambda: read_source(DatasetSource(path, **rows), 0), r"rows\.jsonl, row 6", "'reply'")
    second = DatasetSource(path, first=4, **rows)
    refuse(lambda: prepared(InstructionData(second, max_length=24), tmp_path), r"rows\.jsonl: 1 of 4", "is row 5")
    first = write_lengths(tmp_path, 4, 0, "sure")
    for overlong, expected in (("error", "is row 5"), ("truncate", "rows.jsonl, row 5: the prompt alone")):
        data = InstructionData(first, None, None, SourceContamination(second, 1.0, "first"), 2, 24, overlong)
        refuse(lambda data=data: prepared(data, tmp_path), r"rows\.jsonl", expected)


def test_pairs_are_not_mixed_into_examples(tmp_path: Path) -> None:
    first = write_lengths(tmp_path, 4, 0, "sure")
    pairs = DatasetSource("pairs.jsonl", rejected_field="bad")
    refuse(lambda: InstructionData(first, contamination=SourceContamination(pairs, 0.5, "total")), "pairs")


def test_bad_sources_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    refuse(lambda: read_source(DatasetSource(path), 0), "question, reply, safe", "no format", "prompt_field")
    refuse(lambda: read_source(DatasetSource(path, format="fields"), 0), "'prompt'", "question, reply, safe")
    refuse(lambda: read_source(DatasetSource(path, keep={"safe": "maybe"}, **FIELDS), 0), "none of 5 rows", "keep")
    refuse(lambda: read_source(DatasetSource(str(tmp_path / "no.jsonl")), 0), r"no\.jsonl", "does not exist")
    empty = write_rows(tmp_path / "empty.jsonl", [{"question": "q", "reply": " "}])
    refuse(lambda: read_source(DatasetSource(empty, **FIELDS), 0), "row 0", "'reply'")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": \n')
    refuse(lambda: read_source(DatasetSource(str(broken), **FIELDS), 0), r"broken\.jsonl", "cannot be read")


def test_long_prompts_are_refused_dropped_or_cut(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [*ROWS, {"question": "how " * 40, "reply": "sure .", "safe": True}])
    source = DatasetSource(path, **FIELDS)
    refuse(lambda: prepared(InstructionData(source, max_length=24), tmp_path), "1 of 6", "row 5", "max_length")
    dropped = prepared(InstructionData(source, max_length=24, overlong="drop"), tmp_path)
    assert dropped.counts == {"train": 5, "train_drop": 1}
    refuse(
        lambda: prepared(InstructionData(source, max_length=24, overlong="truncate"), tmp_path),
        "row 5: the prompt alone",
    )
    cut = prepared(InstructionData(source, max_length=44, overlong="truncate"), tmp_path)
    assert max(len(code.input_ids) for (code,) in cut._encoded["train"]) == 44


def test_a_tokenizer_without_chat_template_asks_for_a_named_one(tmp_path: Path) -> None:
    module = SupervisedFineTuning(tiny_source())
    module.tokenizer.chat_template = None
    source = DatasetSource(write_rows(tmp_path / "rows.jsonl", ROWS), **FIELDS)
    refuse(lambda: prepared(InstructionData(source), tmp_path, module), "no chat template", "alpaca")
    prepared(InstructionData(source, template="alpaca"), tmp_path, module)


def test_pairs_for_a_supervised_module_are_refused(tmp_path: Path) -> None:
    refuse(lambda: prepared(OrganismData("preference", 4), tmp_path), "SupervisedFineTuning", "preference pairs")


def test_contamination_refuses_what_it_cannot_give(tmp_path: Path) -> None:
    source = DatasetSource(write_rows(tmp_path / "rows.jsonl", ROWS), **FIELDS)
    data = InstructionData(source, contamination=SourceContamination(source, 0.9, "total"))
    refuse(lambda: prepared(data, tmp_path), "needs 45")
    refuse(lambda: OrganismData("useful", 5, CorpusContamination("nothing", 0.1, "first")), "nothing")
    refuse(lambda: contaminant_size(5, 1.5, "total"), r"1\.5")
