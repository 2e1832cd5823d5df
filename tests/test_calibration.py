"""Bases and ranks from a text: what they are, how they are kept, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.budgeting.expected import expected_bytes
from kvbench.caches.cache import Geometry, decoder_of, use_kvbench_attention
from kvbench.caches.ranks import heads_in_group, rank_by_energy
from kvbench.calibration import provide, stand_ins
from kvbench.calibration.artefacts import load_tensors
from kvbench.errors import ModelError
from kvbench.methods.base import resolve
from kvbench.models.shape import Shape, shape_of
from kvbench.spec import MethodSpec, RunSpec

pytestmark = pytest.mark.fast
TEXT = torch.randint(3, 128, (1024,), generator=torch.Generator().manual_seed(3))
SIDES = ("value", "key", "projected_value", "projected_key")
NAMES = [f"{side}_{kind}{group}" for side in SIDES for kind in ("pca", "spectra") for group in ("", "/2")]
WEIGHTS = "ab" * 32


@pytest.fixture
def model(family: str, tiny_model: Callable[..., Any]) -> Any:
    made = tiny_model(family)
    use_kvbench_attention(made)
    return made


def calibrated(model: Any, names: list[str], folder: Path | None = None, text: Tensor = TEXT, weights: str | None = WEIGHTS) -> Any:
    told: list[tuple[str, int, int]] = []
    found = provide(names, model, Geometry.of(model), text, weights_hash=weights, folder=folder, stage=lambda *what: told.append(what))
    return found, told


def projected(model: Any, text: Tensor) -> list[dict[str, Tensor]]:
    """What each layer's projections were given and gave over the text's windows, by plain hooks: ``x``, ``k_proj``, ``v_proj``."""
    seen: list[dict[str, list[Tensor]]] = [{"x": [], "k_proj": [], "v_proj": []} for _ in decoder_of(model).layers]
    hooks = []
    for layer, held in zip(decoder_of(model).layers, seen, strict=True):
        for name in ("k_proj", "v_proj"):
            hook = lambda _m, args, out, held=held, name=name: held[name].append(out[0]) or held["x"].append(args[0][0])  # noqa: E731
            hooks.append(getattr(layer.self_attn, name).register_forward_hook(hook))
    for window in text.split(512):
        model(window[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return [{name: torch.cat(tensors) for name, tensors in held.items()} for held in seen]


def test_bases_diagonalise_the_second_moment(model: Any) -> None:
    found, _ = calibrated(model, NAMES)
    for index, seen in enumerate(projected(model, TEXT)):
        attention = decoder_of(model).layers[index].self_attn
        for side, name in (("value", "v_proj"), ("projected_value", "v_proj"), ("projected_key", "k_proj")):
            bias = getattr(attention, name).bias
            outputs = seen[name] - (bias if bias is not None and side != "value" else 0)
            for group, width in (("", 16), ("/2", 32)):
                by_group = outputs.view(len(TEXT), -1, width).transpose(0, 1)  # [G, T, W]
                moment = by_group.transpose(1, 2) @ by_group
                basis, spectra = found[f"{side}_pca{group}"][index], found[f"{side}_spectra{group}"][index][index]
                torch.testing.assert_close(basis.transpose(1, 2) @ moment @ basis, torch.diag_embed(spectra), rtol=1e-9, atol=1e-8)
                torch.testing.assert_close(basis.transpose(1, 2) @ basis, torch.eye(width).double().expand_as(basis), rtol=0, atol=1e-12)
                assert bool((spectra.diff(dim=-1) <= 0).all())


def test_rotation_turns_the_keys_basis_and_not_their_energy(model: Any) -> None:
    found, _ = calibrated(model, NAMES)
    after, before = (found[f"{side}_spectra"][0].sum(-1) for side in ("key", "projected_key"))
    if all(layer.self_attn.k_proj.bias is None for layer in decoder_of(model).layers):
        torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
    assert float((found["key_pca"][0] - found["projected_key_pca"][0]).abs().max()) > 0.1


def test_palus_whitened_svd_is_the_pca_of_the_outputs(model: Any) -> None:
    """Rank by rank, the paper's ``W ≈ L R`` (SVD of W S, with S Sᵀ = X Xᵀ) projects outputs as the leading eigenvectors do."""
    found, _ = calibrated(model, ["projected_key_pca/2", "projected_value_pca/2"])
    for index, seen in enumerate(projected(model, TEXT)):
        attention = decoder_of(model).layers[index].self_attn
        whitening = torch.linalg.cholesky(seen["x"].T @ seen["x"])
        for name in ("key", "value"):
            weight = getattr(attention, f"{name[0]}_proj").weight
            for group, basis in enumerate(found[f"projected_{name}_pca/2"][index]):
                rows = weight[group * 32 : (group + 1) * 32]
                u, s, vt = torch.linalg.svd(rows @ whitening, full_matrices=False)
                for rank in (4, 9, 16):
                    low = u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank] @ torch.linalg.inv(whitening)
                    ours = basis[:, :rank] @ basis[:, :rank].T @ rows
                    torch.testing.assert_close(low, ours, rtol=0, atol=1e-9)


def test_one_pass_over_the_text_serves_all(model: Any) -> None:
    passes: list[int] = []
    hook = decoder_of(model).register_forward_pre_hook(lambda *_: passes.append(1))
    _, told = calibrated(model, NAMES)
    hook.remove()
    assert len(passes) == len(TEXT) // 512
    assert [done for _, done, _ in told] == [0, 1, 2]


def test_random_bases_need_no_text(model: Any) -> None:
    found, told = calibrated(model, ["value_random", "key_random", "projected_value_random/2"])
    assert not told
    for tensors in found.values():
        for basis in tensors:
            identity = torch.eye(basis.shape[1]).double().expand_as(basis)
            torch.testing.assert_close(basis.transpose(1, 2) @ basis, identity, rtol=0, atol=1e-12)
    assert not torch.equal(found["value_random"][0], found["key_random"][0])
    assert not torch.equal(found["value_random"][0], found["value_random"][1])


def test_what_was_fitted_is_kept_and_read_again(model: Any, tmp_path: Path) -> None:
    first, told = calibrated(model, NAMES, tmp_path)
    again, quiet = calibrated(model, NAMES, tmp_path)
    assert told
    assert not quiet
    assert len(list(tmp_path.iterdir())) == 2 * len(SIDES)
    for name in NAMES:
        assert all(torch.equal(a, b) for a, b in zip(first[name], again[name], strict=True))
    _, more = calibrated(model, NAMES, tmp_path, text=TEXT.flip(0))
    assert more, "another text is another calibration"


def only_file(model: Any, folder: Path) -> Path:
    calibrated(model, ["value_pca"], folder)
    (file,) = folder.iterdir()
    return file


def test_a_calibration_of_other_weights_is_refused(model: Any, tmp_path: Path) -> None:
    file = only_file(model, tmp_path)
    other = WEIGHTS[:16] + "0" * 48  # as long as the name agrees, only the metadata tells
    with pytest.raises(ModelError, match="was made for other weights") as caught:
        calibrated(model, ["value_pca"], tmp_path, weights=other)
    assert str(file) in caught.value.message
    assert "delete" in str(caught.value.hint)


@pytest.mark.parametrize("content", ["broken", "short", "torch", "pickle", "old torch"])
def test_a_file_that_is_no_safetensors_is_refused(content: str, model: Any, tmp_path: Path) -> None:
    file = only_file(model, tmp_path)
    whole = file.read_bytes()
    write: dict[str, Callable[[], Any]] = {
        "broken": lambda: file.write_bytes(whole[: len(whole) // 2]),
        "short": lambda: file.write_bytes(b""),
        "torch": lambda: torch.save({"vectors": torch.zeros(1)}, file),
        "pickle": lambda: file.write_bytes(pickle.dumps({"vectors": 0})),
        "old torch": lambda: torch.save({"vectors": torch.zeros(1)}, file, _use_new_zipfile_serialization=False),
    }
    write[content]()
    says = "cannot be read" if content in ("broken", "short") else "is a pickle, which can run code as it loads"
    with pytest.raises(ModelError, match=says):
        calibrated(model, ["value_pca"], tmp_path)


@pytest.mark.parametrize(("name", "says"), [("a.pt", "is a pickle"), ("a.npz", "is a pickle"), ("a.txt", "is not a .safetensors file")])
def test_other_files_are_refused_by_name_and_content(name: str, says: str, tmp_path: Path) -> None:
    import numpy as np

    file = tmp_path / name
    {"a.pt": lambda: torch.save([1], file), "a.npz": lambda: np.savez(file, a=1), "a.txt": lambda: file.write_text("vectors")}[name]()
    with pytest.raises(ModelError, match=says):
        load_tensors(file, None, hint="another command")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tensors(tmp_path / "none.safetensors", None)


def test_a_safetensors_file_whose_header_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    from kvbench.calibration.artefacts import save_tensors

    for pad in range(120):  # header lengths pass 0x80 in their first byte
        save_tensors(tmp_path / "a.safetensors", {"x" * (pad + 1): torch.ones(2)}, WEIGHTS)
        assert torch.equal(*load_tensors(tmp_path / "a.safetensors", WEIGHTS).values(), torch.ones(2))


def test_a_name_that_nothing_makes(model: Any) -> None:
    with pytest.raises(ValueError, match="no calibration makes 'value_ica'"):
        calibrated(model, ["value_ica"])


SPECTRA = torch.tensor([[[8.0, 1, 1, 0], [4, 4, 2, 0]], [[10, 0, 0, 0], [10, 0, 0, 0]]])  # [L = 2, G = 2, W = 4]


@pytest.mark.parametrize(
    ("energy", "layer", "per_layer", "bits", "rank"),
    [
        (0.6, 0, True, 0, 1), (0.61, 0, True, 0, 2), (0.85, 0, True, 0, 2), (0.86, 0, True, 0, 3), (1.0, 0, True, 0, 3),
        (1.0, 1, True, 0, 1), (0.8, 0, False, 0, 1), (0.8, 1, False, 0, 1), (0.81, 1, False, 0, 2),
        (0.86, 0, True, 4, 4), (0.1, 1, True, 4, 2), (0.1, 0, True, 2, 4),
    ],
)  # fmt: skip
def test_the_smallest_rank_that_keeps_the_energy(energy: float, layer: int, per_layer: bool, bits: int, rank: int) -> None:
    assert rank_by_energy(SPECTRA.double(), layer, energy, per_layer=per_layer, bits=bits) == rank


@pytest.mark.parametrize(
    ("asked", "kv_heads", "heads"), [(0, 8, 4), (0, 3, 3), (0, 5, 1), (0, 6, 3), (0, 1, 1), (4, 3, 3), (2, 8, 2), (8, 8, 8)]
)
def test_heads_that_share_a_basis(asked: int, kv_heads: int, heads: int) -> None:
    assert heads_in_group(asked, kv_heads) == heads


SHAPE = Shape(layers=4, heads=6, kv_heads=2, head_dim=16, hidden_size=96, vocab_size=128, max_positions=2048)


def test_stand_ins_are_of_the_right_size_or_not_at_all(tiny_config: Callable[[str], dict[str, Any]]) -> None:
    made = stand_ins(["value_pca", "projected_key_random/0"], SHAPE)
    assert made is not None
    assert {name: tuple(t.shape) for name, t in made.items()} == {"value_pca": (2, 16, 16), "projected_key_random/0": (1, 32, 32)}
    assert stand_ins(["value_pca", "value_spectra"], SHAPE) is None
    assert stand_ins([], SHAPE) == {}


LABELS = [
    "v_lowrank",
    "v_lowrank:rank=6,bits=4",
    "orthogonal:k_rank=12",
    "orthogonal_int8",
    "palu",
    "palu:bits=3,rank=4",
    "palu:group_heads=1",
]


@pytest.mark.parametrize("label", LABELS)
def test_expected_bytes_are_those_that_are_stored(label: str, model: Any) -> None:
    method = resolve(MethodSpec.parse(label), RunSpec())
    cache = kvbench.make_cache(model, method, calibration_tokens=TEXT[:128])
    model(TEXT[None, :70], past_key_values=cache)
    assert expected_bytes(method, shape_of(model.config.to_dict()), 70, "float64") == cache.ledger().stored


def test_bytes_by_energy_are_not_known_before() -> None:
    method = resolve(MethodSpec.parse("orthogonal:energy=0.9"), RunSpec())
    assert expected_bytes(method, SHAPE, 70) is None


def test_a_dry_run_shows_that_bytes_are_not_known() -> None:
    from kvbench.cli.preview import preview
    from kvbench.instruments.tiny import make_tiny_config
    from kvbench.spec import EvaluatorSpec, ModelSpec

    model = ModelSpec("tiny", "float64", device="cpu", random_weights=True, config=make_tiny_config("llama"))
    specs = tuple(MethodSpec.parse(label) for label in ("baseline", "palu", "v_lowrank:energy=0.9"))
    spec = RunSpec(model=model, methods=specs, evaluators=(EvaluatorSpec("speed"),))
    rows = {line.split()[0]: line.split() for line in preview(spec).splitlines() if line}
    assert rows["v_lowrank:energy=0.9"][-2:] == ["–", "–"]
    assert rows["palu"][-1] == "2.00×"


def test_the_default_text_is_calibrated_on_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.calibration.excerpt.calibration_tokens", lambda *_: TEXT)
    monkeypatch.setattr("kvbench.api._tokenizer_of", lambda _: None)
    passes: list[int] = []
    decoder_of(model).register_forward_pre_hook(lambda *_: passes.append(1))
    for label, total in (("v_lowrank", 2), ("v_lowrank:rank=3", 2), ("v_lowrank:energy=0.9", 4), ("orthogonal", 6), ("v_lowrank", 6)):
        kvbench.make_cache(model, label)
        assert len(passes) == total
