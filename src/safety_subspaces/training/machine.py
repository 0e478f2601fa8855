"""What a run asks of the machine, held against what there is before Lightning looks for it."""

from typing import Any

import torch

from safety_subspaces.artefacts.errors import InputError

REMEDY = "run it where there are, or say --trainer.accelerator cpu, with --trainer.devices and a strategy for the CPU"


def check_accelerator(accelerator: Any, devices: Any) -> None:
    """Refuse GPUs where there are none, or fewer.

    Args:
        accelerator: What ``trainer.accelerator`` says.
        devices: What ``trainer.devices`` says: a number of devices, a list of their indices, or a word.

    Raises:
        InputError: This machine has fewer than were asked for.
    """
    if accelerator not in ("gpu", "cuda"):
        return
    there = torch.cuda.device_count()
    if accelerator == "gpu" and there == 0 and torch.backends.mps.is_available():
        return
    asked = _count(devices)
    if there >= max(1, asked):
        return
    wanted = f"{asked} {'GPU' if asked == 1 else 'GPUs'}" if asked else "a GPU"
    has = f"{there} that PyTorch sees" if there else "none that PyTorch sees"
    raise InputError(f"trainer.accelerator is {accelerator}, for {wanted}, and this machine has {has}; {REMEDY}")


def _count(devices: Any) -> int:
    """Return how many devices are asked for; 0 where a word leaves it to the machine."""
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([index for index in text.split(",") if index.strip()])
    return max(0, int(text)) if text.lstrip("-").isdigit() else 0
