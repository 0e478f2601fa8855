import pytest

from safety_subspaces.weights.names import canonical_name, layer_of, type_of

NAME = "model.layers.7.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "wrapped",
    [
        NAME,
        f"language_model.{NAME}",
        f"module.{NAME}",
        f"_forward_module.language_model.{NAME}",
        f"_forward_module.module.language_model.base_model.model.{NAME}",
        f"_orig_mod.{NAME}",
        "model._orig_mod.layers.7.self_attn._orig_mod.q_proj.weight",
        "module._orig_mod.language_model.base_model.model._orig_mod.model.layers.7.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.7.self_attn.q_proj.base_layer.weight",
        "language_model.base_model.model.model.layers.7.self_attn.q_proj.modules_to_save.default.weight",
    ],
)
def test_wrappers_do_not_change_the_name(wrapped):
    assert canonical_name(wrapped) == NAME
    assert layer_of(wrapped) == 7
    assert type_of(wrapped) == "q"


def test_canonical_name_is_idempotent_and_keeps_inner_modules():
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    assert canonical_name(name) == name == canonical_name(canonical_name(name))


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.embed_tokens.weight", -1, "embeddings"),
        ("lm_head.weight", -1, "head"),
        ("model.norm.weight", -1, "norm"),
        ("model.layers.12.input_layernorm.weight", 12, "norm"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "norm"),
        ("model.layers.0.self_attn.k_proj.bias", 0, "k"),
        ("model.layers.3.self_attn.v_proj.weight", 3, "v"),
        ("model.layers.3.self_attn.o_proj.weight", 3, "o"),
        ("model.layers.3.mlp.gate_proj.weight", 3, "gate"),
        ("model.layers.3.mlp.up_proj.weight", 3, "up"),
        ("model.layers.3.mlp.down_proj.weight", 3, "down"),
        ("transformer.h.5.ln_1.weight", 5, "norm"),
        ("transformer.h.5.attn.c_attn.weight", 5, "other"),
        ("transformer.wte.weight", -1, "embeddings"),
    ],
)
def test_layer_and_type_are_read_off_the_name(name, layer, kind):
    assert (layer_of(name), type_of(name)) == (layer, kind)
