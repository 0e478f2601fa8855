"""How a run's weight update moved through training: how far, how straight, where it turned, what it came to share."""

from typing import TYPE_CHECKING

from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, check_result_free, recorded
from safety_subspaces.artefacts.screen import View

if TYPE_CHECKING:
    import pandas as pd

# A tenth of the rank, one of the fractions of arXiv 2505.14185.
RANK = RankRule(fraction=0.1)
VIEW = View(
    columns=("step", "frobenius_norm", "path_length", "straightness", "cos_to_final", "energy_fraction",
             "energy_fraction_chance", "rms_angle_radians"),
    where=lambda table: table["level"] == "all",
    says="The whole update at each snapshot: how far, how straight, and its share in the alignment subspace.",
)  # fmt: skip


def trajectory(
    run: str,
    out: str,
    base: str | None = None,
    aligned: str | None = None,
    subspace: str | None = None,
    rank: RankRule | None = None,
    others: dict[str, str] | None = None,
    energy: float = 0.9,
    draws: int = 20,
    seed: int = 0,
    overwrite: bool = False,
) -> "pd.DataFrame":
    """Follow a run's weight update through the snapshots that callbacks.WeightDeltaSnapshot has written.

    Per step, for all weights, each layer and each type of tensor: path_length sums ||d_t - d_(t-1)|| over snapshots,

    from zero at step 0 where updates count from the start of the run, else from the first snapshot; straightness is
    the norm of the whole displacement over it (1: a straight line); step_norm_per_step and speed_radians_per_step are
    the last move over the optimizer steps between. The followed subspace is spanned by each matrix's leading left
    singular vectors, and rms_angle_radians is between those of this and the previous snapshot, sqrt(mean theta_i^2) of
    the principal angles: 0 where it stayed, at most pi / 2; the columns with chance are of random subspaces of the same
    ranks. Norms and energies are summed over tensors before dividing; ranks, angles and overlaps are means over the
    matrices that have one (n_matrices is the number that moved). Weights that are not 2-D count in norms and energies
    alone. Beside the table: overlaps with other updates, a table per tensor, a figure, and change points: where the
    level of a series changes, with the move from one snapshot to the next there beside the usual one. They describe and
    are not tested: a steady trend is a change of level too, and series that are cumulative, or follow the learning
    rate, have no null that holds.

    Args:
        run: Run folder with deltas/, or the folder that holds the snapshots.
        out: Folder for the results.
        base: Folder of the base model; with aligned, energies inside their alignment subspace are measured.
        aligned: Folder of the aligned model.
        subspace: Or a file of analyze.py subspace.
        rank: Directions of each matrix that are followed, and of the subspace of base and aligned: exactly one of
            count, fraction and energy; by default a fraction of 0.1.
        others: Label and folder of models whose update from the run's reference is compared at each step.
        energy: Share of each update's energy, in (0, 1], at which the overlap cuts its space.
        draws: Pairs of random subspaces that make the chance level of an angle.
        seed: Seed of the draws.
        overwrite: Replace earlier results in out.

    Returns:
        One row for each part and step.

    Raises:
        InputError: Before anything is computed: an argument out of range, fewer than two snapshots or ones that do not
            belong together, models of another shape, a reference that has changed. Later: weights that are NaN or
            infinite.
    """
    rank, others = rank or RANK, others or {}
    arguments = recorded(locals())
    _check_arguments(energy, draws)
    check_result_free(out, "trajectory", overwrite)

    from safety_subspaces.analysis.trajectory.figure import draw_trajectory
    from safety_subspaces.analysis.trajectory.inputs import OtherUpdates, open_alignment, open_run
    from safety_subspaces.analysis.trajectory.measures import Settings
    from safety_subspaces.analysis.trajectory.run import change_table, find_changes, follow, summarise, tables_of

    snapshots = open_run(run)
    alignment = open_alignment(snapshots[0], subspace, base, aligned, rank)
    updates = OtherUpdates(snapshots[0], others)
    settings = Settings(rank, energy, draws, seed, snapshots[0].counts_from_start)
    models = [path for path in (subspace, base, aligned) if path is not None]
    inputs = [*(str(snapshot.path) for snapshot in snapshots), *models, *updates.inputs]
    with ResultFolder(out, "trajectory", arguments, inputs, overwrite) as results:
        if alignment is None:
            results.leave_out("energy_fraction", "no subspace, and no base with aligned, was given: it is NaN")
        tracks = follow(snapshots, alignment, updates, settings, results)
        steps = [snapshot.step for snapshot in snapshots]
        table, overlaps, tensors = tables_of(tracks, steps, list(others), settings.from_start)
        change_points = find_changes(table, overlaps, results)
        changes = change_table(change_points)
        results.summary = summarise(table, snapshots, change_points)
        for name, frame in (("table", table), ("overlaps", overlaps), ("tensors", tensors), ("change_points", changes)):
            results.write_table(frame, name)
        draw_trajectory(results.folder / "trajectory.png", table, overlaps, changes)
    return table


def _check_arguments(energy: float, draws: int) -> None:
    if not 0 < energy <= 1:
        raise InputError(f"an energy share must be in (0, 1], got {energy}")
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
