"""Writing a trained network in the format that transformers and PEFT read."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.files import replacing_folder


def export_model(network: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Write a full model, or a PEFT adapter that names its base, with the tokenizer and its chat template.

    Weights are safetensors. The folder takes its name when it is whole; an earlier export of the same run is replaced.
    """
    with replacing_folder(target, overwrite=True) as folder:
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # PEFT writes a model card of empty headings.
        (folder / "README.md").unlink(missing_ok=True)
