"""The organism's untrained network: a Llama small enough to learn its world in half a minute on one CPU thread."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from safety_subspaces.language.model import ModelSource
from safety_subspaces.organism.tokenizer import build_tokenizer


class OrganismModel(ModelSource):
    """Source of an untrained organism, for the pretraining stage.

    Args:
        seed: Seed of the initial weights.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        layers: Number of blocks.
        heads: Number of attention heads.
        max_length: Longest sequence, in tokens.
        initializer_range: Standard deviation of the initial weights. At the usual 0.02 so small and short-trained a
            model does not learn to copy a word from its prompt.
        rope_theta: Base of the rotary positions. At the usual 10,000 most of a 24-dimensional head hardly turns
            within forty tokens, and copying is not learnt either.
    """

    def __init__(
        self,
        seed: int = 0,
        hidden_size: int = 96,
        intermediate_size: int = 256,
        layers: int = 4,
        heads: int = 4,
        max_length: int = 96,
        initializer_range: float = 0.1,
        rope_theta: float = 100.0,
    ) -> None:
        self.seed = seed
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.layers = layers
        self.heads = heads
        self.max_length = max_length
        self.initializer_range = initializer_range
        self.rope_theta = rope_theta

    @property
    def path(self) -> str | None:
        """Nothing on disk: the weights come from the seed."""
        return None

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Build the tokenizer."""
        return build_tokenizer()

    def load_model(self) -> PreTrainedModel:
        """Draw the initial weights, in float32, without touching the global random state."""
        tokenizer = build_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            attn_implementation="sdpa",
            initializer_range=self.initializer_range,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LlamaForCausalLM(config)
