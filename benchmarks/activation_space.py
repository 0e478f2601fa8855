"""Times the activation overlap beside the ordinary way, and reading states beside a plain loop; prints ratios.

    python benchmarks/activation_space.py                  # 5,000 x 2 prompts at hidden 1024; about five minutes
    python benchmarks/activation_space.py --hidden 256 --prompts 1000

The ordinary way keeps every vector, and for each energy share takes a float32 SVD of each set and the product of two
bases. The library sums moments in float64 as batches pass; one eigendecomposition of each set serves all shares.
Both start from the same states, in batches of 64, so that the forward pass is in neither; one layer is timed. One share
is timed of the ordinary way, and multiplied; the fastest of eight counts. Overlaps must agree to 1e-4.

Reading: every state of every block at the last token, of prompts of 8 to 96 tokens, against the loop that one writes by
hand: prompts in their order, padded on the right, `output_hidden_states=True`, the last real token taken of each.
Variants take turns; the fastest of each counts.
"""

import argparse
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from side_by_side import turns
from transformers import LlamaConfig, LlamaForCausalLM

from safety_subspaces.algebra.nulls import overlap_moments
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.language.prompting import encode_prompt, pad_batch
from safety_subspaces.organism import OrganismModel
from safety_subspaces.states.capture import stream_states
from safety_subspaces.states.moments import MomentsBuilder

SHARES = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
BATCH = 64


def drawn_states(count: int, hidden: int) -> list[torch.Tensor]:
    """Two sets of states: a mean in common, a decaying spectrum, half of its directions shared."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(hidden, generator=generator)
    decay = torch.linspace(1, 0, hidden)[:, None] ** 3 + 0.01
    common = torch.randn(hidden, hidden, generator=generator)
    sets = []
    for _ in range(2):
        mixing = torch.where(torch.rand(hidden, 1, generator=generator) < 0.5, common, torch.randn(hidden, hidden))
        sets.append(mean + torch.randn(count, hidden, generator=generator) @ (decay * mixing) / hidden**0.5)
    return sets


def ordinary_overlap(sets: list[torch.Tensor], share: float) -> float:
    """A full SVD of each set, cut at a share."""
    bases = []
    for states in sets:
        _, values, right = torch.linalg.svd(states, full_matrices=False)
        energies = values.double().square().cumsum(0)
        rank = int(torch.searchsorted(energies, share * energies[-1])) + 1
        bases.append(right[:rank].T)
    products = bases[0].T @ bases[1]
    return float(products.square().sum()) / min(products.shape)


def streamed_overlaps(sets: list[torch.Tensor]) -> list[float]:
    """Moments batch by batch, one factorisation of each, every share; chance levels too."""
    factors = []
    for states in sets:
        builder = MomentsBuilder(states.shape[1])
        for batch in states.split(BATCH):
            builder.add(batch)
        factors.append(builder.moments().factors(share=SHARES[-1]))
    overlaps = mode_subspace_overlap(*factors, SHARES)
    for overlap in overlaps:
        overlap_moments(states.shape[1], overlap.rank_first, overlap.rank_second)
    return [overlap.value for overlap in overlaps]


def compare_overlaps(count: int, hidden: int) -> None:
    """Print the CPU time of both, and their ratio."""
    sets = drawn_states(count, hidden)
    tries = [
        (timed(lambda: streamed_overlaps(sets)), timed(lambda: ordinary_overlap(sets, SHARES[-1]))) for _ in range(8)
    ]
    (seconds, overlaps), (ordinary, expected) = (min(way, key=itemgetter(0)) for way in zip(*tries, strict=True))
    assert abs(overlaps[-1] - expected) < 1e-4, (overlaps[-1], expected)
    print(f"overlap of {count} x 2 prompts at hidden {hidden}, {len(SHARES)} shares, one layer, CPU seconds")
    print(f"  ordinary way {ordinary * len(SHARES):.2f} (one share of {len(SHARES)} timed), here {seconds:.2f}")
    print(f"  ratio {ordinary * len(SHARES) / seconds:.0f}")


def compare_reading(rounds: int) -> None:
    """Print prompts a second of both, and their ratio."""
    torch.manual_seed(0)
    tokenizer = OrganismModel().load_tokenizer()
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for _ in range(512):
        length = int(torch.randint(8, 96, (), generator=generator))
        prompts.append(" ".join(words[int(i)] for i in torch.randint(len(words), (length,), generator=generator)))

    def plain() -> torch.Tensor:
        states = []
        with torch.no_grad():
            for start in range(0, len(prompts), BATCH):
                encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts[start : start + BATCH]]
                ids, mask = pad_batch(encoded, tokenizer.pad_token_id, "right")
                hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
                last = mask.sum(dim=1) - 1
                states.append(torch.stack([layer[torch.arange(len(last)), last] for layer in hidden], dim=1))
        return torch.cat(states)

    def streamed() -> torch.Tensor:
        states = torch.zeros(len(prompts), 7, 256)
        for batch in stream_states(model, tokenizer, prompts, batch_size=BATCH):
            states[batch.rows] = batch.states["last"]
        return states

    ways = {"plain loop": plain, "library": streamed}
    best = dict.fromkeys(ways, float("inf"))
    for way in turns(list(ways), rounds):
        best[way] = min(best[way], timed(ways[way])[0])
    assert (plain() - streamed())[:, :-1].abs().max() < 1e-4  # transformers' last state is behind the norm
    print(f"reading states of {len(prompts)} prompts, best of {rounds}, CPU seconds")
    print(f"  plain loop {best['plain loop']:.2f}, here {best['library']:.2f}")
    print(f"  ratio {best['plain loop'] / best['library']:.2f}")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and what it returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare_overlaps(options.prompts, options.hidden)
    compare_reading(options.rounds)


if __name__ == "__main__":
    main()
