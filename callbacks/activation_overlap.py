"""Watches whether two kinds of prompts share their space of hidden states, layer by layer, while a model trains."""

from typing import Any, Literal, final

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.factors import Factors
from safety_subspaces.algebra.nulls import overlap_moments
from safety_subspaces.algebra.overlap import Overlap, mode_subspace_overlap
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.constraint.held import check_stored, store_tensors
from safety_subspaces.constraint.sharing import map_over_ranks
from safety_subspaces.evaluation.prompt_sets import files_of, read_prompt_list
from safety_subspaces.language.examples import CHAT, PromptFormat
from safety_subspaces.language.prompting import check_template
from safety_subspaces.states.capture import Side, prompt_states, state_factors
from safety_subspaces.states.choices import Position
from safety_subspaces.training.modules.base import LanguageModelModule

from .watcher import Watcher

SETS = ("first", "second")
EMBEDDING = "embedding"


@final
class ActivationOverlap(Watcher):
    """Compares the subspaces that two prompt sets span in the residual stream, and each with its own at the start.

    States are read after each block at one position of the real tokens, in eval mode and the precision of the run, the
    prompts shared out over the ranks. In float32 neither padding, batch size nor the number of ranks changes an overlap
    by more than 1e-5; in bf16 they do, by about 1e-3. The overlap is the mode subspace overlap of the two sets' right
    singular vectors up to a share of their energy, 0 to 1.

    Logs ``activation/overlap`` beside ``activation/overlap_chance`` (of independent Haar-random subspaces of the same
    ranks), ``activation/rank_first`` and ``activation/rank_second`` (directions that hold the energy), and
    ``activation/drift_first`` and ``activation/drift_second`` (1 less the overlap of a set's subspace with its own at
    the start: 0 has not moved): means over the blocks. The embedding is shown beside the blocks in the heatmap alone:
    the last token of all chat prompts is the same there. Also ``time/activation_ms``.

    Uncentred sets share their mean, so that they overlap far above chance even where nothing else is shared.

    Args:
        first: Prompt set: ``organism:<set>`` with one of utility, harmful and benign, a JSONL file whose lines have a
            ``prompt``, or ``<file>:<set>``.
        second: The other prompt set.
        every_n_steps: Optimizer steps between two looks.
        log_spaced: So many further looks, at steps evenly spaced on a logarithmic scale.
        split: Split of the organism's prompts; keep ``test`` for what is reported.
        limit: At most so many prompts of each set.
        energy: Share of each set's energy that its subspace holds.
        center: Whether the mean of each set is taken out first.
        position: ``last`` token of the prompt, or the ``mean`` over it.
        template: ``chat``, or a prompt template by its name or import path.
        batch_size: Prompts at once.
        padding: Side on which shorter prompts are padded.
        per_layer: Whether values are also logged layer by layer.
        figures: Whether heatmaps go to TensorBoard.
        name: Tells two of these callbacks in one run apart: part of tags and of the folder.
        template_args: What the chat template is given beside the turns, such as ``{enable_thinking: false}``.
        control_tokens: Whether the text of a control token in a prompt is read as that token; by default it is text.

    Source:
        The measure: arXiv 2505.14185, section 6; there it is taken once, between layers 65 and 90 % of depth.
    """

    clock, keeps_in = "activation", "activations"

    def __init__(
        self,
        first: str,
        second: str,
        every_n_steps: int | None = 200,
        log_spaced: int | None = None,
        split: Literal["dev", "test"] = "dev",
        limit: int = 64,
        energy: float = 0.9,
        center: bool = False,
        position: Position = "last",
        template: str = CHAT,
        batch_size: int = 64,
        padding: Side = "right",
        per_layer: bool = False,
        figures: bool = True,
        name: str = "",
        template_args: dict[str, Any] | None = None,
        control_tokens: bool = False,
    ) -> None:
        super().__init__(name, every_n_steps, log_spaced, per_layer, figures)
        if limit < 2 or batch_size < 1 or not 0 < energy <= 1:
            raise InputError(
                f"ActivationOverlap: limit {limit}, batch_size {batch_size}, energy {energy}; expected at least 2 "
                "prompts, a batch of at least 1 and a share in (0, 1]"
            )
        self.first, self.second = first, second
        self.split, self.limit, self.energy, self.center = split, limit, energy, center
        self.position, self.batch_size, self.padding = position, batch_size, padding
        self.form = PromptFormat(template, template_args or {}, control_tokens)
        self._prompts: dict[str, list[str]] = {}
        self._start: dict[str, list[Factors]] = {}
        self._start_sha256: str | None = None

    def inputs(self) -> list[str]:
        """Return the files that the prompts come from."""
        return files_of({"first": self.first, "second": self.second})

    def describe(self) -> dict[str, Any]:
        """Say also which sets are compared, and whether their mean is taken out."""
        compared = {"first": self.first, "second": self.second, "center": self.center}
        return super().describe() | {"compared_activations": compared}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the prompts.

        Raises:
            InputError: As :meth:`Watcher.setup`; a set that is missing, empty or lacks a field.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        assert isinstance(pl_module, LanguageModelModule)
        check_template(pl_module.tokenizer, self.form.template)
        for name, source in zip(SETS, (self.first, self.second), strict=True):
            self._prompts[name] = read_prompt_list(source, self.split, self.limit)
            if len(self._prompts[name]) < 2:
                raise InputError(f"ActivationOverlap.{name}: {source} has one prompt; expected two or more")

    def charts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return which curves one chart of TensorBoard holds, by title and group."""
        charts: dict[str, tuple[str, ...]] = {
            "overlap of the prompt sets": ("activation/overlap", "activation/overlap_chance"),
            "drift from the start": ("activation/drift_first", "activation/drift_second"),
        }
        return {"activations": charts}

    def begin(self, trainer: L.Trainer, module: LanguageModelModule) -> None:
        """Keep the states at the start, or take those of the start that the run goes on from.

        Raises:
            InputError: The file of a run that goes on is missing, or another.
        """
        path = self.folder(trainer) / "start.safetensors"
        self._start_sha256 = self._loaded.get("start_sha256")
        if self._start_sha256 is None:
            states = self._states(trainer, module)
            shapes = {name: tuple(value.shape) for name, value in states.items()}
            self._start_sha256 = store_tensors(path, shapes, states.__getitem__, trainer.is_global_zero)
        else:
            check_stored(path, self._start_sha256, list(SETS), checks=trainer.is_global_zero)
            states = TensorFile(path).read_all()
        self._start = self._factors(states)

    def look(self, trainer: L.Trainer, module: LanguageModelModule, step: int) -> dict[str, float]:
        """Compare the two sets' subspaces with each other and with the start."""
        states = self._states(trainer, module)
        broken = [name for name in SETS if not torch.isfinite(states[name]).all()]
        if broken:
            message = "hidden states of the %s prompts are not finite at step %d: overlaps are missing from there"
            self.warn_once("states", message, " and ".join(broken), step)
            return {}
        now = self._factors(states)
        pairs = {"overlap": (now["first"], now["second"])}
        pairs |= {f"drift_{name}": (now[name], self._start[name]) for name in SETS}
        overlaps = {name: [self._compare(*layer) for layer in zip(*pair, strict=True)] for name, pair in pairs.items()}
        hidden = now["first"][0].basis.shape[0]
        columns = {"overlap": [overlap.value for overlap in overlaps["overlap"]]}
        columns["overlap_chance"] = [
            overlap_moments(hidden, overlap.rank_first, overlap.rank_second).mean for overlap in overlaps["overlap"]
        ]
        columns |= {f"drift_{name}": [1 - overlap.value for overlap in overlaps[f"drift_{name}"]] for name in SETS}
        shown = {}
        for name, values in columns.items():
            tag = f"activation/{name}"
            shown[tag] = float(torch.tensor(values[1:], dtype=torch.float64).nanmean())
            by_layer = dict(zip(_layer_names(len(values)), values, strict=True))
            shown |= self.layered(tag, by_layer)
            if name != "overlap_chance":
                self.remember(tag, step, by_layer)
        ranks = [(overlap.rank_first, overlap.rank_second) for overlap in overlaps["overlap"][1:]]
        for name, mean in zip(SETS, torch.tensor(ranks, dtype=torch.float64).mean(dim=0).tolist(), strict=True):
            shown[f"activation/rank_{name}"] = mean
        return shown

    def state_dict(self) -> dict[str, Any]:
        """Keep the hash of the states that the run started with."""
        return {**super().state_dict(), "start_sha256": self._start_sha256}

    def _states(
        self, trainer: L.Trainer, module: LanguageModelModule
    ) -> dict[str, Float[Tensor, "layer prompt hidden"]]:
        """Read the states in the precision that the run trains in."""

        def compute(prompts: list[str]) -> list[Tensor]:
            with trainer.precision_plugin.forward_context():
                return prompt_states(
                    module.bare_model,
                    module.tokenizer,
                    prompts,
                    self.position,
                    self.batch_size,
                    self.form,
                    self.padding,
                )

        return {name: torch.stack(map_over_ranks(self._prompts[name], compute), dim=1) for name in SETS}

    def _factors(self, states: dict[str, Tensor]) -> dict[str, list[Factors]]:
        return {name: [state_factors(layer, self.center) for layer in layers] for name, layers in states.items()}

    def _compare(self, first: Factors, second: Factors) -> Overlap:
        return mode_subspace_overlap(first, second, [self.energy])[0]


def _layer_names(count: int) -> list[str]:
    return [EMBEDDING, *(f"layers.{layer:02d}" for layer in range(count - 1))]
