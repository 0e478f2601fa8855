"""What is right, from the network itself: float64 and whole matrices, and nothing of what is tested."""

import torch
import transformers
from families.configs import FAMILIES
from torch import Tensor


def load(family: str, folder: str) -> transformers.PreTrainedModel:
    """Have transformers load a model in the class that runs it."""
    sees = FAMILIES[family].sees
    of_class = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    network: transformers.PreTrainedModel = of_class.from_pretrained(folder).eval()
    return network


def matrices(family: str, network: torch.nn.Module) -> dict[str, Tensor]:
    """Return every weight once, linear maps as (out, in), experts one by one; of what sees, the text's alone."""
    found = {}
    for stored, parameter in network.named_parameters():
        name, value = stored, parameter.detach().double()
        if any("vision" in each for each, _ in network.named_children()) or hasattr(
            network.base_model, "language_model"
        ):
            if "language_model." not in name and not name.startswith("lm_head"):
                continue
            name = name.replace("language_model.", "")
        owner = network.get_submodule(stored.rpartition(".")[0])
        if type(owner).__name__ == "Conv1D" and value.ndim == 2:
            value = value.T
        if value.ndim == 3 and ".experts." in name:
            found |= _experts(family, name, value)
        else:
            found[name] = value
    return found


def _experts(family: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """Return the matrices of the experts of one layer, by the names that files have."""
    apart = FAMILIES[family].experts
    if apart is None:
        turned = FAMILIES[family].transposed_experts
        return {f"{name}[{index}]": each.T if turned else each for index, each in enumerate(value)}
    holder, gate, up, down = apart
    before, _, fused = name.partition(".mlp.experts.")
    found = {}
    for index, each in enumerate(value):
        named = dict(zip((gate, up), each.chunk(2), strict=True)) if fused == "gate_up_proj" else {down: each}
        found |= {f"{before}.{holder}.experts.{index}.{part}.weight": matrix for part, matrix in named.items()}
    return found


def flat(matrix: Tensor) -> Tensor:
    """Return a matrix as it is, and anything else as one column."""
    return matrix if matrix.ndim == 2 else matrix.reshape(-1, 1)


def leading(update: Tensor, fraction: float) -> Tensor:
    """Return the leading left singular vectors of an update: a fraction of its full rank, one at least."""
    matrix = flat(update)
    rank = max(1, round(fraction * min(matrix.shape)))
    return torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]


def for_energy(update: Tensor, share: float) -> Tensor:
    """Return the fewest left singular vectors that hold a share of an update's energy."""
    left, values, _ = torch.linalg.svd(flat(update), full_matrices=False)
    held = torch.cumsum(values**2, 0) / (values**2).sum()
    return left[:, : int((held < share - 1e-12).sum()) + 1]


def greedy(network: torch.nn.Module, ids: list[int], length: int, ends: set[int]) -> list[int]:
    """Go on with one prompt alone: no padding, no cache, one token at a time."""
    new: list[int] = []
    while len(new) < length and (not new or new[-1] not in ends):
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([ids + new]), use_cache=False).logits
        new.append(int(logits[0, -1].argmax()))
    return new
