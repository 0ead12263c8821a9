"""The documentation says what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docs import generate
from vita_ckpt.storage import commit

ROOT = Path(__file__).parent.parent


def codes_in(path: Path) -> set[str]:
    """Every code that a module passes as the first argument of an error."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        name = ""
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "")
        if name.endswith("Error") and isinstance(node, ast.Call) and node.args:
            constants = (n for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant))
            texts = (str(constant.value) for constant in constants)
            found |= {text for text in texts if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", text)}
    return found


def test_every_error_code_is_explained() -> None:
    used = {code for code, _ in commit._CODES.values()}
    for path in (ROOT / "vita_ckpt").rglob("*.py"):
        used |= codes_in(path)
    assert len(used) > 70
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z0-9-]+)`", rows)) == used


def test_the_command_reference_is_the_commands_help() -> None:
    assert generate.REFERENCE.read_text() == generate.reference()


def test_the_readme_shows_what_the_demo_prints() -> None:
    assert generate.steady(generate.README.read_text()) == generate.steady(generate.readme())


def test_links_lead_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "benchmarks" / "README.md",
    ):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    golden = ROOT / "fixtures" / "golden" / "A7"
    for written, real in (
        ("path/to/checkpoint", golden / "base"),
        ("path/to/run", golden / "mm_projector_fp32"),
        ("path/to/merged", tmp_path / "merged"),
    ):
        code = code.replace(written, str(real))
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "merged" / "config.json").exists()
