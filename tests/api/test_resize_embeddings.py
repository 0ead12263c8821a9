"""More or fewer rows of the embeddings; all others are the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fixtures.builder import Spec, snapshot, write_checkpoint, write_tokenizer
from tests.builders import change, lively
from tests.conftest import GOLDEN, Cli, assert_one_error
from tests.in_place import files_of, timeless
from vita_ckpt import (
    InputError,
    UsageError,
    apply,
    apply_in_place,
    load_plan,
    plan_resize_embeddings,
    plan_set,
    save_plan,
    undo,
    validate,
)

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def resize(base: Path, out: Path, **options: Any) -> Path:
    return Path(apply(plan_resize_embeddings(base, **options), out))


def loaded(root: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(root.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def sized(root: Path) -> int:
    found: int = json.loads((root / "config.json").read_text())["vocab_size"]
    return found


def same_but_rows(before: Path, after: Path, rows: int) -> None:
    old, new = loaded(before), loaded(after)
    assert old.keys() == new.keys()
    assert sized(after) == rows
    for name, tensor in old.items():
        found = new[name]
        if name in (TABLE, HEAD):
            assert found.shape == (rows, tensor.shape[1])
            common = min(rows, len(tensor))
            found = found[:common]
        assert tensor.dtype == found.dtype
        assert torch.equal(tensor[: len(found)], found), name


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_rows_are_added(tmp_path: Path, dtype: str, shards: int) -> None:
    base = write_checkpoint(tmp_path / "base", dtype=dtype, shards=shards)
    if dtype == "F32" and shards == 1:
        lively(base)
    old = loaded(base)
    for init in ("mean", "zeros", "normal", "copy:5"):
        out = resize(base, tmp_path / init.replace(":", ""), tokens=33, multiple_of=8, init=init)
        same_but_rows(base, out, 40)
        for name in (TABLE, HEAD):
            new = loaded(out)[name][32:]
            if init == "mean":
                mean = old[name].to(torch.float64).sum(0) / 32
                wanted = mean.to(old[name].dtype).expand(8, -1)
            elif init == "zeros":
                wanted = torch.zeros_like(new)
            elif init == "copy:5":
                wanted = old[name][5].expand(8, -1)
            else:
                wanted = new
                assert 0.01 < new.float().std() < 0.03
                assert len({tuple(row) for row in new.float().tolist()}) == 8
            assert torch.equal(new, wanted), (init, name)
        assert not {"shape-mismatch", "vocab-size"} & {f.rule for f in validate(out).findings}


def test_a_drawn_row_depends_on_its_number_alone(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    once = resize(base, tmp_path / "once", tokens=48, init="normal", seed=3)
    half = resize(base, tmp_path / "half", tokens=40, init="normal", seed=3)
    twice = resize(half, tmp_path / "twice", tokens=48, init="normal", seed=3)
    assert all(torch.equal(loaded(once)[name], loaded(twice)[name]) for name in (TABLE, HEAD))
    other = resize(base, tmp_path / "other", tokens=48, init="normal", seed=4)
    assert not torch.equal(loaded(once)[TABLE], loaded(other)[TABLE])


def test_drawn_rows_are_normal(tmp_path: Path) -> None:
    config = {"initializer_range": 0.5}
    base = write_checkpoint(tmp_path / "base", Spec(hidden=64, config=config), dtype="F32")
    new = loaded(resize(base, tmp_path / "out", tokens=1032, init="normal"))[TABLE][32:].numpy()
    assert abs(new.mean()) < 0.01
    assert abs(new.std() - 0.5) < 0.01
    assert abs(np.mean(np.abs(new) < 0.5) - 0.6827) < 0.01
    assert np.abs(new).max() > 1.8


def test_a_tied_head(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", Spec(tied=True))
    same_but_rows(base, resize(base, tmp_path / "1", tokens=64), 64)
    change(base, lambda t: t.update({HEAD: t[TABLE].clone()}))
    for init in ("mean", "normal"):
        out = loaded(resize(base, tmp_path / init, tokens=64, init=init))
        assert torch.equal(out[TABLE], out[HEAD])


def test_in_place_and_back(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", shards=3)
    write_tokenizer(base, 9)
    before = files_of(base)
    plans: tuple[dict[str, Any], ...] = ({"tokens": 77, "init": "normal"}, {"tokens": 9})
    for options in plans:
        out = resize(base, tmp_path / f"out{options['tokens']}", **options)
        apply_in_place(plan_resize_embeddings(base, **options))
        assert timeless(files_of(base)) == timeless(files_of(out))
        assert undo(base).operation == "resize-embeddings"
        assert files_of(base) == before


def test_digests_stay_true(tmp_path: Path, cli: Cli) -> None:
    base = write_checkpoint(tmp_path / "base")
    write_tokenizer(base, 20)
    for tokens, extra in ((40, ("--digest",)), (20, ()), (30, ())):
        call = ("resize-embeddings", base, "--tokens", tokens, "--in-place", *extra)
        assert cli(*call).code == 0
        assert "digest-mismatch" not in {f.rule for f in validate(base, deep=True).findings}


def test_a_tokenizer_comes_along(tmp_path: Path, cli: Cli) -> None:
    base = write_checkpoint(tmp_path / "base")
    (base / "merges.txt").write_text("old\n")
    write_tokenizer(base, 32)
    given = tmp_path / "tokenizer"
    given.mkdir()
    write_tokenizer(given, 37)
    plan = plan_resize_embeddings(base, tokenizer=given, multiple_of=4, init="copy:w3")
    save_plan(plan, tmp_path / "plan.json")
    out = Path(apply(load_plan(tmp_path / "plan.json"), tmp_path / "out"))
    same_but_rows(base, out, 40)
    assert torch.equal(loaded(out)[TABLE][39], loaded(base)[TABLE][3])
    assert (out / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
    assert not (out / "merges.txt").exists()
    before = files_of(base)
    assert cli("resize-embeddings", base, "--tokenizer", given, "--in-place").code == 0
    assert sized(base) == 37
    state = snapshot(base)
    again = cli("resize-embeddings", base, "--tokenizer", given, "--in-place")
    assert (again.code, again.out) == (0, "nothing to change\n")
    assert snapshot(base) == state
    assert cli("undo", base).code == 0
    assert files_of(base) == before


def test_fewer_rows_than_tokens_are_refused(tmp_path: Path, cli: Cli) -> None:
    base = write_checkpoint(tmp_path / "base")
    write_tokenizer(base, 20)
    same_but_rows(base, resize(base, tmp_path / "fits", tokens=20), 20)
    result = cli("resize-embeddings", base, "--tokens", 19, "--out", tmp_path / "o")
    assert_one_error(result, 3, "too-few-rows", "at least 20")
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.model").write_bytes(b"pieces")
    result = cli("resize-embeddings", base, "--tokens", 19, "--out", tmp_path / "o")
    assert_one_error(result, 3, "too-few-rows", "tokenizer.model")
    resize(base, tmp_path / "more", tokens=64)


def test_wrong_requests(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    empty = tmp_path / "empty"
    empty.mkdir()
    for options, code in (
        ({}, "options-exclude-each-other"),
        ({"tokens": 40, "tokenizer": empty}, "options-exclude-each-other"),
        ({"tokens": 0}, "invalid-size"),
        ({"tokens": 40, "multiple_of": 0}, "invalid-size"),
        ({"tokens": 40, "init": "median"}, "unknown-choice"),
        ({"tokens": 40, "init": "copy:no-such-token"}, "unknown-token"),
        ({"tokens": 40, "init": "copy:32"}, "unknown-token"),
    ):
        with pytest.raises(UsageError) as caught:
            plan_resize_embeddings(base, **options)
        assert caught.value.code == code
    with pytest.raises(InputError, match="not-a-tokenizer"):
        plan_resize_embeddings(base, tokenizer=empty)
    change(base, lambda t: t.update({HEAD: t[HEAD][:-1].clone()}))
    with pytest.raises(InputError, match="no-embeddings"):
        plan_resize_embeddings(base, tokens=40)
    change(base, lambda t: t.pop(TABLE))
    with pytest.raises(InputError, match="no-embeddings"):
        plan_resize_embeddings(base, tokens=40)


def test_a_mean_of_broken_rows_is_refused(tmp_path: Path, cli: Cli) -> None:
    base = write_checkpoint(tmp_path / "base")
    change(base, lambda t: t[TABLE][7, 2].fill_(float("nan")))
    call = ("resize-embeddings", base, "--tokens", 40)
    result = cli(*call, "--out", tmp_path / "o")
    assert_one_error(result, 3, "mean-not-finite", "column 2")
    assert cli(*call, "--init", "zeros", "--out", tmp_path / "o").code == 0


def test_a_golden_gives_the_same_rows(tmp_path: Path) -> None:
    base = GOLDEN / "A1" / "base"
    rows = sized(base)
    more = resize(base, tmp_path / "more", tokens=rows + 13)
    same_but_rows(base, more, rows + 13)
    same_but_rows(base, resize(more, tmp_path / "back", tokens=rows), rows)


def test_keys_of_the_language_model_are_set_where_the_tensors_agree(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    for values, message in (
        ({"vocab_size": 33}, "lm_head.weight|embed_tokens"),
        ({"tie_word_embeddings": True}, "differs"),
        ({"vocab_size": None}, "invalid-config-value"),
    ):
        with pytest.raises((InputError, UsageError), match=message):
            plan_set(base, values)
    plan_set(base, {"vocab_size": 32, "tie_word_embeddings": False})
    equal = tmp_path / "equal"
    shutil.copytree(base, equal)
    change(equal, lambda t: t.update({HEAD: t[TABLE].clone()}))
    apply_in_place(plan_set(equal, {"tie_word_embeddings": True}))
    change(equal, lambda t: t.pop(HEAD))
    with pytest.raises(InputError, match="weights-disagree"):
        plan_set(equal, {"tie_word_embeddings": False})
