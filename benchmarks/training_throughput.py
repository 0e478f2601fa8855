"""Training throughput beside Hugging Face's Trainer, in one run: same model, data, batches, optimiser and thread.

Prints tokens a second of both, and their ratio, for each round. Rounds alternate, so that a busy machine slows both.

    python benchmarks/training_throughput.py --steps 300 --rounds 3
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from callbacks import TokenThroughput
from safety_subspaces.data import OrganismData
from safety_subspaces.data.batches import LengthBucketBatchSampler, collate_examples
from safety_subspaces.models import SupervisedFineTuning
from safety_subspaces.organism import OrganismModel

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


def data_module(steps):
    return OrganismData("base", BATCH * steps, heldout_size=0, batch_size=BATCH)


def with_lightning(steps, folder):
    module = SupervisedFineTuning(
        OrganismModel(), optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)
    )
    clock, data = Clock(), data_module(steps)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, gradient_clip_val=CLIP, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
        num_sanity_val_steps=0, callbacks=[clock, TokenThroughput()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    tokens = sum(len(code.input_ids) for code in data._encoded["train"])
    return tokens / clock.seconds, float(trainer.callback_metrics["train/loss"]), data._encoded["train"]


def with_hugging_face(encoded, steps, folder):
    model, clock = OrganismModel().load_model(), HuggingFaceClock()
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=0.0, max_grad_norm=CLIP, lr_scheduler_type="cosine",
        warmup_steps=int(WARMUP * steps), logging_strategy="no", save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, optim="adamw_torch", remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SameBatches(model=model, args=arguments, train_dataset=encoded, callbacks=[clock])
    sampler = LengthBucketBatchSampler([len(code.input_ids) for code in encoded], BATCH, seed=0)

    def collate(rows):
        batch = collate_examples(rows, pad_token_id=0)
        return {"input_ids": batch["input_ids"], "labels": batch["labels"]}

    trainer.loader = DataLoader(encoded, batch_sampler=sampler, collate_fn=collate)
    result = trainer.train()
    return sum(len(code.input_ids) for code in encoded) / clock.seconds, result.training_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    ratios = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours, last_loss, encoded = with_lightning(options.steps, folder)
            theirs, mean_loss = with_hugging_face(encoded, options.steps, folder)
        ratios.append(ours / theirs)
        print(
            f"round {number + 1}: safety_subspaces {ours:,.0f} tokens/s (last loss {last_loss:.3f}), "
            f"transformers.Trainer {theirs:,.0f} tokens/s (mean loss {mean_loss:.3f}), ratio {ratios[-1]:.3f}"
        )
    print(f"median ratio {statistics.median(ratios):.3f} over {options.rounds} rounds of {options.steps} steps")


if __name__ == "__main__":
    main()
