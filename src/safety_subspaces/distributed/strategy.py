"""DeepSpeed's ZeRO through Lightning, with what both get wrong together mended, and on the CPU as well.

Three things differ from Lightning's own strategy. The loss is divided by the accumulated batches once, not twice. A
model is loaded whole and then cut, parameter by parameter: inside DeepSpeed's own context neither transformers nor PEFT
fill their weights. And a CPU subclass runs the real engine over gloo, for tests and for trying a configuration out.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor

from safety_subspaces.errors import InputError


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO, stages 1 to 3.

    Lightning and DeepSpeed both divide the loss by ``accumulate_grad_batches``; here only Lightning does. Under stage 3
    every process reads the whole model into host memory before it is cut.

    Args:
        stage: What is cut over the ranks: 1 the optimizer's state and master weights, 2 gradients too, 3 weights too.
        **settings: Whatever Lightning's ``DeepSpeedStrategy`` takes.
    """

    def __init__(self, stage: int = 3, **settings: Any) -> None:
        if stage not in (1, 2, 3):
            raise InputError(f"ZeRO stage {stage}: expected 1, 2 or 3 (use strategy: ddp to shard nothing)")
        super().__init__(stage=stage, **settings)

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
        **settings: Whatever Lightning's ``DeepSpeedStrategy`` takes.
    """

    def __init__(self, stage: int = 3, **settings: Any) -> None:
        settings.setdefault("process_group_backend", "gloo")
        # DeepSpeed's defaults of 200 million numbers are buffers of 0.8 GB a process.
        settings.setdefault("reduce_bucket_size", 2_000_000)
        settings.setdefault("allgather_bucket_size", 2_000_000)
        super().__init__(stage=stage, **settings)

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
