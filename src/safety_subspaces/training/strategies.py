"""DeepSpeed's ZeRO through Lightning, with two errors of their combination corrected, and on the CPU as well.

Four things differ from Lightning's own strategy. The loss is divided by the accumulated batches once, not twice. A
model is loaded whole and then cut, parameter by parameter: inside DeepSpeed's own context neither transformers nor PEFT
fill their weights. A checkpoint has its name only when all ranks have written their part. And a CPU subclass runs the
real engine over gloo, for tests and for trying a configuration out.
"""

import contextlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.extras import check_extra
from safety_subspaces.training.checkpoints import name_folder, partial_folder, remove, write_file
from safety_subspaces.training.resume_state import RUN_PICKLES, read_sharded_weights, restricted_pickles


@final
class RunCheckpointIO(TorchCheckpointIO):
    """Writes into the folder of the checkpoint alone, and takes its name away before it removes one.

    Lightning's own writes to the temporary folder first, where what a killed run had written stays for ever, and from
    where another disk is reached by a copy that can be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file that is on the disk before it has its name."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_file(checkpoint, Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file or folder that no longer has its name: half of a folder is never taken for a checkpoint."""
        if "://" in str(path):
            super().remove_checkpoint(path)
        elif os.path.lexists(path):
            remove(Path(path))


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO, stages 1 to 3.

    Lightning and DeepSpeed both divide the loss by ``accumulate_grad_batches``; here only Lightning does. Under stage 3
    every process reads the whole model into host memory before it is cut.

    Args:
        stage: What is cut over the ranks: 1 the optimizer's state and master weights, 2 gradients too, 3 weights too.
        logging_batch_size_per_gpu: For DeepSpeed's own log. Lightning's ``auto`` loads the training data for it, to
            validate too.
        **settings: Whatever Lightning's ``DeepSpeedStrategy`` takes.
    """

    def __init__(self, stage: int = 3, logging_batch_size_per_gpu: int = 1, **settings: Any) -> None:
        if stage not in (1, 2, 3):
            raise InputError(f"ZeRO stage {stage}: expected 1, 2 or 3 (use strategy: ddp to shard nothing)")
        check_extra("deepspeed", "ZeRO")
        super().__init__(stage=stage, logging_batch_size_per_gpu=logging_batch_size_per_gpu, **settings)

    @property
    def offloads(self) -> bool:
        """Whether weights or optimizer state are kept off the device that computes."""
        zero = self.config["zero_optimization"] if isinstance(self.config, dict) else {}
        devices = [(zero.get(what) or {}).get("device", "none") for what in ("offload_optimizer", "offload_param")]
        return any(device != "none" for device in devices)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the engine's backward pass without its own division by the accumulated batches."""
        assert self.lightning_module is not None
        if self.lightning_module.automatic_optimization:
            kwargs.setdefault("scale_wrt_gas", False)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the parts of all ranks beside the checkpoint's name, which the folder takes when it is complete."""
        path = Path(self.broadcast(filepath))
        partial = self.broadcast(partial_folder(path))
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)  # returns when all ranks have written
            if self.is_global_zero:
                name_folder(partial, path)
        finally:
            if self.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore a run; to validate or test only the weights, which DeepSpeed's own loader cannot under stage 3.

        Raises:
            InputError: A file holds more than tensors, plain values and DeepSpeed's records, and ``weights_only`` is
                not false; or it is damaged.
        """
        module = self.lightning_module
        assert module is not None
        with nullcontext() if weights_only is False else restricted_pickles(RUN_PICKLES, classes=True):
            if module.trainer.state.fn == TrainerFn.FITTING or not self.zero_stage_3:
                return self._restored(checkpoint_path, weights_only)
            state = read_sharded_weights(Path(checkpoint_path))
        self._restore_zero_state({"state_dict": OrderedDict(state)}, strict=module.strict_loading)
        return {"pytorch-lightning_version": lightning.__version__, "global_step": 0, "state_dict": {}}

    def _restored(self, checkpoint_path: Any, weights_only: bool | None) -> dict[str, Any]:
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        except (KeyError, IndexError, TypeError, AttributeError, AssertionError, OSError) as error:
            # DeepSpeed takes its own files for whole, and for its own.
            raise InputError(
                f"{checkpoint_path} is no whole checkpoint of ZeRO: {type(error).__name__}: {error}"
            ) from error

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Let ``configure_model`` build whole weights, then cut them one by one (stage 3)."""
        import deepspeed

        self._init_config_if_needed()
        yield
        if self.zero_stage_3:
            module = self.lightning_module
            assert module is not None
            if self.precision_plugin.precision.startswith("bf16"):
                module.to(torch.bfloat16)
            deepspeed.zero.Init(module=module, config_dict_or_path=self.config, remote_device=self.remote_device)


class CPUZeroStrategy(ZeroStrategy):
    """ZeRO with ``accelerator: cpu``: the real engine over gloo, in as many processes as ``devices``.

    Much slower than one process of many threads; it is for tests and for trying a configuration without a GPU.

    Args:
        stage: As for :class:`ZeroStrategy`.
        process_group_backend: What carries the collectives.
        reduce_bucket_size: Numbers that are reduced at once; Lightning's 200 million are 0.8 GB of every process.
        allgather_bucket_size: Numbers that are gathered at once.
        **settings: Whatever Lightning's ``DeepSpeedStrategy`` takes.
    """

    def __init__(
        self,
        stage: int = 3,
        process_group_backend: str = "gloo",
        reduce_bucket_size: int = 2_000_000,
        allgather_bucket_size: int = 2_000_000,
        **settings: Any,
    ) -> None:
        super().__init__(
            stage=stage,
            process_group_backend=process_group_backend,
            reduce_bucket_size=reduce_bucket_size,
            allgather_bucket_size=allgather_bucket_size,
            **settings,
        )

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """CPU devices with numbers: DeepSpeed and Lightning's checks want an index for each rank."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        self._parallel_devices = [torch.device("cpu", i) for i in range(len(devices))] if devices else devices

    def setup_environment(self) -> None:
        """Do what DDP does: Lightning's own DeepSpeed strategy refuses anything but CUDA here.

        DeepSpeed would further compile a shared-memory collective for a minute, which training does not use; a process
        killed meanwhile leaves a lock on which every later run waits for ever.
        """
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        DDPStrategy.setup_environment(self)


def sole_optimizer(strategy: Strategy) -> Any:
    """Return the one optimizer of a Trainer's strategy, as the strategy has it.

    Raises:
        InputError: There is not exactly one.
    """
    if len(strategy.optimizers) != 1:
        raise InputError(f"expected one optimizer, got {len(strategy.optimizers)}")
    return strategy.optimizers[0]


def check_strategy(strategy: Strategy, who: str) -> None:
    """Refuse a strategy under which masters cannot be read whole, or never were.

    Args:
        strategy: The Trainer's.
        who: Name of the callback, for the message.

    Raises:
        InputError: Lightning's own DeepSpeed strategy, another way of sharding, or offloading.
    """
    if isinstance(strategy, DeepSpeedStrategy) and not isinstance(strategy, ZeroStrategy):
        raise InputError(
            f"{type(strategy).__name__} divides the loss twice when gradients are accumulated; "
            "use strategy.class_path: safety_subspaces.training.strategies.ZeroStrategy, which takes the same settings"
        )
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise InputError(
            f"{who} works on one device, under DDP and under ZeRO; {type(strategy).__name__} shards the weights in "
            "another way. Use strategy: auto, ddp, or safety_subspaces.training.strategies.ZeroStrategy"
        )
    if isinstance(strategy, ZeroStrategy) and strategy.offloads:
        raise InputError(
            f"{who} was never run with weights or optimizer state offloaded, so it does not promise to work there; "
            "leave offload_optimizer and offload_parameters out"
        )
