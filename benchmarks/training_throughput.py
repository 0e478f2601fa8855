"""Training throughput beside Hugging Face's Trainer, in one run: same model, data, batches, optimiser and thread.

Hugging Face's Trainer is timed twice: as it is used (random order, its own collator, which passes an attention mask)
and on the very tensors that our DataModule makes. Each run has a process of its own; they take turns, and the order
turns with the rounds, so that a busy machine slows all of them. Prints real tokens (no padding) a second, and ratios.

    python benchmarks/training_throughput.py --steps 300 --rounds 3
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from callbacks import TokenThroughput
from safety_subspaces.language.likelihood import NO_LOSS
from safety_subspaces.language.prompting import encode_example
from safety_subspaces.organism import OrganismModel, build_tokenizer, corpus
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.data.batches import LengthBucketBatchSampler, PlannedItems, collate_planned
from safety_subspaces.training.modules import SupervisedFineTuning

BATCH = 16
LEARNING_RATE, BETAS, CLIP, WARMUP = 3e-3, (0.9, 0.98), 1.0, 0.03


class Clock(L.Callback):
    """Times the training loop alone: neither imports nor the making of data."""

    def on_train_start(self, *_):
        self.started = time.perf_counter()

    def on_train_end(self, *_):
        self.seconds = time.perf_counter() - self.started


class HuggingFaceClock(TrainerCallback):
    """The same for Hugging Face's Trainer."""

    def on_train_begin(self, *_, **__):
        self.started = time.perf_counter()

    def on_train_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.started


class SameBatches(Trainer):
    """Hugging Face's Trainer over the batches that the DataModule makes."""

    def get_train_dataloader(self):
        return self.loader


def with_lightning(steps, folder):
    module = SupervisedFineTuning(
        OrganismModel(), optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    )
    clock, data = Clock(), OrganismData("useful", BATCH * steps, heldout_size=0, batch_size=BATCH)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, gradient_clip_val=CLIP, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
        num_sanity_val_steps=0, callbacks=[clock, TokenThroughput()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    tokens = sum(len(code.input_ids) for (code,) in data._encoded["train"])
    return tokens / clock.seconds


def with_hugging_face(steps, folder, bare):
    model, clock = OrganismModel().load_model(), HuggingFaceClock()
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    encoded = [encode_example(tokenizer, example) for example in corpus("useful", BATCH * steps, seed=0)]
    rows = [{"input_ids": code.input_ids, "labels": labels_of(code)} for code in encoded]
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=0.0, max_grad_norm=CLIP, lr_scheduler_type="cosine",
        warmup_steps=int(WARMUP * steps), logging_strategy="no", save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, log_level="error", optim="adamw_torch", dataloader_pin_memory=False,
        remove_unused_columns=False,
    )  # fmt: skip
    settings = {"model": model, "args": arguments, "callbacks": [clock]}
    if bare:
        trainer = SameBatches(**settings, train_dataset=encoded)
        sampler = LengthBucketBatchSampler([len(code.input_ids) for code in encoded], BATCH, seed=0)
        trainer.loader = DataLoader(
            PlannedItems([(code,) for code in encoded]), batch_sampler=sampler, collate_fn=collate_bare
        )
    else:
        trainer = Trainer(**settings, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer))
    trainer.train()
    return sum(len(code.input_ids) for code in encoded) / clock.seconds


def collate_bare(planned):
    batch = collate_planned(planned, pad_token_id=0)
    return {"input_ids": batch["input_ids"], "labels": batch["labels"]}


def labels_of(code):
    return [NO_LOSS] * code.prompt_length + code.input_ids[code.prompt_length :]


RUNS = {
    "safety_subspaces": with_lightning,
    "transformers.Trainer": partial(with_hugging_face, bare=False),
    "transformers.Trainer on our batches": partial(with_hugging_face, bare=True),
}


def measure(name, steps):
    """Return real tokens a second of one run, in this process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        return RUNS[name](steps, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rates = {name: [] for name in RUNS}
    for number in range(options.rounds):
        turn = number % len(RUNS)
        for name in [*list(RUNS)[turn:], *list(RUNS)[:turn]]:
            # A process each: what one run leaves in memory must not slow the next.
            with get_context("spawn").Pool(1) as pool:
                rates[name].append(pool.apply(measure, (name, options.steps)))
        print(f"round {number + 1}: " + ", ".join(f"{name} {rates[name][-1]:,.0f}" for name in RUNS) + " tokens/s")
    ours = rates["safety_subspaces"]
    for name in list(RUNS)[1:]:
        ratios = [mine / theirs for mine, theirs in zip(ours, rates[name], strict=True)]
        print(
            f"safety_subspaces / {name}: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to "
            f"{max(ratios):.3f} over {options.rounds} rounds of {options.steps} steps"
        )


if __name__ == "__main__":
    main()
