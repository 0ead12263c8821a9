"""``vita-ckpt validate`` as a person types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import junitparser
import pytest

import vita_ckpt
from fixtures.builder import TowerSpec, snapshot, write_checkpoint, write_tower
from tests.cli.reports import VALIDATOR
from tests.conftest import Cli, assert_one_error
from vita_ckpt.cli.formats import FORMATS

RUN = "from vita_ckpt.cli.main import main; main()"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base")


def edit(root: Path, **values: object) -> None:
    path = root / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("is_sound", [True, False])
@pytest.mark.parametrize(
    "command", [["validate"], ["diff", "other", "--exit-code"], ["inspect"], ["history"]]
)
def test_that_nobody_reads_on_changes_no_verdict(
    base: Path, tmp_path: Path, command: list[str], is_sound: bool
) -> None:
    shutil.copytree(base, tmp_path / "other")
    if not is_sound:
        edit(base, mm_hidden_size=5)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *command, "base"],
            env={**os.environ, "PYTHONPATH": str(Path(vita_ckpt.__file__).parent.parent)},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    found = not is_sound and command[0] in ("validate", "diff")
    assert (done.returncode, done.stderr) == (1 if found else 0, "")


def test_exit_codes(cli: Cli, base: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    assert cli("validate", base).code == 0
    assert snapshot(tmp_path) == before
    edit(base, mm_vision_tower="/models/InternViT")
    warned = cli("validate", base)
    assert warned.code == 0
    assert "tower-path-absolute" in warned.out
    assert cli("validate", base, "--strict").code == 1
    assert cli("validate", base, "--strict", "--ignore", "tower-path-*").code == 0
    edit(base, mm_hidden_size=8)
    failed = cli("validate", base)
    assert failed.code == 1
    assert "hidden-size-mismatch" in failed.out
    assert cli("validate", base, "--select", "value-*").code == 0
    missing = cli("validate", tmp_path / "nowhere")
    assert_one_error(missing, 3, "not-found")
    both = cli("validate", tmp_path / "nowhere", base)
    assert both.code == 3
    assert "hidden-size-mismatch" in both.out


def reported(out: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(out)
    VALIDATOR.validate(value)
    return value


def test_a_checkpoint_does_not_silence_its_own_validation(
    cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(base, mm_hidden_size=8)
    for name, text in (("vita-ckpt.toml", ""), ("pyproject.toml", "[tool.vita-ckpt]\n")):
        (base / name).write_text(f'{text}ignore = ["*"]\n')
    monkeypatch.chdir(base)
    for path in (".", "..", "model.safetensors", base):
        result = cli("validate", path, "--format", "json")
        found = reported(result.out)["policy"]
        assert found["ignore"] == []
        assert found["disregarded"] == ["vita-ckpt.toml", "pyproject.toml"]
        assert "vita-ckpt.toml is not obeyed" in result.err
    for name in FORMATS:
        result = cli("validate", ".", "--format", name)
        assert result.code == 1
        assert "vita-ckpt.toml" in (result.err if name == "text" else result.out)


def test_every_format_says_what_was_ignored(cli: Cli, base: Path) -> None:
    edit(base, mm_hidden_size=8)
    Path("vita-ckpt.toml").write_text('ignore = ["hidden-size-mismatch"]\n')
    for name in FORMATS:
        result = cli("validate", "base", "--format", name)
        assert result.code == 0
        said = result.err if name == "text" else result.out
        assert "vita-ckpt.toml" in said
        assert "hidden-size-mismatch" in said
    policy = reported(cli("validate", "base", "--format", "json").out)["policy"]
    assert policy["file"] == "vita-ckpt.toml"
    assert policy["ignore"] == ["hidden-size-mismatch"]


def test_every_path_is_in_every_format(cli: Cli, base: Path) -> None:
    for paths in (("base", "nowhere"), ("nowhere",)):
        for name in FORMATS:
            result = cli("validate", *paths, "--format", name, "--ignore", "*")
            assert result.code == 3
            assert "nowhere" in (result.out + result.err if name == "text" else result.out)
        outputs = [f"--output={name}={name}.txt" for name in FORMATS]
        cli("validate", *paths, *outputs)
        report = reported(Path("json.txt").read_text())
        assert report["ok"] is False
        assert report["reports"][-1]["read"] is False
        assert [found["rule"] for found in report["reports"][-1]["findings"]] == ["not-found"]
        suites = list(junitparser.JUnitXml.fromfile("junit.txt"))
        assert (suites[-1].name, suites[-1].errors) == ("nowhere", 1)
        (run,) = json.loads(Path("sarif.txt").read_text())["runs"]
        assert run["results"][-1]["ruleId"] == "not-found"
        (invocation,) = run["invocations"]
        assert invocation["executionSuccessful"] is False
        assert "nowhere" in invocation["toolExecutionNotifications"][0]["message"]["text"]
        assert "::error title=not-found::nowhere" in Path("github.txt").read_text()


def test_warnings_that_fail_fail_in_every_format(cli: Cli, base: Path) -> None:
    edit(base, mm_vision_tower="/models/InternViT")
    for options, fails in ((("--strict",), True), ((), False)):
        outputs = [f"--output={name}={name}.txt" for name in FORMATS]
        assert cli("validate", "base", *options, *outputs).code == int(fails)
        report = reported(Path("json.txt").read_text())
        (one,) = report["reports"]
        assert (report["ok"], one["ok"]) == (not fails, not fails)
        assert (report["errors"], report["warnings"]) == (0, 2)
        (suite,) = junitparser.JUnitXml.fromfile("junit.txt")
        assert (suite.failures, suite.skipped) == ((2, 0) if fails else (0, 2))
        for name in ("junit", "sarif", "github", "markdown", "html"):
            assert ("warnings fail too" in Path(f"{name}.txt").read_text()) is fails


def test_a_link_to_nowhere_is_not_what_was_meant(cli: Cli, base: Path) -> None:
    Path("latest").symlink_to("nowhere")
    result = cli("validate", "latest")
    assert_one_error(result, 3, "not-found", "a link to nowhere")
    assert "did you mean" not in result.err


def test_wrong_calls(cli: Cli, base: Path) -> None:
    assert_one_error(cli("validate"), 2, "usage")
    assert_one_error(cli("validate", base, "--kind", "cat"), 2, "usage")
    assert_one_error(cli("validate", base, "--jobs", "0"), 2, "usage")
    assert_one_error(cli("validate", base, "--ignore", "cat"), 2, "unknown-rule")
    assert_one_error(cli("validate", base, "--format", "cat"), 2, "unknown-format")
    assert_one_error(cli("validate", base, "--output", "json=base/x.json"), 2, "output-overlaps")
    Path("vita-ckpt.toml").write_text("x = 1")
    assert_one_error(cli("validate", base), 2, "invalid-configuration")


def test_several_formats(cli: Cli, base: Path) -> None:
    edit(base, mm_hidden_size=8)
    result = cli(
        "validate",
        base,
        "tower-internvit",
        "--format",
        "json",
        "--output",
        "junit=report.xml",
        "--output",
        "sarif=report.sarif",
    )
    assert result.code == 1
    report = json.loads(result.out)
    assert [entry["kind"] for entry in report["reports"]] == ["vita-checkpoint", "vision-tower"]
    assert "hidden-size-mismatch" in Path("report.xml").read_text()
    assert json.loads(Path("report.sarif").read_text())["version"] == "2.1.0"


def test_globs_and_directories(cli: Cli, base: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "more" / "one")
    write_checkpoint(tmp_path / "more" / "two")
    for paths, count in ((("more",), 2), (("more/*",), 2), (("more/o*", "base"), 2)):
        report = json.loads(cli("validate", *paths, "--format", "json", "--jobs", "2").out)
        assert len(report["reports"]) == count
    assert_one_error(cli("validate", "nothing*"), 3, "not-found")


@pytest.mark.parametrize(
    "line",
    [
        ["-c", RUN, "validate", ".", "../tower-internvit", "--jobs", "2"],
        ["-m", "vita_ckpt", "validate", "."],
    ],
)
def test_files_of_the_working_directory_are_no_modules(
    base: Path, tmp_path: Path, line: list[str]
) -> None:
    for name in ("click", "html", "json", "multiprocessing", "pickle", "safetensors", "tabulate"):
        (base / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'x')\n")
    root = str(Path(vita_ckpt.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    if line[0] == "-c":  # as an entry point, which has the working directory nowhere in its path
        line = ["-c", f"import sys; del sys.path[0]; {RUN}", *line[2:]]
    done = subprocess.run(
        [sys.executable, *line], cwd=base, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (tmp_path / "run").exists()


def test_a_stray_adapter_hides_no_checkpoint(cli: Cli, base: Path, tmp_path: Path) -> None:
    broken = write_checkpoint(tmp_path / "many" / "broken")
    edit(broken, mm_hidden_size=8)
    for stray in ("mm_projector.bin", "adapter_model.safetensors", "audio_adpter.bin"):
        (tmp_path / "many" / stray).write_bytes((broken / "model.safetensors").read_bytes())
        for config in ((), ("adapter_config.json",), ("adapter_config.json", "config.json")):
            for name in config:
                (tmp_path / "many" / name).write_text("{}")
            result = cli("validate", "many", "--format", "json")
            assert result.code in (1, 3)
            reports = reported(result.out)["reports"]
            paths = [one["path"] for one in reports]
            assert paths == ["many", "many/broken"]
            assert not reports[1]["ok"]
            for name in config:
                (tmp_path / "many" / name).unlink()
        (tmp_path / "many" / stray).unlink()
    # A stray adapter_config.json alone makes no adapter.
    (tmp_path / "many" / "adapter_config.json").write_text("{}")
    result = cli("validate", "many", "--format", "json")
    assert not reported(result.out)["ok"]
    # What lies in a checkpoint's directory is looked at too.
    for name in ("checkpoint-100", "tower"):
        shutil.copytree(broken, base / name)
    paths = [one["path"] for one in reported(cli("validate", "base", "--json").out)["reports"]]
    assert paths == ["base", "base/checkpoint-100", "base/tower"]


def test_hostile_names_are_escaped(cli: Cli, base: Path) -> None:
    edit(base, model_type="\x1b[31mred\n::error::x")
    result = cli("validate", base)
    assert result.code == 1
    assert "\x1b" not in result.out
    assert "unknown-model-type" in result.out


def test_json_is_a_format_by_another_name(base: Path, cli: Cli) -> None:
    edit(base, mm_hidden_size=5)
    short, long = cli("validate", "base", "--json"), cli("validate", "base", "--format", "json")
    assert (short.code, short.out) == (1, long.out)
    VALIDATOR.validate(json.loads(short.out))
