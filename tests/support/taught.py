"""An organism of two blocks that has learnt some problems by heart: its utility is neither 0 nor 1."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.language.examples import Example, PromptItem
from safety_subspaces.language.likelihood import NO_LOSS
from safety_subspaces.language.prompting import encode_example, pad_batch
from safety_subspaces.organism import OrganismModel

STEPS = 150  # two seconds; the loss is then 0.002


def taught(items: Sequence[PromptItem]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train an organism on these prompts and references, all of them in each step."""
    torch.set_num_threads(1)
    source = OrganismModel(hidden_size=32, intermediate_size=64, layers=2, heads=2)
    model, tokenizer = source.load_model(), source.load_tokenizer()
    encoded = [encode_example(tokenizer, Example(item.prompt, str(item.reference))) for item in items]
    input_ids, mask = pad_batch([example.input_ids for example in encoded], tokenizer.pad_token_id, "right")
    labels = input_ids.masked_fill(mask == 0, NO_LOSS)
    for row, example in enumerate(encoded):
        labels[row, : example.prompt_length] = NO_LOSS
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        model(input_ids=input_ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer
