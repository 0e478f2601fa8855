"""Train a language model: ``python train.py fit --config configs/organism/useful.yaml``; a LightningCLI."""

import sys
from pathlib import Path

import torch
import yaml

# A plain clone works without installing; `pip install -e .` makes this line idle.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks import RunBoard, RunRecord
from safety_subspaces import command_line
from safety_subspaces.training.modules.base import LanguageModelModule
from safety_subspaces.training.run_folder import RunPlan, latest_checkpoint, open_run, plan_run, trained_checkpoint

TRY = """try:
  python train.py fit --config configs/organism/pretrain.yaml
  python train.py fit --config configs/organism/pretrain.yaml --print_config
  python train.py fit --help"""


class TrainCLI(LightningCLI):
    """Lightning's CLI with a run folder: opened before the fit, never written over, resumed only on request."""

    plan: RunPlan | None = None
    record = RunRecord()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run folder."""
        parser.add_argument("--study", type=str | None, default=None, help="Folder that a study's runs share.")
        parser.add_argument("--run_dir", type=str, default="runs/unnamed", help="Folder of this run.")
        parser.add_argument("--cpu_threads", type=int | None, default=None, help="Threads of PyTorch on the CPU.")
        parser.add_argument("--resume", action="store_true", help="Go on with a run that stopped.")
        parser.add_argument("--archive", action="store_true", help="Move a run that is in the way aside.")

    def before_instantiate_classes(self) -> None:
        """Check the run folder before anything is built."""
        options = self.config[self.subcommand]
        options.trainer.default_root_dir = options.run_dir
        torch.set_num_threads(options.cpu_threads or torch.get_num_threads())
        if self.subcommand != "fit":  # measures the run's trained weights, and adds nothing to its events
            options.trainer.logger = False
            options.ckpt_path = options.ckpt_path or str(trained_checkpoint(Path(options.run_dir)))
        elif rank_zero_only.rank == 0:
            config = yaml.safe_load(self._parser("fit").dump(options))
            self.plan = plan_run(Path(options.run_dir), config, options.resume, options.archive)
            if self.plan.complete:
                print(f"{options.run_dir} is already complete with this configuration")
                sys.exit()

    def before_fit(self) -> None:
        """Open the run folder, and resume from its newest checkpoint where that was asked for."""
        # First: it takes back what an interrupted try has logged, before any other callback logs anew.
        self.trainer.callbacks.sort(key=lambda callback: not isinstance(callback, RunBoard))
        if self.plan is not None:
            open_run(self.plan)
            self.record.begin(fresh=self.plan.checkpoint is None)
        if self.config.fit.resume and (self.plan is None or self.plan.checkpoint):
            self.config_init.fit.ckpt_path = latest_checkpoint(Path(self.config.fit.run_dir))


def main() -> None:
    """Parse the command line and run the subcommand."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
        print(TRY, end="\n\n")
    TrainCLI(
        LanguageModelModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
        save_config_callback=None, seed_everything_default=0, parser_kwargs={"parser_mode": command_line.PARSER_MODE},
        trainer_defaults={"callbacks": [RunBoard(), TrainCLI.record]},
    )  # fmt: skip


if __name__ == "__main__":
    command_line.configure()
    command_line.run(main)
