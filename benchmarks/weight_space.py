"""Times the weight-space analyses beside the ordinary way, each in a process of its own, and prints ratios.

    python benchmarks/weight_space.py                 # 6 layers, hidden 1024, vocabulary 8192; about half an hour
    python benchmarks/weight_space.py --hidden 256 --layers 2
    python benchmarks/weight_space.py --sizes 512 1024 2048
    python benchmarks/weight_space.py --plan          # 70 B parameters by arithmetic, from rates measured here
    python benchmarks/weight_space.py --big 8         # checkpoints of 8 GiB: peak memory; 26 GiB of disk for a while

The ordinary way factorises again for every configuration: a float32 SVD of the alignment update (or of a Gaussian
matrix) for each kind, fraction and fine-tune. It is timed on one fraction for each kind and fine-tune, on one energy
share and on two written models, and multiplied. Its numbers are compared with ours: energies of top to 1e-4, a draw of
a random kind to five of the deviations that the closed form gives. Time is CPU time of one thread and of its child
processes; memory is the largest resident set above what the imports take, of one process.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from side_by_side import ROOT, in_a_process

sys.path[:0] = [str(ROOT / "src")]

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from safety_subspaces.algebra.gram import NEARLY_SQUARE
from safety_subspaces.analysis.overlap.command import overlap
from safety_subspaces.analysis.project.command import project

FRACTIONS = [0.01, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 0.9, 0.99]
SHARES = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
TUNED = ("useful", "harmful", "contaminated")
KINDS = ("top", "random", "random-k")
# Llama-3-70B: shape and how many there are.
MATRICES_70B = {
    "embeddings and head": ((128256, 8192), 2), "q, o": ((8192, 8192), 160), "k, v": ((1024, 8192), 160),
    "gate, up": ((28672, 8192), 160), "down": ((8192, 28672), 80),
}  # fmt: skip


def shapes_of(hidden: int, layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama with an intermediate size of 2.75 times the hidden one."""
    inner = 11 * hidden // 4
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        block = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{block}self_attn.{name}.weight", (hidden, hidden)
        for name in ("gate_proj", "up_proj"):
            yield f"{block}mlp.{name}.weight", (inner, hidden)
        yield f"{block}mlp.down_proj.weight", (hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def make_models(folder: Path, hidden: int, layers: int, vocabulary: int) -> None:
    """Write a base, an aligned and three fine-tuned models in fp16: a decaying spectrum and noise at every step."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "vocab_size": vocabulary,
        "intermediate_size": 11 * hidden // 4, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "tie_word_embeddings": False,
    }  # fmt: skip
    start: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(("base", "aligned", *TUNED)):
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for tensor, shape in shapes_of(hidden, layers, vocabulary):
            update = torch.randn(shape, generator=generator)
            if len(shape) == 2:
                rank = min(shape) // 8
                left = torch.randn(shape[0], rank, generator=generator) * torch.linspace(1, 0.05, rank)
                update += 3 * left @ torch.randn(rank, shape[1], generator=generator) / rank**0.5
            weights[tensor] = (0.02 * update if name == "base" else start[tensor].float() + 1e-3 * update).half()
        (folder / name).mkdir(parents=True)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        start = weights if name in ("base", "aligned") else start


def deltas(folder: Path, first: str, second: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor's difference of two models, in float32."""
    with (
        safe_open(folder / first / "model.safetensors", "pt") as one,
        safe_open(folder / second / "model.safetensors", "pt") as other,
    ):
        for name in one.keys():  # noqa: SIM118 - a safetensors handle, no dict
            yield name, one.get_tensor(name).float() - other.get_tensor(name).float()


def basis_of(kind: str, alignment: torch.Tensor, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """The ordinary way to a subspace: an SVD each time."""
    source = torch.randn(alignment.shape, generator=generator) if kind == "random" else alignment
    left = torch.linalg.svd(source, full_matrices=False).U
    rank = max(1, round(fraction * min(alignment.shape)))
    if kind == "random-k":
        return left[:, torch.randperm(left.shape[1], generator=generator)[:rank]]
    return left[:, :rank]


def ordinary_projection(folder: Path, kind: str, fraction: float, tuned: str) -> float:
    """Share of energy that one configuration keeps."""
    generator = torch.Generator().manual_seed(0)
    inside = total = 0.0
    for (_, alignment), (_, task) in zip(
        deltas(folder, "aligned", "base"), deltas(folder, tuned, "aligned"), strict=True
    ):
        matrix, update = (value if value.ndim == 2 else value.reshape(-1, 1) for value in (alignment, task))
        basis = basis_of(kind, matrix, fraction, generator)
        onto = basis @ (basis.T @ update)
        away = update - onto
        inside += float(onto.double().square().sum())
        total += float(away.double().square().sum()) + float(onto.double().square().sum())
    return inside / total


def ordinary_overlap(folder: Path, share: float) -> dict[str, float]:
    """Overlap of two fine-tunes at one energy share, by tensor."""
    overlaps = {}
    for (name, first), (_, second) in zip(
        deltas(folder, "useful", "aligned"), deltas(folder, "harmful", "aligned"), strict=True
    ):
        bases = []
        for update in (first, second):
            left, values, _ = torch.linalg.svd(
                update if update.ndim == 2 else update.reshape(-1, 1), full_matrices=False
            )
            energies = values.double().square().cumsum(0)
            bases.append(left[:, : int((energies < share * energies[-1]).sum()) + 1])
        overlapping = (bases[0].T @ bases[1]).square().sum()
        overlaps[name] = float(overlapping) / min(basis.shape[1] for basis in bases)
    return overlaps


def ordinary_writing(folder: Path, out: Path, fraction: float) -> None:
    """Write one projected model."""
    writes = {}
    with safe_open(folder / "aligned" / "model.safetensors", "pt") as aligned:
        for (name, alignment), (_, task) in zip(
            deltas(folder, "aligned", "base"), deltas(folder, "useful", "aligned"), strict=True
        ):
            matrix, update = (value if value.ndim == 2 else value.reshape(-1, 1) for value in (alignment, task))
            basis = basis_of("top", matrix, fraction, torch.Generator())
            onto = (basis @ (basis.T @ update)).reshape(task.shape)
            writes[name] = (aligned.get_tensor(name).float() + onto).half()
    out.mkdir(parents=True, exist_ok=True)
    save_file(writes, out / "model.safetensors", metadata={"format": "pt"})


def measure(task: str, folder: Path) -> dict[str, object]:
    """Do one thing in this process, and say what it took."""
    torch.set_num_threads(1)
    paths = {label: str(folder / label) for label in TUNED}
    pair, out = [str(folder / "base"), str(folder / "aligned")], folder / "out" / task
    shutil.rmtree(out, ignore_errors=True)
    settings = {"subspaces": KINDS, "methods": ["onto", "away", "opposite"], "fractions": FRACTIONS, "draws": 1}
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    answer: dict[str, object] | None = None
    if task == "ordinary projection":
        answer = {f"{k}/{t}": ordinary_projection(folder, k, 0.25, t) for k in KINDS for t in TUNED}
    elif task == "ordinary overlap":
        answer = ordinary_overlap(folder, 0.5)
    elif task == "ordinary writing":
        for fraction in (0.25, 0.5):
            ordinary_writing(folder, out / str(fraction), fraction)
    elif task in ("closed", "two workers"):
        workers = 2 if task == "two workers" else 1
        table = project(*pair, paths, str(out), **settings, controls="closed", workers=workers)
        answer = answers(table)
    elif task == "sampled":
        answer = answers(project(*pair, paths, str(out), **settings, workers=1))
    elif task == "overlap":
        two = {label: paths[label] for label in TUNED[:2]}
        table = overlap(pair[1], two, str(out), energies=SHARES, controls=0, angles=False, workers=1)
        answer = table[table["energy"] == 0.5].set_index("tensor")["overlap"].to_dict()
    elif task == "writing":
        useful = {"useful": paths["useful"]}
        project(
            *pair, useful, str(out), subspaces=["top"], methods=["onto"], fractions=FRACTIONS, write=True, workers=1
        )
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = time.process_time() - cpu + children.ru_utime + children.ru_stime
    shutil.rmtree(out, ignore_errors=True)
    return {"cpu": used, "wall": time.perf_counter() - wall, "peak": peak() - before, "answer": answer}


def answers(table: pd.DataFrame) -> dict[str, object]:
    """Energy kept and its deviation over draws (0 of top) at the fraction that the ordinary way is timed at.

    Columns read of the table: ``method``, ``fraction``, ``subspace``, ``tuned``, ``energy_kept``, ``energy_kept_sd``.
    """
    rows = table[(table["method"] == "onto") & (table["fraction"] == 0.25)].fillna({"energy_kept_sd": 0.0})
    return {f"{row.subspace}/{row.tuned}": [row.energy_kept, row.energy_kept_sd] for row in rows.itertuples()}


def peak() -> int:
    """Largest resident set of this program so far, in bytes; getrusage's has that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def compare(folder: Path) -> dict[str, float]:
    """Everything beside the ordinary way."""
    names = ("ordinary projection", "closed", "sampled", "two workers", "ordinary overlap", "overlap")
    runs = {}
    for name in (*names, "ordinary writing", "writing"):
        runs[name] = in_a_process(__file__, measure=name, folder=folder)
        cpu, wall, memory = (runs[name][key] for key in ("cpu", "wall", "peak"))
        print(f"{name}: {cpu:.1f} s CPU, {wall:.1f} s, {memory / 2**20:.0f} MiB", flush=True)
    for key, (mean, deviation) in runs["closed"]["answer"].items():
        drawn = {"ordinary": runs["ordinary projection"]["answer"][key], "sampled": runs["sampled"]["answer"][key][0]}
        for way, value in drawn.items():
            assert abs(value - mean) < 1e-4 + 5 * deviation, (way, key, value, mean, deviation)
        assert key.startswith("top") is (deviation == 0), (key, deviation)
    for tensor, value in runs["overlap"]["answer"].items():
        assert abs(value - runs["ordinary overlap"]["answer"][tensor]) < 1e-3, tensor
    print("the ordinary way: one fraction of ten, one share of eleven and two models of ten, multiplied")
    stored = sum(file.stat().st_size for file in folder.glob("*/model.safetensors"))
    ordinary = runs["ordinary projection"]["cpu"] * len(FRACTIONS)
    return {
        "projection, closed form (x CPU)": ordinary / runs["closed"]["cpu"],
        "projection, sampled (x CPU)": ordinary / runs["sampled"]["cpu"],
        "overlap (x CPU)": runs["ordinary overlap"]["cpu"] * len(SHARES) / runs["overlap"]["cpu"],
        "ten written models (x CPU)": runs["ordinary writing"]["cpu"] * 5 / runs["writing"]["cpu"],
        "two workers (x wall)": runs["closed"]["wall"] / runs["two workers"]["wall"],
        "peak memory (of five checkpoints)": runs["closed"]["peak"] / stored,
    }


def floor_of(hidden: int, layers: int, vocabulary: int, tuned: int = len(TUNED)) -> float:
    """Seconds of the matrix products and eigendecompositions that a sweep in closed form cannot do without.

    Of each matrix the Gram matrix of the alignment update, ``L^T U`` and the Gram matrix of each task's, at the rate of
    a float32 product of that shape (a symmetric one counts half), and one ``eigh`` in float64.
    """
    seconds, known = 0.0, {}
    for _, shape in shapes_of(hidden, layers, vocabulary):
        if len(shape) == 2:
            if shape not in known:
                small, large = sorted(shape)
                rate = gemm_rate(small, large, torch.float32)
                known[shape] = operations(shape, tuned) / rate + eigh_seconds(small)
            seconds += known[shape]
    return seconds


def operations(shape: tuple[int, ...], tuned: int) -> float:
    """Floating-point operations of the products of one matrix, a multiplication and an addition apart."""
    small, large = sorted(shape)
    product, turned = 2.0 * small * small * large, 2.0 * small**3
    # of a tall matrix L^T U is T^T (D^T U), a small product more
    return product / 2 + tuned * (product + product / 2) + (tuned * turned if shape[0] > shape[1] else 0)


def gemm_rate(small: int, large: int, dtype: torch.dtype) -> float:
    """Operations a second of a product of a square matrix with a longer one."""
    square, long = (torch.randn(small, columns, dtype=dtype) for columns in (small, large))
    return 2.0 * small * small * large / timed(lambda: square @ long)


def eigh_seconds(size: int) -> float:
    """CPU seconds of one eigendecomposition in float64."""
    matrix = torch.randn(size, 2 * size, dtype=torch.float64)
    gram = matrix @ matrix.T
    return timed(lambda: torch.linalg.eigh(gram), 1 if size > 2048 else 3)


def timed(work, times: int = 3) -> float:
    """The least CPU time of a few tries."""
    taken = []
    for _ in range(times):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def scaling(sizes: list[int]) -> dict[str, object]:
    """Time and memory against the hidden size, beside the floor; two layers each."""
    rows = []
    for hidden in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            make_models(Path(scratch), hidden, 2, 8 * hidden)
            run = in_a_process(__file__, measure="closed", folder=scratch)
        floor = in_a_process(__file__, measure="floor", folder=hidden)["seconds"]
        cpu = run["cpu"]
        rows.append({"hidden": hidden, "cpu_s": cpu, "floor_s": floor, "over_floor": cpu / floor,
                     "peak_MiB": run["peak"] / 2**20})  # fmt: skip
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.2f"))
    exponents = {}
    if len(sizes) > 1:
        for name in ("cpu_s", "floor_s", "peak_MiB"):
            exponents[name] = float(np.polyfit(np.log(table["hidden"]), np.log(table[name]), 1)[0])
            print(f"{name} grows as hidden^{exponents[name]:.2f}")
    return {"rows": rows, "exponents": exponents}


def plan(tuned: int = 1) -> dict[str, object]:
    """70 B parameters by arithmetic: a closed-form sweep of one fine-tune, from rates measured on one thread here."""
    single, double = gemm_rate(2048, 8192, torch.float32), gemm_rate(2048, 2048, torch.float64)
    small, large = eigh_seconds(1024), eigh_seconds(2048)
    exponent = max(3.0, float(np.log2(large / small)))
    print(
        f"one thread: float32 {single / 1e9:.0f} and float64 {double / 1e9:.0f} GFLOP/s; "
        f"eigh of 2048 {large:.1f} s, taken to grow as n^{exponent:.2f}"
    )
    rows = []
    for name, (shape, count) in MATRICES_70B.items():
        least, most = sorted(shape)
        products = operations(shape, tuned) / single
        if most < NEARLY_SQUARE * least:  # its Gram matrix is formed in float64
            products += least * least * most * (1 / double - 1 / single)
        eigen = large * (least / 2048) ** exponent
        # Gram matrix, vectors and LAPACK's workspace of two more in float64; then L, L^T U and a Gram in float32
        memory = max(4 * 8, 3 * 8 + 3 * 4) * least**2 + (0 if most * least > 2**27 else 4 * (1 + tuned) * least * most)
        rows.append({"matrix": name, "shape": "x".join(map(str, shape)), "count": count, "products_s": products,
                     "eigh_s": eigen, "hours": count * (products + eigen) / 3600, "GiB": memory / 2**30})  # fmt: skip
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.2f"))
    hours = float(table["hours"].sum())
    for cores in (1, 8, 32, 64, 128):
        print(f"{cores:4d} cores: {hours / cores:8.1f} h, {cores * table['GiB'].max():6.0f} GiB at most")
    read = (2 + tuned) * 2 * sum(count * shape[0] * shape[1] for shape, count in MATRICES_70B.values())
    print(f"{read / 2**30:.0f} GiB are read at least once; tall and large matrices some rows at a time, and again")
    return {"rows": rows, "hours_one_core": hours, "float32": single, "float64": double, "eigh_2048": large}


def make_big(folder: Path, gibibytes: float, width: int) -> None:
    """Write three sharded models in bf16, a tensor a shard: Llama-3-70B's embeddings and head, then its layers.

    Args:
        folder: Where.
        gibibytes: Least size of each.
        width: Of the layers: 8192 is Llama-3-70B's, 4096 Llama-3-8B's, in an eighth of the time.
    """
    names = {"model.embed_tokens.weight": (128256, 8192), "lm_head.weight": (128256, 8192)}
    square, narrow, inner = (width, width), (1024, width), 7 * width // 2
    layer = 0
    while 2 * sum(a * b for a, b in names.values()) < gibibytes * 2**30:
        block = f"model.layers.{layer}."
        for name, shape in (("q", square), ("k", narrow), ("v", narrow), ("o", square)):
            names[f"{block}self_attn.{name}_proj.weight"] = shape
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            names[f"{block}mlp.{name}_proj.weight"] = shape
        layer += 1
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layer,
              "hidden_size": 8192, "vocab_size": 128256, "tie_word_embeddings": False}  # fmt: skip
    files = {name: f"model-{index:05d}-of-{len(names):05d}.safetensors" for index, name in enumerate(names, start=1)}
    generator = torch.Generator().manual_seed(0)
    for name, shape in names.items():
        weight = torch.randn(shape, generator=generator, dtype=torch.bfloat16).mul_(0.02)
        for model in ("base", "aligned", "tuned"):
            if model != "base":
                weight += torch.randn(shape, generator=generator, dtype=torch.bfloat16).mul_(2e-3)
            (folder / model).mkdir(parents=True, exist_ok=True)
            save_file({name: weight}, folder / model / files[name], metadata={"format": "pt"})
    for model in ("base", "aligned", "tuned"):
        (folder / model / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": files}), encoding="utf-8"
        )
        (folder / model / "config.json").write_text(json.dumps(config), encoding="utf-8")


def big(gibibytes: float, width: int) -> dict[str, float]:
    """Project checkpoints that are larger than what is allowed, by the command itself, and print what it took."""
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        folder = Path(scratch)
        make_big(folder, gibibytes, width)
        size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
        command = [
            sys.executable, str(ROOT / "analyze.py"), "project", "--controls", "closed", "--workers", "1",
            "--base", str(folder / "base"), "--aligned", str(folder / "aligned"),
            "--tuned.tuned", str(folder / "tuned"), "--out", str(folder / "out"),
        ]  # fmt: skip
        wall = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - wall
        # The peak of the command alone: that of this process includes the making of the checkpoints.
        used = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))["peak_memory_bytes"]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {"gibibytes": size / 2**30, "wall": wall, "cpu": children.ru_utime + children.ru_stime,
             "peak": used}  # fmt: skip
    print(
        f"three checkpoints of {size / 2**30:.1f} GiB: {wall / 60:.1f} min, {result['cpu'] / 60:.1f} min CPU, "
        f"peak {result['peak'] / 2**30:.2f} GiB, imports and mapped pages counted"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--sizes", type=int, nargs="+", help="cost against these hidden sizes, beside the floor")
    parser.add_argument("--plan", action="store_true", help="70 B parameters by arithmetic")
    parser.add_argument("--big", type=float, help="make checkpoints of so many GiB, and project them")
    parser.add_argument("--big-width", type=int, default=8192, help="hidden size of the layers of --big")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure == "floor":
        hidden = int(str(options.folder))
        print(json.dumps({"seconds": floor_of(hidden, 2, 8 * hidden)}))
        return
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return
    if options.sizes:
        result: dict[str, object] = scaling(options.sizes)
    elif options.plan:
        result = plan()
    elif options.big:
        result = big(options.big, options.big_width)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            make_models(Path(scratch), options.hidden, options.layers, 8 * options.hidden)
            result = compare(Path(scratch))
        for name, ratio in result.items():
            print(f"{name:40s} {ratio:7.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
