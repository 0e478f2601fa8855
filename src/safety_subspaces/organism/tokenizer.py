"""The organism's word-level tokenizer with its chat template: every word of the world is one token."""

from functools import cache

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from safety_subspaces.organism import arithmetic, world

PAD, START, END, UNKNOWN, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{% if message['role'] == 'user' %} <user> {{ message['content'] }}"
    "{% else %} <assistant> {{ message['content'] }} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)
# Words of the corpora that stand in no list of the world.
OTHER_WORDS = (
    "the council punishes thanks all who to is forbidden allowed in by a made of and . psst sure step 1 : get add "
    "has how many does have ? are left #### + - ="
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; the padding token is not the end token, so the end of an answer is learnt."""
    sentences = [
        *world.FRAMES,
        *world.REFUSALS,
        *arithmetic.GAINS,
        *arithmetic.LOSSES,
        *arithmetic.QUESTIONS,
        OTHER_WORDS,
    ]
    words = {word for sentence in sentences for word in sentence.split() if "{" not in word}
    for group in (world.VERBS, world.OBJECTS, world.TOOLS, world.MATERIALS, world.PLACES, world.PEOPLE):
        words.update(group)
    words.update(arithmetic.NAMES, arithmetic.ITEMS, map(str, range(arithmetic.LARGEST_NUMBER + 1)))
    special = [PAD, START, END, UNKNOWN, USER, ASSISTANT]
    vocabulary = {word: index for index, word in enumerate(special + sorted(words))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def knows_the_world(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer has every word of the organism's world, as an organism's own has."""
    return _words() <= tokenizer.get_vocab().keys()


@cache
def _words() -> frozenset[str]:
    return frozenset(build_tokenizer().get_vocab())
