"""What a model is asked and what it ends with, all of it out of its tokenizer: no id stands in code."""

from datetime import datetime
from typing import Any

from lgrpo.errors import UserError, first_line

BEGIN, END = "<think>", "</think>"
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}.\n"
# Many templates write today's date, some the time: the same seed would be another rollout in a second or tomorrow. This
# is Llama 3's own fallback, at midnight.
NOW = datetime(2024, 7, 26)
DATE = NOW.strftime("%d %b %Y")
_CODES = {
    flag + code: NOW.strftime(f"%{flag}{code}") for flag in ("", "-") for code in "aAbBcdDeFfGhHIjmMnpRSTtuUVwWxXyYzZ"
}
# `strftime_now` of a template, with NOW for now. transformers puts its own among the template's names, and rebuilds all
# that it is handed from plain data: only a macro in front of the template comes before it. Its last newline is trimmed.
CLOCK = f"""\
{{%- macro strftime_now(format) -%}}
{{%- set codes = {_CODES} -%}}
{{%- for part in format.replace('%%', '\\0').split('%') -%}}
{{%- set code = '' if loop.first else part[:2] if part[:2] in codes else part[:1] -%}}
{{{{- ((codes.get(code, '%' ~ code) if code else '') ~ part[code | length:]).replace('\\0', '%') -}}}}
{{%- endfor -%}}
{{%- endmacro %}}
"""
MOST = 1 << 20  # letters that a template may add, and a hundred for each of the problem's: no model has such a context
PLAIN_TEMPLATE = (  # for tokenizers that bring no chat template: the text of each turn, a line each
    "{% if bos_token %}{{ bos_token }}{% endif %}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
)


def marker_ids(tokenizer: Any, name: str) -> tuple[list[int], list[int]]:
    """Ids of `<think>` and `</think>`, one or several each. Raises UserError where the tokenizer cannot write them."""
    begin, end = (tokenizer.encode(text, add_special_tokens=False) for text in (BEGIN, END))
    for text, ids in ((BEGIN, begin), (END, end)):
        if not ids or tokenizer.unk_token_id in ids:
            raise UserError(f"{name}: the tokenizer cannot write {text}; add it as a token (`add_tokens`), and train")
    return begin, end


def prompt_text(tokenizer: Any, problem: str, name: str) -> str:
    """The user's turn with the problem, and what comes before the answer. Raises UserError where the template fails."""
    turn = [{"role": "user", "content": INSTRUCTION + problem}]
    try:
        template = tokenizer.get_chat_template()
        clock = CLOCK if "strftime_now" in template else ""
        text = tokenizer.apply_chat_template(
            turn, chat_template=clock + template, tokenize=False, add_generation_prompt=True, date_string=DATE
        )
        if len(text) > len(problem) * 100 + MOST:
            raise ValueError(f"it makes {len(text):,} letters of a problem of {len(problem):,}")
        return str(text)
    except Exception as error:  # a template is a small program of the checkpoint's, run in a sandbox
        raise UserError(f"{name}: its chat template fails ({first_line(error)}); mend chat_template.jinja") from error


def end_of_sequence(model: Any, tokenizer: Any) -> list[int]:
    """All ids that end a response: the tokenizer's and the model's, which often differ."""
    found: list[Any] = []
    for source in (tokenizer.eos_token_id, model.generation_config.eos_token_id, model.config.eos_token_id):
        found += source if isinstance(source, list) else [source] if source is not None else []
    if strange := [one for one in found if type(one) is not int]:
        raise UserError(
            f"eos_token_id must be a number or a list of them, not {str(strange[0])[:60]!r}; mend config.json"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    found = [one for one in found if 0 <= one < rows]  # -1 is some models' word for none
    if not found:
        raise UserError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    return sorted(set(found), key=found.index)
