import shutil
from pathlib import Path

import pytest
import torch
from support.tiny_checkpoints import edit, save_adapter, save_llama, save_perturbed, weights_of
from torch.testing import assert_close

from safety_subspaces.algebra.factors import left_factors
from safety_subspaces.algebra.update import StreamedUpdate
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.weights.delta import open_update, update_of, warn_of_foreign_bases
from safety_subspaces.weights.update_checkpoint import open_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path):
    return save_llama(tmp_path / "base")


def test_deltas_are_differences_by_name(tmp_path, base):
    aligned = save_perturbed(base, tmp_path / "aligned", seed=1)
    tuned = save_perturbed(aligned, tmp_path / "tuned", seed=2, only="mlp")
    w0, wa, wt = (weights_of(folder) for folder in (base, aligned, tuned))
    models = [open_checkpoint(path) for path in (base, aligned, tuned)]
    assert set(models[1].names) == set(w0)
    for name in models[1].names:
        assert_close(update_of(models[1], models[0], name), wa[name] - w0[name])
        task = update_of(models[2], models[1], name)
        assert_close(task, wt[name] - wa[name])
        assert (task.abs().max() > 0) == ("mlp" in name)


def test_small_updates_survive_half_precision_storage(tmp_path, base):
    """1000 and 1001 in bfloat16 differ by 0 or 4; their stored values must be subtracted in float32."""
    tuned = tmp_path / "tuned"
    shutil.copytree(base, tuned)
    edit(Path(base), lambda _, value: torch.full_like(value, 1.0).half())
    edit(tuned, lambda _, value: torch.full_like(value, 1.0 + 2**-10).half())
    delta = update_of(open_checkpoint(str(tuned)), open_checkpoint(base), Q)
    assert delta.dtype == torch.float32
    assert_close(delta, torch.full_like(delta, 2**-10), rtol=0, atol=0)


def test_storage_of_different_types_is_subtracted_in_float32(tmp_path, base):
    tuned = tmp_path / "tuned"
    shutil.copytree(base, tuned)
    edit(tuned, lambda _, value: value.bfloat16())
    value = weights_of(base)[Q]
    assert_close(update_of(open_checkpoint(str(tuned)), open_checkpoint(base), Q), value.bfloat16().float() - value)


def test_update_of_an_adapter_upon_the_reference_keeps_its_rank(tmp_path, base):
    adapter = open_checkpoint(save_adapter(base, tmp_path / "adapter"))
    delta = update_of(adapter, open_checkpoint(base), Q)
    assert left_factors(delta).numerical_rank == 2
    assert_close(delta, adapter.read(Q) - open_checkpoint(base).read(Q), rtol=0, atol=1e-6)


def test_update_of_an_adapter_upon_another_base_holds_their_difference(tmp_path, base, caplog):
    other = save_perturbed(base, tmp_path / "other", seed=3)
    adapter, reference = open_checkpoint(save_adapter(other, tmp_path / "adapter")), open_checkpoint(base)
    assert_close(update_of(adapter, reference, Q), adapter.read(Q) - reference.read(Q))
    warn_of_foreign_bases(reference, {"lora": adapter})
    assert "lora is an update upon" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("culprit", ["base", "tuned"])
def test_non_finite_weights_name_tensor_and_checkpoint(tmp_path, base, bad, culprit, monkeypatch):
    tuned = save_perturbed(base, tmp_path / "tuned", seed=1)

    def spoil(_, value):
        value[3, 2] = bad
        return value

    edit({"base": Path(base), "tuned": Path(tuned)}[culprit], spoil, only=Q)
    with pytest.raises(InputError, match=f"tensor {Q} of .*{culprit} holds NaN"):
        update_of(open_checkpoint(tuned), open_checkpoint(base), Q)
    # of a difference that streams it is not known which of the two it is
    monkeypatch.setattr("safety_subspaces.weights.delta.STREAM_ABOVE", 1)
    streamed = open_update(open_checkpoint(tuned), open_checkpoint(base), Q)
    assert isinstance(streamed, StreamedUpdate)
    with pytest.raises(InputError, match=f"tensor {Q} of .* or .* holds NaN"):
        streamed.dense()
