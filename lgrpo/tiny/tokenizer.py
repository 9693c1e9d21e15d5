r"""The tiny model's tokenizer: one token per word and number of the generator, and bytes for everything else.

A text is cut into pieces (a number of at most two digits, a word, each with the space before it, or one character).
A piece that is in the vocabulary is one token, any other falls apart into its UTF-8 bytes, so every text round-trips.
"123" is "12" then "3"; " 12" in a story and "12" in a chain are two tokens, which saves a token per number.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lgrpo.arithmetic import words

# The line every prompt starts with is one token of its own. It is the same in every prompt and carries nothing, so
# spelling it out would only make a tiny model's prompts twice as long. Lengths reported for this model are those of
# problem and response; a real model's tokenizer spells the line out.
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}.\n"
PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
THINK = ["<think>", "</think>"]
LARGEST = 99  # the largest number that is one token
CONTEXT = 2048  # positions

PIECES = r"\\boxed\{| ?<<|>>| ?[0-9]{1,2}| ?[A-Za-z]+|[\s\S]"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, built from the generator's words alone; about 600 tokens, ids in a fixed order."""
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 letters, one for each byte
    pieces = [r"\boxed{", "<<", " <<", ">>"]
    pieces += [space + str(number) for space in ("", " ") for number in range(LARGEST + 1)]
    pieces += [" " + word for word in words()]
    pieces += [word for word in words() if word[0].isupper()]  # a problem starts right after the instruction's newline
    letters = [to_letters.pre_tokenize_str(piece)[0][0] for piece in pieces]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(alphabet + letters))}

    # No merges: a piece is found whole (`ignore_merges`) or stays bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), to_letters])
    tokenizer.decoder = decoders.ByteLevel()
    # Not special: `decode(skip_special_tokens=True)` would drop the end of the chain from the text.
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in [*THINK, INSTRUCTION]])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (PAD, USER, ASSISTANT, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
