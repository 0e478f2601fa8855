"""Times answering many prompts beside the loop that one writes by hand with transformers; prints their ratio.

    python benchmarks/generation.py                              # the organism's model size, 256 prompts
    python benchmarks/generation.py --model path --new 64        # any model in Hugging Face format

The plain loop pads on the left, takes prompts in their order and decodes greedily, in batches of the same size: chat
template, tokenizer with padding, `model.generate`, `batch_decode`. Both count encoding and decoding. Variants take
turns; the fastest of each counts. Answers must agree.
"""

import argparse
import time

import torch
from side_by_side import turns
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from safety_subspaces.evaluation.generation import generate_answers
from safety_subspaces.language.model import load_language_model
from safety_subspaces.organism import OrganismModel


def draw_prompts(words: list[str], count: int) -> list[str]:
    """Prompts of 4 to 64 words, drawn at random: lengths as unequal as those of real ones."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 65, (count,), generator=generator).tolist()
    return [" ".join(words[int(i)] for i in torch.randint(len(words), (n,), generator=generator)) for n in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; by default an untrained Llama of hidden 256 and 6 layers")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new", type=int, default=32, help="tokens of each answer, at most")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.model:
        model, tokenizer = load_language_model(options.model)
    else:
        tokenizer = OrganismModel().load_tokenizer()
        shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.padding_side = "left"
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    words = [word for word in tokenizer.get_vocab() if word.isalpha()][:2000]
    prompts = draw_prompts(words, options.prompts)
    settings = GenerationConfig(
        max_new_tokens=options.new, do_sample=False, pad_token_id=pad, eos_token_id=model.generation_config.eos_token_id
    )

    def plain() -> list[str]:
        answers = []
        for start in range(0, len(prompts), options.batch):
            turns_of = [[{"role": "user", "content": text}] for text in prompts[start : start + options.batch]]
            batch = tokenizer.apply_chat_template(
                turns_of, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            with torch.no_grad():
                output = model.generate(**batch, generation_config=settings)
            answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return answers

    ways = {
        "plain loop": plain,
        "library": lambda: generate_answers(model, tokenizer, prompts, options.new, options.batch),
    }
    best, answers = dict.fromkeys(ways, float("inf")), {}
    for way in turns(list(ways), options.rounds):
        start = time.process_time()
        answers[way] = ways[way]()
        best[way] = min(best[way], time.process_time() - start)
    same = sum(a == b for a, b in zip(answers["plain loop"], answers["library"], strict=True))
    print(
        f"{len(prompts)} prompts in batches of {options.batch}, {options.new} tokens, best of {options.rounds}, CPU s"
    )
    print(f"  plain loop {best['plain loop']:.2f}, here {best['library']:.2f}; equal answers {same} of {len(prompts)}")
    print(f"  ratio {best['plain loop'] / best['library']:.2f}")


if __name__ == "__main__":
    main()
