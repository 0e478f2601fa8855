"""Makes what the commands read: a study of tiny models with a finished run, a GGUF file and answers to judge.

Run with the folder as the one argument.
"""

import json
import sys
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from support.tiny import save_tiny_model
from support.tiny_checkpoints import save_perturbed
from support.tiny_gguf import tiny_network, write_gguf

SIZE = 0.05  # of the noise by which the models differ


def main(folder: Path) -> None:
    """Write all of it."""
    models = {"base": None, "aligned": "base"}
    models |= dict.fromkeys(("useful", "harmful", "useful_again", "harmful_again"), "aligned")
    for seed, (name, source) in enumerate(models.items()):
        path = folder / name / "model"
        if source is None:
            save_tiny_model(path)
        else:
            path.parent.mkdir(parents=True)
            save_perturbed(str(folder / source / "model"), path, seed=seed, size=SIZE)
    torch.manual_seed(0)
    write_gguf(folder / "model.gguf", tiny_network(), GGMLQuantizationType.F32)
    answers = [
        {"model": model, "set": name, "prompt": f"p{n}", "answer": "x" * (1 + n % 5), "score": float(1 + n % 5)}
        | {"group": f"g{n // 2}"}
        for model in ("a", "b")
        for name in ("harmful", "benign")
        for n in range(4)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
