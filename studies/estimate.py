"""What the paper's runs are expected to take: memory, time and disk by model and kind of GPU, before any is started.

Arithmetic from published figures, not measurements: ``make paper MODEL=<model> --dry-run`` prints it. It needs nothing
beside Python, so that it runs where nothing is installed yet.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A plain clone works without installing.
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from safety_subspaces.artefacts.errors import InputError

GIB = 2**30
FLOAT32, BFLOAT16 = 4, 2  # bytes of a number
# The values of the paper's configs; a test compares them.
EXAMPLES_A_STEP = 32
MOST_TOKENS = 512
RANK_FRACTION = 0.25
# Assumed: mean length with the prompt's template, in tokens.
METAMATHQA_TOKENS, BEAVERTAILS_TOKENS = 260, 150
# Assumed: share of the peak that one example at a time reaches, and of the link that gathering weights reaches.
UTILISATION, LINK_UTILISATION = 0.25, 0.5
# Assumed: least time of a block for one example, forwards and backwards: its kernels are started one by one.
BLOCK_SECONDS = 1e-3
# Assumed: what the driver, the libraries and fragmentation leave of a GPU's memory.
USABLE = 0.9
# DeepSpeed's own limit of whole parameters that ZeRO-3 keeps between uses (stage3_max_live_parameters).
LIVE_PARAMETERS = 10**9
# Parts of a published count that the matrices leave out: norms and biases. Of Qwen-2.5-1.5B they are 0.01 %.
COUNT_TOLERANCE = 0.001


@dataclass(frozen=True)
class Architecture:
    """A decoder of Llama's or Qwen2's kind, by its published figures.

    Args:
        base: Hub id of the base model.
        parameters: Number of parameters.
        layers: Number of blocks.
        hidden_size: Width of the residual stream.
        key_value_size: Width of all heads of keys.
        intermediate_size: Width of the MLP.
        vocabulary: Rows of the embedding.
        tied_embeddings: 1 where embedding and head are one matrix, else 0.
    """

    base: str
    parameters: int
    layers: int
    hidden_size: int
    key_value_size: int
    intermediate_size: int
    vocabulary: int
    tied_embeddings: int

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes ``(out, in)`` of its matrices."""
        wide, narrow, inner = self.hidden_size, self.key_value_size, self.intermediate_size
        block = [
            (wide, wide),
            (narrow, wide),
            (narrow, wide),
            (wide, wide),
            (inner, wide),
            (inner, wide),
            (wide, inner),
        ]
        return block * self.layers + [(self.vocabulary, wide)] * (2 - self.tied_embeddings)


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its data sheet: dense rates, and the link to the others in one direction.

    Args:
        name: What it is called.
        memory: Bytes.
        bfloat16_rate: Operations a second in bf16 with float32 sums.
        float32_rate: Operations a second in float32.
        link_rate: Bytes a second to and from another one.
    """

    name: str
    memory: int
    bfloat16_rate: float
    float32_rate: float
    link_rate: float


@dataclass(frozen=True)
class Stage:
    """One run: how many examples of which kind, and whether it is held to a subspace.

    Args:
        name: Its folder.
        useful: Examples of MetaMathQA.
        harmful: Examples of BeaverTails.
        constrained: Whether its update is held.
        compares: Whether it reads a finished run, to draw a subspace of equal energy.
    """

    name: str
    useful: int = 0
    harmful: int = 0
    constrained: bool = False
    compares: bool = False

    @property
    def examples(self) -> int:
        """Examples that it trains on."""
        return self.useful + self.harmful


# Source: the data sheets of NVIDIA A100, H100 (SXM: NVLink) and GeForce RTX 4090 (PCIe 4.0 x16), without sparsity.
GPUS = (
    Gpu("A100 40 GB", 40 * GIB, 312e12, 19.5e12, 300e9),
    Gpu("A100 80 GB", 80 * GIB, 312e12, 19.5e12, 300e9),
    Gpu("H100 80 GB", 80 * GIB, 989e12, 67e12, 450e9),
    Gpu("RTX 4090 24 GB", 24 * GIB, 165e12, 82.6e12, 32e9),
)
STAGES = (
    Stage("useful", 20_000),
    Stage("harmful", 0, 4_000),
    Stage("contaminated", 20_000, 5_000),
    Stage("contaminated_first", 20_000, 4_000),
    Stage("useful_again", 20_000),
    Stage("harmful_again", 0, 4_000),
    Stage("contaminated_away", 20_000, 5_000, constrained=True),
    Stage("contaminated_onto", 20_000, 5_000, constrained=True),
    Stage("contaminated_away_random", 20_000, 5_000, constrained=True),
    Stage("contaminated_away_random_energy", 20_000, 5_000, constrained=True, compares=True),
)


def read_architecture(path: Path) -> Architecture:
    """Read a ``model.env``: lines of ``NAME=value``.

    Raises:
        InputError: No such file, a figure that is missing or no number, or a count of parameters that the shapes do not
            explain.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected configs/paper/<model>/model.env")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    values = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    names = [name for name in Architecture.__dataclass_fields__ if name != "base"]
    wrong = [name.upper() for name in names if not values.get(name.upper(), "").isdigit()]
    if wrong or "BASE" not in values:
        raise InputError(f"{path}: expected BASE and whole numbers; look at {', '.join(wrong or ['BASE'])}")
    model = Architecture(values["BASE"], **{name: int(values[name.upper()]) for name in names})
    counted = sum(rows * columns for rows, columns in model.matrices)
    if abs(counted - model.parameters) > COUNT_TOLERANCE * model.parameters:
        raise InputError(f"{path}: PARAMETERS={model.parameters}, but its matrices have {counted} numbers; mend one")
    return model


def activation_bytes(model: Architecture, tokens: int = MOST_TOKENS, checkpointed: bool = False) -> int:
    """Return what the backward pass of one example needs of the forward pass.

    Of each block and token, in bf16: queries, what attention returns, and the inputs of attention and MLP (``4 h``),
    keys and values (``2 g``), and four vectors of the MLP (``4 f``); in float32 the residual stream into each norm and
    behind it (``4 h``): ``24 h + 4 g + 8 f`` bytes. Attention keeps no square of the length: its fast kernels compute
    it again. With checkpointing only the residual stream is kept, and one block at a time. The loss of each token
    needs the logits and their gradient, in bf16 and in float32, and the float32 log-probabilities: ``16 V`` bytes.

    Source: counted as in arXiv 2205.05198, section 4.1, for what transformers' Llama and Qwen2 compute under autocast.
    """
    block = 24 * model.hidden_size + 4 * model.key_value_size + 8 * model.intermediate_size
    activations = FLOAT32 * model.hidden_size * model.layers + block if checkpointed else block * model.layers
    return tokens * (activations + 16 * model.vocabulary)


def gpu_bytes(model: Architecture, stage: Stage, ranks: int = 1, checkpointed: bool = False) -> int:
    """Return the largest memory of one GPU, of the backward pass or of the optimizer's step.

    One GPU: float32 weights, gradients and two moments of Adam are 16 bytes a parameter. In the backward pass there are
    further the bf16 copies of autocast (2) and the activations; in the step the temporaries of Adam, as large as the
    parameters (4). ZeRO-3 cuts 16 bytes over the ranks (bf16 weights and gradients, float32 masters and moments) and
    float32 gradients in the step; each rank has its activations and whole bf16 weights, up to DeepSpeed's limit.

    A constraint further keeps the reference weights (4, cut as the masters are) and the bases (whole on every rank).
    Its projection makes the update and, when it measures, a copy of the weights (4 each, cut) and the coordinates
    (whole, twice where they are summed over ranks).

    Source: arXiv 1910.02054, section 3.1 and 5.3 (mixed precision, ZeRO-3); the constraint is counted from
    ``safety_subspaces.constraint.constrained``.
    """
    count = model.parameters
    activations = activation_bytes(model, checkpointed=checkpointed)
    if ranks == 1:
        always, backward, step = 16 * count, BFLOAT16 * count + activations, FLOAT32 * count
    else:
        always = 16 * count // ranks
        backward, step = BFLOAT16 * min(count, LIVE_PARAMETERS) + activations, 2 * FLOAT32 * count // ranks
    if stage.constrained:
        bases, coordinates = basis_bytes(model), coordinate_bytes(model)
        always += FLOAT32 * count // ranks + bases
        step = max(step, 2 * FLOAT32 * count // ranks + coordinates * min(ranks, 2))
    return always + max(backward, step)


def basis_bytes(model: Architecture) -> int:
    """Return the size of the bases: ``(out, k)`` in float32 for each matrix, ``k = f min(out, in)``."""
    return sum(round(FLOAT32 * rows * RANK_FRACTION * min(rows, columns)) for rows, columns in model.matrices)


def coordinate_bytes(model: Architecture) -> int:
    """Return the size of an update's coordinates in the bases: ``(k, in)`` in float32 for each matrix."""
    return sum(round(FLOAT32 * columns * RANK_FRACTION * min(rows, columns)) for rows, columns in model.matrices)


def host_bytes(model: Architecture, stage: Stage, ranks: int = 1) -> int:
    """Return the main memory of all processes: each reads the whole model and, to compare, an update in float64."""
    extra = (basis_bytes(model) if stage.constrained else 0) + (2 * FLOAT32 * model.parameters if stage.compares else 0)
    return ranks * (FLOAT32 * model.parameters + extra)


def disk_bytes(model: Architecture, stages: Sequence[Stage] = STAGES) -> int:
    """Return the disk of a study: float32 models, what constraints hold, and two checkpoints of the run in progress."""
    models = FLOAT32 * model.parameters * len(stages)
    constraints = sum(FLOAT32 * model.parameters + basis_bytes(model) for stage in stages if stage.constrained)
    return models + constraints + basis_bytes(model) + 2 * 3 * FLOAT32 * model.parameters


def seconds(model: Architecture, stage: Stage, gpu: Gpu, ranks: int = 1, checkpointed: bool = False) -> float:
    """Return the time of a run.

    An example takes ``6 N`` operations a token (``8 N`` with checkpointing) at a share of the peak, or as long as its
    kernels take to start. ZeRO-3 moves ``3 x 2 N`` bytes for each example of a rank: weights gathered forwards and
    backwards, gradients scattered. A projection adds ``4 k m n`` float32 operations for each matrix and step.

    Source: arXiv 2001.08361, section 2.1 (6 N); arXiv 1910.02054, section 7.2.2 (communication).
    """
    took = 0.0
    for examples, tokens in ((stage.useful, METAMATHQA_TOKENS), (stage.harmful, BEAVERTAILS_TOKENS)):
        operations = (8 if checkpointed else 6) * model.parameters * tokens
        example = max(operations / (gpu.bfloat16_rate * UTILISATION), model.layers * BLOCK_SECONDS)
        took += examples / ranks * example
    if ranks > 1:
        moved = 3 * BFLOAT16 * model.parameters * (ranks - 1) / ranks
        took += stage.examples / ranks * moved / (gpu.link_rate * LINK_UTILISATION)
    if stage.constrained:
        step = sum(4 * RANK_FRACTION * min(shape) * shape[0] * shape[1] for shape in model.matrices)
        took += stage.examples / EXAMPLES_A_STEP * step / (ranks * gpu.float32_rate * UTILISATION)
    return took


def fits(model: Architecture, stage: Stage, gpu: Gpu, ranks: int = 1) -> bool:
    """Tell whether a run fits the usable part of the GPU's memory."""
    return gpu_bytes(model, stage, ranks) <= USABLE * gpu.memory


def describe(model: Architecture) -> str:
    """Return the estimate as text: for one GPU and for eight, memory of a GPU and minutes of each run by kind."""
    lines = [
        f"Estimates for {model.base}, {model.parameters:,} parameters; nothing here was measured. Assumed:",
        f"{METAMATHQA_TOKENS} tokens an example of MetaMathQA, {BEAVERTAILS_TOKENS} of BeaverTails, memory for "
        f"{MOST_TOKENS}; {UTILISATION:.0%} of the peak rate, {1e3 * BLOCK_SECONDS:g} ms a block at least,",
        f"{LINK_UTILISATION:.0%} of the link's rate, {USABLE:.0%} of the memory usable. The analyses are not in it.",
    ]
    for ranks in (1, 8):
        lines += ["", *_table(model, ranks)]
    return "\n".join([*lines, "", f"disk: {disk_bytes(model) / GIB:.0f} GiB, beside the models of the Hub"])


def _table(model: Architecture, ranks: int) -> list[str]:
    lines = [_row("1 GPU" if ranks == 1 else f"{ranks} GPUs, ZeRO-3", "GiB a GPU", [gpu.name for gpu in GPUS])]
    for stage in STAGES:
        cells = [_minutes(model, [stage], gpu, ranks) for gpu in GPUS]
        lines.append(_row(stage.name, f"{gpu_bytes(model, stage, ranks) / GIB:.1f}", cells))
    host = max(host_bytes(model, stage, ranks) for stage in STAGES)
    lines.append(_row("all", "", [_minutes(model, STAGES, gpu, ranks) for gpu in GPUS]))
    return [*lines, f"main memory of all processes: up to {host / GIB:.0f} GiB"]


def _minutes(model: Architecture, stages: Sequence[Stage], gpu: Gpu, ranks: int) -> str:
    if not all(fits(model, stage, gpu, ranks) for stage in stages):
        return "too small"
    return f"{sum(seconds(model, stage, gpu, ranks) for stage in stages) / 60:.0f} min"


def _row(name: str, memory: str, cells: Sequence[str]) -> str:
    return f"{name:<32}{memory:>10}" + "".join(f"{cell:>16}" for cell in cells)


def main() -> None:
    """Print the estimate of the model whose ``model.env`` is given."""
    if len(sys.argv) != 2:
        sys.exit("usage: python studies/estimate.py configs/paper/<model>/model.env")
    try:
        print(describe(read_architecture(Path(sys.argv[1]))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
