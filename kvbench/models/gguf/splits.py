"""How byte-pair vocabularies cut a text into words before merging, by ``tokenizer.ggml.pre``.

Source: the families' own tokenizers and llama.cpp's table of them (``llama-vocab.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}"
QWEN2 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_TAIL}"
TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}"
GPT4O = rf"{_CASED[0]}{_ENDINGS}?|{_CASED[1]}{_ENDINGS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_TAIL}"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True)
class Split:
    """One way of cutting.

    Attributes:
        patterns: Cut out one after the other; what a later one sees is what the earlier ones left.
        digits: Each digit is a word of its own, before the patterns.
        nfc: The text is composed (Unicode's form C) first.
        whole_words: A word that is a token is taken whole, whatever the merges say.
        bos: A text begins with BOS where the file does not say.
    """

    patterns: tuple[str, ...]
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False

    def pre_tokenizer(self) -> Any:
        """The same for the ``tokenizers`` library."""
        from tokenizers import Regex, pre_tokenizers

        digits = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        if self.patterns == (GPT2,):  # built in
            return pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*digits, *cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_BY_RULE: Mapping[Split, str] = {
    Split((GPT2,)): "gpt-2 phi-2 olmo mpt trillion",
    Split((GPT2,), digits=True): "smollm starcoder refact command-r codeshell exaone minerva-7b",
    Split((LLAMA3,), whole_words=True, bos=True): "llama3 llama-v3 llama-bpe falcon3 pixtral",
    Split((LLAMA3,)): "dbrx smaug-bpe",
    Split((QWEN2,), nfc=True): "qwen2 deepseek-r1-qwen megrez stablelm2",
    Split((TEKKEN,), whole_words=True, bos=True): "tekken",
    Split((GPT4O,)): "gpt-4o llama4",
    Split((_PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]")): "default",
}
SPLITS: Mapping[str, Split] = {name: split for split, names in _BY_RULE.items() for name in names.split()}
"""``tokenizer.ggml.pre`` → how it cuts. ``default`` is what a file without the key gets."""
