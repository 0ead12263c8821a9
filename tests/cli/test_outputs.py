"""``--format`` and ``--output``, on a command that has nothing but them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import junitparser
import pytest

from fixtures.builder import snapshot, write_checkpoint
from tests.cli.reports import REPORTS, rendered
from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli.formats import FORMATS
from vita_ckpt.cli.outputs import Output, check_outputs, deliver, report_options
from vita_ckpt.errors import OutputError, UsageError

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Deliver ``REPORTS`` as the options say; what went to stdout."""

    @click.command()
    @click.argument("checkpoints", nargs=-1)
    @report_options
    def command(
        checkpoints: tuple[str, ...], report_format: str, outputs: tuple[Output, ...]
    ) -> None:
        check_outputs(outputs, checkpoints)
        deliver(REPORTS, RULES, report_format, outputs)

    def call(*arguments: object) -> str:
        command.main([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


def assert_refused(run: Run, code: str, *arguments: object) -> None:
    with pytest.raises(UsageError) as error:
        run(*arguments)
    assert error.value.code == code
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_goes_to_stdout(run: Run, name: str) -> None:
    assert run("--format", name) == rendered(name, REPORTS)
    assert run() == rendered("text", REPORTS)


def test_every_format_at_once(run: Run, tmp_path: Path) -> None:
    outputs = [f"--output={name}={tmp_path / name}=1.txt" for name in FORMATS]
    assert run(*outputs) == rendered("text", REPORTS)
    for name in FORMATS:
        assert (tmp_path / f"{name}=1.txt").read_text() == rendered(name, REPORTS)
    assert len(list(tmp_path.iterdir())) == len(FORMATS)
    junitparser.JUnitXml.fromfile(str(tmp_path / "junit=1.txt"))


def test_a_report_replaces_the_last_one_and_a_link_stays_a_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("the last run")
    (tmp_path / "link").symlink_to("report.json")
    run("--output", f"json={tmp_path / 'link'}")
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "report.json").read_text())["errors"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "link"}


def test_a_job_summary_is_appended_to(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# of an earlier command\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    for _ in range(2):
        run("--output", f"markdown={summary}")
    once = rendered("markdown", REPORTS)
    assert summary.read_text() == f"# of an earlier command\n{once}{once}"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("unknown-format", ["--format", "yaml"]),
        ("unknown-format", ["--format", "a\x1b[2J"]),
        ("unknown-format", ["--output", "yaml=report"]),
        ("unknown-format", ["--output", "=report"]),
        ("invalid-output", ["--output", "report.json"]),
        ("invalid-output", ["--output", "json="]),
        ("invalid-output", ["--output", "json=-"]),
        ("no-output-directory", ["--output", "json=no/such/report.json"]),
        ("not-a-regular-file", ["--output", "json=/dev/null"]),
        ("not-a-regular-file", ["--output", "json=."]),
        ("not-a-regular-file", ["--output", "json=pipe"]),
        ("outputs-collide", ["--output", "json=a", "--output", "junit=./a"]),
    ],
)
def test_what_cannot_be_written_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert_refused(run, code, *arguments)
    assert os.listdir() == ["pipe"]


def test_no_report_goes_into_a_checkpoint(run: Run, tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c")
    (tmp_path / "also").symlink_to(root)
    (tmp_path / "report.json").symlink_to(root / "config.json")
    before = snapshot(root)
    for checkpoint, path in (
        (root, root / "report.json"),
        (root, root / "config.json"),
        (root, tmp_path / "also" / "report.json"),
        (tmp_path / "also", root / "report.json"),
        (root, tmp_path / "report.json"),
        (root / "model.safetensors", root / "model.safetensors"),
    ):
        assert_refused(run, "output-overlaps-input", checkpoint, "--output", f"json={path}")
    assert snapshot(root) == before
    run(root, "--output", f"json={tmp_path / 'c.json'}")
    assert (tmp_path / "c.json").exists()


def test_no_report_goes_where_a_planted_link_leads(run: Run, tmp_path: Path) -> None:
    shared, home = tmp_path / "shared", tmp_path / "home"
    for folder in (shared, home):
        folder.mkdir()
    shared.chmod(0o1777)
    victim = home / "victim"
    victim.write_text("mine")
    for target in (victim, home / "absent"):
        (shared / "report").symlink_to(target)
        (home / "second").symlink_to(shared / "report")
        for path in (shared / "report", home / "second"):
            assert_refused(run, "output-is-a-link", f"--output=json={path}")
            with pytest.raises(UsageError):
                deliver(REPORTS, RULES, "text", [Output("json", str(path))])
        (shared / "report").unlink()
        (home / "second").unlink()
    (home / "loop").symlink_to(home / "loop")
    assert_refused(run, "output-is-a-link", f"--output=json={home / 'loop'}")
    assert victim.read_text() == "mine"
    # A link that only we can have made is followed.
    (home / "link").symlink_to("victim")
    (shared / "ours").symlink_to(home)
    run(f"--output=json={home / 'link'}", f"--output=junit={shared / 'ours' / 'new'}")
    assert victim.read_text() == rendered("json", REPORTS)
    assert (home / "new").read_text() == rendered("junit", REPORTS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_folder_behind_a_strangers_link_is_refused(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "home").mkdir()
    (tmp_path / "theirs").symlink_to(tmp_path / "home")
    os.lchown(tmp_path / "theirs", 65534, 65534)
    assert_refused(run, "output-is-a-link", f"--output=json={tmp_path / 'theirs' / 'r'}")


def test_a_disk_that_refuses_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    gone = Output("json", str(tmp_path / "gone" / "report.json"))
    with pytest.raises(OutputError, match="write-failed") as error:
        deliver(REPORTS, RULES, "text", [gone])
    assert error.value.hint == "check the disk; nothing was written there"
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"(output-not-allowed|read-only-output): /sys/report"):
        deliver(REPORTS, RULES, "text", [Output("json", "/sys/report.json")])
