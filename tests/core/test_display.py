"""What values show of themselves: one screen, whatever they hold, and nothing that is markup."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from tests.conftest import GOLDEN
from vita_ckpt import (
    AddTensor,
    Checkpoint,
    DropTensor,
    Finding,
    History,
    LocalFile,
    Plan,
    Push,
    Report,
    SetConfig,
    Shard,
    TensorRef,
    Verification,
    diff,
    explain,
    history,
    inspect,
    open_checkpoint,
    plan_merge_projector,
    plan_set,
    summarize,
    validate,
)
from vita_ckpt.core.display import MAX_COLUMNS, MAX_LINES
from vita_ckpt.core.left_out import LeftOut

HOSTILE = "</td><script>alert(1)</script>&\x1b[2J\n\u202e\ud800'\"" + "x" * 300
BASE = GOLDEN / "A7" / "base"


class Cells(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def assert_one_screen(value: Any) -> str:
    text = repr(value)
    lines = text.split("\n")
    assert len(lines) <= MAX_LINES == 24
    assert all(line.isprintable() and len(line) <= MAX_COLUMNS == 100 for line in lines), text
    assert lines[0] == type(value).__name__
    cells = Cells(value._repr_html_())
    assert cells.tags <= {"table", "caption", "tr", "th", "td"}
    assert all(text.isprintable() and len(text) <= MAX_COLUMNS for text in cells.texts)
    assert len(value._repr_html_()) < 24_000
    return text


def hostile_checkpoint(count: int) -> Checkpoint:
    file = LocalFile(f"/{HOSTILE}/model.safetensors", 4 * count, 0)
    return Checkpoint(
        f"/{HOSTILE}",
        "safetensors",
        {f"{HOSTILE}.{n}": TensorRef(file, 4 * n, "F32", (1,)) for n in range(count)},
        shards=tuple(Shard(f"{HOSTILE}{n}", file, "safetensors") for n in range(50)),
        config={"model_type": HOSTILE},
        files={HOSTILE: file},
        left_out={HOSTILE: LeftOut.HIDDEN},
        revision=HOSTILE,
    )


@pytest.mark.parametrize("count", [0, 1, 200_000])
def test_a_checkpoint(count: int) -> None:
    text = assert_one_screen(hostile_checkpoint(count))
    assert f"tensors     {count:,}" in text
    assert "<script>" not in hostile_checkpoint(1)._repr_html_()


def test_what_a_checkpoint_shows() -> None:
    text = assert_one_screen(open_checkpoint(BASE))
    for words in (str(BASE)[:40], "safetensors", "tensors", "parameters", "bytes", "shards"):
        assert words in text


def test_a_plan_counts_its_edits_by_kind() -> None:
    base = hostile_checkpoint(20_000)
    edits = [DropTensor(name, HOSTILE) for name in base.tensors]
    plan = Plan(
        HOSTILE,
        base,
        (*edits, SetConfig(HOSTILE, HOSTILE, HOSTILE)),
        (base,) * 30,
        notes=(HOSTILE,) * 100,
    )
    assert "20,000 DropTensor, 1 SetConfig" in assert_one_screen(plan)
    added = AddTensor("new", base.tensors[f"{HOSTILE}.0"], "")
    assert "1 AddTensor" in assert_one_screen(Plan("set", base, (added,)))


def test_reports() -> None:
    adapter = GOLDEN / "A7" / "mm_projector_fp32"
    merge = plan_merge_projector(BASE, adapter)
    text = assert_one_screen(summarize(merge))
    assert "merge-projector" in text
    assert "ReplaceTensor" in assert_one_screen(merge)
    assert_one_screen(inspect(BASE))
    assert_one_screen(inspect(hostile_checkpoint(3)))
    assert_one_screen(diff(BASE, adapter, values=True))
    assert "vita-1.5" in assert_one_screen(explain(BASE))
    assert_one_screen(explain(BASE).traces[0])
    assert_one_screen(history(BASE))
    assert_one_screen(validate(BASE))


def test_reports_of_what_is_hostile() -> None:
    found = tuple(Finding(HOSTILE, "error", HOSTILE, HOSTILE, HOSTILE, HOSTILE) for _ in range(99))
    report = Report(HOSTILE, HOSTILE, found)
    assert "errors" in assert_one_screen(report)
    assert_one_screen(Push(report, HOSTILE, (HOSTILE,) * 99, {HOSTILE: LeftOut.HIDDEN}))
    assert_one_screen(History(HOSTILE, ({HOSTILE: HOSTILE},) * 99, True, True, None))
    numbers: tuple[Any, ...] = (1.5, 2.5, 3 << 30, 49, 0, HOSTILE, {HOSTILE: HOSTILE})
    shown = assert_one_screen(Verification(HOSTILE, "cpu", HOSTILE, True, found, *numbers))
    assert "golden" not in shown


def test_a_plan_is_the_json_that_is_saved() -> None:
    plan = plan_set(BASE, {"use_s2": False})
    assert plan.to_dict()["format"] == "vita-ckpt-plan"
