"""``analyze.py export``: a training checkpoint, of one file or sharded by ZeRO, in Hugging Face format."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import is_occupied
from safety_subspaces.training.choices import ExportType

if TYPE_CHECKING:
    from safety_subspaces.constraint.held import HeldLeakage


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: The model folder.
        checkpoint: The checkpoint that it was made from.
        leakage: What the export leaks of each constraint of its run, measured on the written weights.
    """

    path: Path
    checkpoint: Path
    leakage: "tuple[HeldLeakage, ...]"

    def __str__(self) -> str:
        return "\n".join([*map(str, self.leakage), f"result: {self.path}, from {self.checkpoint}"])


def export(
    checkpoint: str,
    out: str,
    dtype: ExportType | None = None,
    overwrite: bool = False,
    trust_checkpoint: bool = False,
    trust_classes: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write the weights of a training checkpoint as a model folder: full, or an adapter where the run trained one.

    A checkpoint is read only inside a run folder of this suite, whose manifest matches its configuration. Neither is
    trusted for that: a run folder may come from somebody else, and no code that it holds or names is run unless an
    option says so.

    Args:
        checkpoint: ``runs/<study>/<stage>/checkpoints/step=….ckpt``: a file, or the folder that ZeRO writes; or the run
            folder itself, for its newest.
        out: The folder to make.
        dtype: Type of the exported weights; by default the one they are trained in (float32 under ZeRO).
        overwrite: Whether what is in ``out`` may be replaced.
        trust_checkpoint: Read a checkpoint that holds more than tensors and plain values, which runs its code.
        trust_classes: Import the classes that the manifest names, also those that are not of this suite.
        trust_remote_code: Run the Python that lies beside the model that the run began with, where the run did.

    Returns:
        What was written, with its leakage if the run had a constraint.

    Raises:
        InputError: Before anything is read: no such checkpoint, one cut short, or one outside a run folder of its own;
            something in the way of ``out``; a manifest that names code which is not trusted. Later: a checkpoint that
            holds other things than tensors, is damaged, or is not of that model.
    """
    from safety_subspaces.analysis.export.run import locate, module_of, state_of
    from safety_subspaces.constraint.held import read_leakage
    from safety_subspaces.training.export import export_model

    source, run = locate(Path(checkpoint))
    if is_occupied(Path(out)) and not overwrite:
        raise InputError(f"{out} exists and is not written over; choose another folder, or say --overwrite")
    module = module_of(run / "manifest.json", trust_classes, trust_remote_code)
    state = state_of(source, trust_checkpoint)
    module.configure_model()
    module.float()
    try:
        module.load_state_dict(state, strict=module.strict_loading)
    except RuntimeError as error:
        raise InputError(
            f"{source} is no checkpoint of the model that {run / 'manifest.json'} names: {error}"
        ) from error
    export_model(module.language_model, module.tokenizer, Path(out), dtype, run, overwrite=overwrite)
    return Exported(Path(out), source, read_leakage(Path(out)))
