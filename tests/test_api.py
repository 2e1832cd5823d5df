"""``kvbench.make_cache`` on a model that goes on serving other caches as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import kvbench
from kvbench.errors import UnknownName, UnsupportedModel, UsageError

pytestmark = pytest.mark.fast
NEW = 8
METHODS = ("kivi:bits=2,group=16,residual=32", "snapkv:window=16", "hybrid:group=16,window=16", "v_lowrank:rank=4", "int4:group=16")


@pytest.fixture
def model(family: str, tiny_model: Callable[..., Any]) -> Any:
    return tiny_model(family)


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randint(3, 128, (2, 96), generator=torch.Generator().manual_seed(0))


def generate(model: Any, prompt: torch.Tensor, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens, and the logits of every step."""
    how.setdefault("attention_mask", torch.ones_like(prompt))
    how |= {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    out = model.generate(prompt, return_dict_in_generate=True, output_logits=True, **how)
    return out.sequences, torch.stack(out.logits)


def cache_of(model: Any, method: str) -> Any:
    return kvbench.make_cache(model, method, calibration_tokens=torch.randint(3, 128, (256,), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("method", METHODS)
def test_generate_stores_fewer_bytes_than_the_baseline(method: str, model: Any, prompt: torch.Tensor) -> None:
    stored = {}
    for name in ("baseline", method):
        cache = cache_of(model, name)
        tokens, _ = generate(model, prompt, past_key_values=cache)
        assert tokens.shape == (2, 96 + NEW)
        assert cache.get_seq_length() == 96 + NEW - 1  # the last token is never read
        stored[name] = cache.ledger().stored
    assert stored[method] < stored["baseline"]


def test_the_baseline_generates_what_the_model_does(model: Any, prompt: torch.Tensor) -> None:
    tokens, logits = generate(model, prompt)
    own_tokens, own_logits = generate(model, prompt, past_key_values=cache_of(model, "baseline"))
    assert torch.equal(own_tokens, tokens)
    torch.testing.assert_close(own_logits, logits, rtol=0, atol=1e-5)  # generate hands logits out in float32


@pytest.mark.parametrize("padding", [0, 9])
def test_other_caches_give_what_they_gave_before(padding: int, model: Any, prompt: torch.Tensor) -> None:
    from transformers import DynamicCache

    mask = torch.ones_like(prompt)
    mask[1, :padding] = 0
    before = generate(model, prompt, attention_mask=mask, past_key_values=DynamicCache())
    generate(model, prompt, attention_mask=mask, past_key_values=cache_of(model, "snapkv:window=16"))
    after = generate(model, prompt, attention_mask=mask, past_key_values=DynamicCache())
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_no_cache_and_a_static_one_too(model: Any, prompt: torch.Tensor) -> None:
    whole, static = model(prompt, use_cache=False).logits, generate(model, prompt, cache_implementation="static")
    cache_of(model, "int4:group=16")
    assert torch.equal(model(prompt, use_cache=False).logits, whole)
    again = generate(model, prompt, cache_implementation="static")
    assert torch.equal(again[0], static[0])
    torch.testing.assert_close(again[1], static[1], rtol=0, atol=1e-5)


def sliding_model(window: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "mistral", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=2, intermediate_size=64,
        vocab_size=128, sliding_window=window, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)


@pytest.mark.parametrize("padding", [0, 9])
def test_a_sliding_model_slides_as_before(padding: int, prompt: torch.Tensor) -> None:
    from transformers import DynamicCache

    model, mask = sliding_model(40), torch.ones_like(prompt)
    mask[1, :padding] = 0
    before = generate(model, prompt, attention_mask=mask, past_key_values=DynamicCache(config=model.config))
    cache_of(model, "knorm")
    after = generate(model, prompt, attention_mask=mask, past_key_values=DynamicCache(config=model.config))
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-5)


def test_a_compressed_cache_does_not_go_beyond_a_sliding_window(prompt: torch.Tensor) -> None:
    model = sliding_model(100)
    with pytest.raises(UnsupportedModel, match="sliding layers see 100 tokens, and 101 have been read"):
        generate(model, prompt, past_key_values=cache_of(model, "knorm"))
    assert generate(model, prompt[:, :80], past_key_values=cache_of(model, "knorm"))[0].shape == (2, 80 + NEW)


def test_a_padded_row_gives_what_it_gives_alone(model: Any, prompt: torch.Tensor) -> None:
    mask = torch.ones_like(prompt)
    mask[1, :30] = 0
    tokens, _ = generate(model, prompt, attention_mask=mask, past_key_values=cache_of(model, "tova"))
    alone, _ = generate(model, prompt[1:, 30:], past_key_values=cache_of(model, "tova"))
    assert torch.equal(tokens[1, 96:], alone[0, 66:])


PIECES = ("snapkv:window=16", "expected_attention", "h2o", "kivi:bits=2,group=16,residual=32", "adakv:window=16", "baseline", "minicache")


@pytest.mark.parametrize(("method", "chunk"), [*((m, 32) for m in PIECES), ("snapkv:window=16", 95), ("tova:decode=hold", 1)])
def test_a_prompt_in_pieces_is_compressed_as_one_that_came_whole(
    method: str, chunk: int, prompt: torch.Tensor, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("llama", torch.float64)
    whole, pieces, own = (cache_of(model, method) for _ in range(3))
    tokens, logits = generate(model, prompt, past_key_values=whole)
    if not torch.equal(generate(model, prompt, prefill_chunk_size=chunk)[0], generate(model, prompt)[0]):
        with pytest.raises(UsageError, match="to position"):  # transformers 5.2 misplaces pieces, whatever the cache
            generate(model, prompt, past_key_values=pieces, prefill_chunk_size=chunk)
        return
    again, same = generate(model, prompt, past_key_values=pieces, prefill_chunk_size=chunk)
    assert torch.equal(again, tokens)
    torch.testing.assert_close(same, logits, rtol=0, atol=1e-6)  # generate hands logits out in float32
    assert pieces.ledger().stored == whole.ledger().stored
    own = kvbench.make_cache(model, method, prompt_tokens=96)
    for piece in prompt.split(chunk, 1):
        last = model(piece, past_key_values=own).logits[:, -1]
    torch.testing.assert_close(last.float(), logits[0], rtol=0, atol=1e-6)
    once = kvbench.make_cache(model, method)
    model(prompt, past_key_values=once)
    assert own.ledger().stored == once.ledger().stored
    assert own.keys_held() == once.keys_held()


def test_a_piece_at_positions_that_are_not_its_own_is_refused(prompt: torch.Tensor, tiny_model: Callable[..., Any]) -> None:
    """As generate of transformers 5.2 places the pieces of a prompt: all where the last belongs."""
    model = tiny_model("llama")
    cache = kvbench.make_cache(model, "knorm", prompt_tokens=96)
    with pytest.raises(UsageError, match="turns token 31 of a prompt in pieces to position 95"):
        model(prompt[:, :32], position_ids=torch.arange(64, 96)[None], past_key_values=cache)


def test_an_open_prompt_is_counted_and_ends_where_it_was_said_to(prompt: torch.Tensor, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    cache, dense = kvbench.make_cache(model, "knorm", prompt_tokens=90), kvbench.make_cache(model, "baseline")
    for one in (cache, dense):
        model(prompt[:, :64], past_key_values=one)
    assert cache.ledger().stored >= dense.ledger().stored
    assert cache.keys_held() == dense.keys_held()
    with pytest.raises(UsageError, match="96 tokens have come of a prompt of 90"):
        model(prompt[:, 64:], past_key_values=cache)
    with pytest.raises(UsageError, match="prompt_tokens=0"):
        kvbench.make_cache(model, "knorm", prompt_tokens=0)


def test_a_padded_prompt_in_pieces_is_refused(prompt: torch.Tensor, tiny_model: Callable[..., Any]) -> None:
    model, mask = tiny_model("llama"), torch.ones_like(prompt)
    mask[1, :40] = 0
    with pytest.raises(UsageError, match="in pieces"):
        generate(model, prompt, attention_mask=mask, past_key_values=cache_of(model, "knorm"), prefill_chunk_size=32)


def test_several_tokens_after_the_prompt_are_refused_unless_asked_for(prompt: torch.Tensor, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama", torch.float64)
    cache = cache_of(model, "snapkv:window=16")
    first, _ = generate(model, prompt, past_key_values=cache)
    before = cache.ledger().stored
    with pytest.raises(UsageError, match="in one forward after the prompt"):
        generate(model, torch.cat((first, prompt[:, :5]), 1), past_key_values=cache)
    assert cache.ledger().stored == before
    whole, single = (kvbench.make_cache(model, "snapkv:window=16", later="append") for _ in range(2))
    for one in (whole, single):
        model(prompt, past_key_values=one)
    out = model(prompt[:, :7], past_key_values=whole).logits[:, -1]
    for i in range(7):
        last = model(prompt[:, i : i + 1], past_key_values=single).logits[:, -1]
    torch.testing.assert_close(out, last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["expected_attention", "expected_attention:decode=hold,interval=2", "adakv:score_by=expected_attention"])
def test_a_prompt_of_sinks_alone_is_taken(method: str, prompt: torch.Tensor, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama", torch.float64)
    for length in range(1, 6):  # the sinks are 4
        tokens, logits = generate(model, prompt[:, :length], past_key_values=cache_of(model, method))
        assert tokens.shape == (2, length + NEW)
        assert logits.isfinite().all()


def test_the_baseline_goes_on_over_turns(prompt: torch.Tensor, tiny_model: Callable[..., Any]) -> None:
    from transformers import DynamicCache

    model = tiny_model("llama", torch.float64)
    found = []
    for cache in (cache_of(model, "baseline"), DynamicCache()):
        first, _ = generate(model, prompt, past_key_values=cache)
        found.append(generate(model, torch.cat((first, prompt[:, :5]), 1), past_key_values=cache)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("method", "error", "says"),
    [
        ("kivvi", UnknownName, "unknown method 'kivvi'; did you mean kivi"),
        ("kivi:bit=2", UnknownName, "did you mean bits"),
        ("kivi:bits=5", UsageError, "bits=5; it must be 2, 3, 4 or 8, for example 4"),
        ("int4:group=5", UsageError, r"method 'int4:group=5': group=5 does not divide the head size, 16; the nearest that does is 4"),
        ("v_lowrank:rank=17", UsageError, "rank=17 is above the head size; the largest is 16"),
        ("snapkv:window=1.5", UsageError, "window=1.5 is not int"),
    ],
)
def test_a_method_that_cannot_be_is_refused_and_nothing_changes(
    method: str, error: type[UsageError], says: str, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("llama")
    with pytest.raises(error, match=says) as caught:
        kvbench.make_cache(model, method)
    assert caught.value.hint
    assert model.config._attn_implementation == "sdpa"


def test_the_ratio_is_refused_by_its_range(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"compression_ratio=1.0; .* \[0, 1\)"):
        kvbench.make_cache(tiny_model("llama"), "knorm", compression_ratio=1.0)


def test_a_basis_needs_text_where_no_tokenizer_is(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="no tokenizer is found") as caught:
        kvbench.make_cache(tiny_model("llama"), "v_lowrank")
    assert "calibration_tokens=" in str(caught.value.hint)


class Configured:
    """All that is looked at before a refusal."""

    def __init__(self, **config: Any) -> None:
        from transformers import AutoConfig

        self.config = AutoConfig.for_model(**config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "gemma2"}, "'gemma2' cannot be benchmarked: it has soft-capped attention scores"),
        ({"model_type": "deepseek_v3"}, "'deepseek_v3' cannot be benchmarked: it has latent attention"),
        ({"model_type": "gpt2"}, "'gpt2' cannot be benchmarked: it has no rotary position embedding"),
        ({"model_type": "cohere"}, "interleaved"),
        ({"model_type": "mamba"}, "state-space layers"),
        ({"model_type": "t5"}, "encoder-decoder"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_model_that_would_be_measured_wrongly_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        kvbench.make_cache(Configured(**config), "knorm")
