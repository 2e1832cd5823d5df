"""The tokenizer that a GGUF header describes, as a fast tokenizer of ``transformers``.

Built from the header alone, so that it is the same whichever version of transformers is installed (some give a
byte-pair GGUF another family's tokenizer, with a BOS that the file itself switches off).
Source of the rules: llama.cpp (``tokenizer.ggml.pre`` and the defaults of each kind), the families' own tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError
from kvbench.models.gguf.header import Header, broken
from kvbench.models.gguf.splits import SPLITS, Split

TABLES = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4
"""tokenizer.ggml.token_type of tokens such as <|im_end|> or <think>, matched whole and never produced by merges."""
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""Special tokens: transformers' name and the header's entry that holds the id."""
READ = {*NAMED.values(), "model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token", "add_eos_token", "add_space_prefix"}
WITHOUT_EFFECT = {
    "add_padding_token", "cls_token_id", "eom_token_id", "eog_token_ids", "eot_token_id", "fim_mid_token_id", "fim_pad_token_id",
    "fim_pre_token_id", "fim_rep_token_id", "fim_sep_token_id", "fim_suf_token_id", "mask_token_id", "middle_token_id", "prefix_token_id",
    "seperator_token_id", "suffix_token_id", "token_type_count",
}  # fmt: skip
"""Ids of tokens that a chat or an editor puts in, never the tokenizer."""
NEUTRAL: Mapping[str, Any] = {"add_sep_token": False, "remove_extra_whitespaces": False}
SPACE = "\u2581"


def check_tokenizer(header: Header) -> None:
    """Refuse a tokenizer that is not understood, or one of its keys, by name.

    Raises:
        ModelError: names the kind, the rule of splitting, or the key.
    """
    values = header.values
    kind, split = values.get(TABLES + "model"), values.get(TABLES + "pre", "default")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and split not in SPLITS):
        raise _refused(header, f"({kind}, {split}) cannot be converted")
    for key, value in values.items():
        name = key.removeprefix(TABLES)
        if name == key or name in READ or name in WITHOUT_EFFECT or (name in NEUTRAL and value == NEUTRAL[name]):
            continue
        raise _refused(header, f"has a key {key!r} that is not understood")
    for needed in ("tokens", "merges" if kind == "gpt2" else "scores"):
        if TABLES + needed not in values:
            raise broken(header.path, f"key '{TABLES}{needed}' is missing")


def _refused(header: Header, why: str) -> ModelError:
    return ModelError(f"the tokenizer of '{header.path.name}' {why}", hint="use a safetensors checkpoint of the model")


def read_tokenizer(header: Header) -> Any:
    """The tokenizer of a header.

    Raises:
        ModelError: another kind of tokenizer or of word splitting, or a damaged table.
    """
    from transformers import PreTrainedTokenizerFast

    check_tokenizer(header)
    values = header.values
    tokens: list[str] = header.array(TABLES + "tokens")
    types: list[int] = header.array(TABLES + "token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise broken(header.path, f"{len(types):,} token types for {len(tokens):,} tokens")
    try:
        if values[TABLES + "model"] == "gpt2":
            tokenizer = _byte_level(tokens, header.array(TABLES + "merges"), SPLITS[values.get(TABLES + "pre", "default")])
        else:
            # llama.cpp's converter spells runs of spaces as such, where the vocabulary has its own sign for them
            tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
            tokenizer = _sentencepiece(tokens, header)
        _add_special(tokenizer, tokens, types)
        named = {name: _token(header, tokens, key) for name, key in NAMED.items()}
        _add_template(tokenizer, header, named)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise broken(header.path, f"its tokenizer cannot be built ({error})") from error
    template = values.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=template if isinstance(template, str) else None,
        **{name: token for name, token in named.items() if token is not None},
    )


def write_tokenizer(header: Header, into: Path) -> None:
    """Save the tokenizer of a header in a folder."""
    read_tokenizer(header).save_pretrained(into)


def _token(header: Header, tokens: Sequence[str], key: str) -> str | None:
    index = header.values.get(TABLES + key)
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise broken(header.path, f"key '{TABLES}{key}' is {index} of {len(tokens):,} tokens")
    return tokens[index]


def _byte_level(tokens: Sequence[str], merges: Sequence[str], split: Split) -> Any:
    """Byte-level BPE, as GPT-2 and its followers have it."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    pairs = [(left, right) for left, _, right in (pair.partition(" ") for pair in merges)]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, ignore_merges=split.whole_words))
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(tokens: Sequence[str], header: Header) -> Any:
    """BPE over characters, with bytes for what is unknown, as SentencePiece has it."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    # Gemma's scores do not follow the order of its merges; the order of its tokens does
    gemma = str(header.values.get("general.architecture")).startswith("gemma")
    scores = range(0, -len(tokens), -1) if gemma else header.array(TABLES + "scores")
    prefix = header.values.get(TABLES + "add_space_prefix", not gemma)
    model = BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=_merges(tokens, scores),
        unk_token=_token(header, tokens, "unknown_token_id"),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, best token first."""
    index = {token: i for i, token in enumerate(tokens)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in index and right in index:
                found.append((-score, index[left], index[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special(tokenizer: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    from tokenizers import AddedToken

    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    user = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    # runs of spaces are looked for where spaces were replaced already
    tokenizer.add_tokens([AddedToken(token, normalized=SPACE in token, special=False) for token in user])


def _add_template(tokenizer: Any, header: Header, named: Mapping[str, str | None]) -> None:
    """BOS and EOS around a text, where the file (or llama.cpp's rule for its kind) says so."""
    from tokenizers.processors import TemplateProcessing

    values = header.values
    split = SPLITS.get(values.get(TABLES + "pre", "default"))
    by_rule = values[TABLES + "model"] == "llama" or (split is not None and split.bos)
    asked = {
        "bos_token": values.get(TABLES + "add_bos_token", by_rule),
        "eos_token": values.get(TABLES + "add_eos_token", False),
    }
    before, after = (_asked(header, named, name) if wanted else [] for name, wanted in asked.items())
    if not before and not after:
        return
    second = [f"{part}:1" for part in (*before, "$B", *after)]
    tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *second],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((*before, *after))],
    )


def _asked(header: Header, named: Mapping[str, str | None], name: str) -> list[str]:
    token = named[name]
    if token is None:
        raise broken(header.path, f"its tokenizer adds a {name} and names none")
    return [token]
