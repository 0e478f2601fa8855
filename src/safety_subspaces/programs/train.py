"""Trains a language model: ``python train.py fit --config organism/useful``; a LightningCLI."""

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks import RunBoard, RunGuard, RunRecord
from safety_subspaces import command_line
from safety_subspaces.artefacts.description import Role, check_inputs
from safety_subspaces.artefacts.trust import check_trust, is_said
from safety_subspaces.command_line.flags import allow_bare_flags
from safety_subspaces.command_line.output import is_chosen, reserved_output, show
from safety_subspaces.programs.parser import ProgramParser, arguments_or_help
from safety_subspaces.training.machine import check_accelerator
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.resume_state import RUN_PICKLES, read_state, restricted_pickles
from safety_subspaces.training.run_folder import is_complete, latest_checkpoint, plan_run, trained_checkpoint
from safety_subspaces.training.strategies import RunCheckpointIO

logger = logging.getLogger(__name__)
TRY = """try:
  python train.py fit --config configs/organism/pretrain.yaml
  python train.py fit --config configs/organism/pretrain.yaml --print_config
  python train.py fit --help"""


class TrainParser(ProgramParser, LightningArgumentParser):
    """Lightning's parser, with what both programs share."""


class TrainCLI(LightningCLI):
    """Lightning's CLI with a run folder: opened before the fit, never written over, resumed only on request."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.reserved = ExitStack()
        super().__init__(*args, **options)
        self.show_result()

    def show_result(self) -> None:
        """Print what the run has come to, on rank zero."""
        from safety_subspaces.training.run_summary import summarise_run  # a help text need not wait for it

        self.reserved.close()
        if rank_zero_only.rank == 0 and self.subcommand == "fit":  # type: ignore[attr-defined]
            show("fit", summarise_run(Path(self.config.fit.run_dir)))
        elif rank_zero_only.rank == 0 and is_chosen("json"):  # type: ignore[attr-defined]
            measured = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            show(str(self.subcommand), measured, self.config[self.subcommand].run_dir)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run folder."""
        parser.add_argument("--study", type=str | None, default=None, help="Folder that a study's runs share.")
        parser.add_argument("--role", type=Role, default="tuned", help="What the run makes of the model in its study.")
        parser.add_argument("--run_dir", type=str, default="runs/unnamed", help="Folder of this run.")
        parser.add_argument("--cpu_threads", type=int | None, default=None, help="Threads of PyTorch on the CPU.")
        parser.add_argument("--collective_timeout", type=float, default=600, help="Seconds a rank may be silent.")
        parser.add_argument("--resume", type=bool, default=False, help="Go on with a run that stopped.")
        parser.add_argument("--archive", type=bool, default=False, help="Move a run that is in the way aside.")
        parser.add_argument(
            "--plugins",
            type=str | None,
            default=None,
            help="Folders whose Python may be imported by class_path; on the command line alone.",
        )
        allow_bare_flags(parser)

    def _parse_ckpt_path(self) -> None:
        """Take nothing from a checkpoint: Lightning's own lets one name the module's class and arguments."""

    def before_instantiate_classes(self) -> None:
        """Put the run's files into its folder."""
        check_trust(self.config.as_dict(), sys.argv)
        if self.subcommand == "fit" or is_chosen("json"):  # else Lightning prints what was measured
            self.reserved.enter_context(reserved_output())
        options = self.config[self.subcommand]
        check_accelerator(options.trainer.accelerator, options.trainer.devices)
        options.trainer.default_root_dir = options.run_dir
        torch.set_num_threads(options.cpu_threads or torch.get_num_threads())
        if self.subcommand != "fit":  # measures the run's trained weights, and adds nothing to its events
            options.trainer.logger = False
            options.ckpt_path = options.ckpt_path or str(trained_checkpoint(Path(options.run_dir)))
        checkpoint = options.get("ckpt_path")
        if checkpoint and Path(checkpoint).is_file():
            read_state(Path(checkpoint), RUN_PICKLES, is_said(sys.argv, "weights_only", value=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer whose ranks end together, and whose checkpoints are whole or not there."""
        trainer = super().instantiate_trainer(**kwargs)
        guard = RunGuard(self.config[self.subcommand].collective_timeout)
        guard.expect(trainer.num_devices * trainer.num_nodes)
        trainer.callbacks.insert(0, guard)  # type: ignore[attr-defined]
        if is_chosen("quiet") and trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.disable()
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = RunCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Check and open the run folder, and resume from its newest checkpoint where that was asked for."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.sort(key=lambda c: not isinstance(c, RunBoard))  # first: it takes back what a try logged
        options, plan = self.config.fit, None
        config = yaml.safe_load(self.parser.dump(self.config))["fit"]
        parts = [self.model, self.datamodule, *callbacks]  # made, and none has loaded anything yet
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            if options.resume and is_complete(Path(options.run_dir), config, parts):
                sys.exit()
        else:
            plan = plan_run(Path(options.run_dir), config, parts, options.resume, options.archive)
            if plan.complete:
                logger.info("%s is already complete with this configuration", options.run_dir)
                self.show_result()
                sys.exit()
            self.model.check_source()
            check_inputs(parts)
            next(callback for callback in callbacks if isinstance(callback, RunRecord)).begin(plan)
        if options.resume:
            found = latest_checkpoint(Path(options.run_dir)) if plan is None else plan.checkpoint
            self.config_init.fit.ckpt_path = found or self.config_init.fit.ckpt_path


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Parse the command line and run the subcommand.

    Args:
        arguments: The command line without the program; that of this process by default.
        program: How the program is called, for its messages; by its file by default.
    """
    arguments = arguments_or_help(arguments, TRY)
    trusted = is_said(sys.argv, "weights_only", value=False)
    with nullcontext() if trusted else restricted_pickles(RUN_PICKLES):
        TrainCLI(
            LanguageModelModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            save_config_callback=None, seed_everything_default=0, parser_class=TrainParser,
            parser_kwargs={"parser_mode": command_line.PARSER_MODE, "allow_abbrev": False, "prog": program},
            trainer_defaults={"callbacks": [RunBoard(), RunRecord()]}, args=arguments,
        )  # fmt: skip
