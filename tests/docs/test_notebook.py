"""The notebook runs, cell by cell, and shows reports as tables."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.docs.blocks import ROOT

NOTEBOOK = ROOT / "examples" / "notebook.py"


def test_the_notebook_shows_its_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, object] = {}
    shown: list[object] = []
    for cell in NOTEBOOK.read_text().split("# %%"):
        body = ast.parse("" if cell.startswith(" [markdown]") else cell).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), NOTEBOOK, "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK, "eval"), names))
    tables = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    kinds = [ET.fromstring(table).findtext("caption") for table in tables]
    assert kinds == [
        *("Checkpoint", "Inspection", "Report", "Plan", "Summary", "Difference", "History"),
    ]
    assert isinstance(shown[-1], dict)
    assert len(shown[-1]) == 4
    assert "mm_projector: 12,416 values" in capsys.readouterr().out


def test_the_notebook_is_a_script() -> None:
    done = subprocess.run(
        [sys.executable, NOTEBOOK], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert "language_model: 98,880 values" in done.stdout
