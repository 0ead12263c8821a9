"""Which rules count: options over files, and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vita_ckpt import UsageError
from vita_ckpt.checks.rules import finding
from vita_ckpt.cli.policy import Policy, read_policy
from vita_ckpt.core.report import Report

REPORT = Report(
    "c",
    "vita-checkpoint",
    (
        finding("missing-tensor", "a", "m"),
        finding("tower-path-absolute", "b", "m"),
        finding("training-state", "c", "m"),
    ),
)


def kept(policy: Policy) -> list[str]:
    return [one.rule for one in policy.applied(REPORT).findings]


def test_selected_and_ignored() -> None:
    assert kept(Policy()) == ["missing-tensor", "tower-path-absolute", "training-state"]
    assert kept(Policy(select=("tower-*",))) == ["tower-path-absolute"]
    assert kept(Policy(ignore=("tower-*", "missing-tensor"))) == ["training-state"]
    assert kept(Policy(select=("t*",), ignore=("training-state",))) == ["tower-path-absolute"]


def test_what_fails() -> None:
    assert Policy().fails([REPORT])
    warned = Policy(ignore=("missing-tensor",))
    assert not warned.fails([warned.applied(REPORT)])
    assert Policy(strict=True).fails([warned.applied(REPORT)])
    noted = Policy(select=("training-state",), strict=True)
    assert not noted.fails([noted.applied(REPORT)])
    assert not Policy(strict=True).fails([])


def test_the_files(tmp_path: Path) -> None:
    where = str(tmp_path)
    assert read_policy((), (), None, where) == Policy()
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.other]\nx = 1\n")
    assert read_policy((), (), None, where) == Policy()
    project.write_text('[tool.vita-ckpt]\nstrict = true\nignore = ["tower-path-*"]\n')
    assert read_policy((), (), None, where) == Policy((), ("tower-path-*",), True, str(project))
    assert read_policy((), ("value-nan, value-inf",), False, where) == Policy(
        (), ("value-nan", "value-inf"), False, str(project)
    )
    own = tmp_path / "vita-ckpt.toml"
    own.write_text('select = ["missing-tensor"]\n')
    assert read_policy((), (), None, where) == Policy(("missing-tensor",), file=str(own))
    assert read_policy(("value-*",), (), True, where) == Policy(("value-*",), (), True, str(own))


def test_what_is_validated_decides_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "c" / "below"
    inside.mkdir(parents=True)
    (tmp_path / "c" / "model.safetensors").touch()
    own = tmp_path / "c" / "vita-ckpt.toml"
    own.write_text('ignore = ["*"]\n')
    (inside / "pyproject.toml").write_text('[tool.vita-ckpt]\nignore = ["*"]\n')
    (tmp_path / "vita-ckpt.toml").symlink_to(own)
    (tmp_path / "also").symlink_to(tmp_path / "c")
    for root in (tmp_path / "c", tmp_path / "also", tmp_path / "c" / "model.safetensors"):
        for where in (tmp_path / "c", tmp_path / "also", tmp_path):
            policy = read_policy((), (), None, str(where), validated=["hf://o/n", str(root)])
            assert policy == Policy(disregarded=(str(where / "vita-ckpt.toml"),))
            assert "not obeyed" in policy.sentences()[0]
    policy = read_policy((), (), None, str(inside), validated=[str(tmp_path / "c")])
    assert policy == Policy(disregarded=(str(inside / "pyproject.toml"),))
    beside = read_policy((), (), None, str(tmp_path / "c"), validated=[str(inside)])
    assert beside == Policy((), ("*",), file=str(own))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select = 3", "select to be a list"),
        ("ignore = [3]", "ignore to be a list"),
        ('strict = "yes"', "strict to be true or false"),
        ("colour = 1", "the key 'colour'"),
        ("= =", "a TOML file"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "vita-ckpt.toml").write_text(text)
    with pytest.raises(UsageError) as raised:
        read_policy((), (), None, str(tmp_path))
    assert raised.value.code == "invalid-configuration"
    assert words in str(raised.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "vita-ckpt.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="invalid-configuration"):
        read_policy((), (), None, str(tmp_path))


def test_rules_that_are_none(tmp_path: Path) -> None:
    for select, ignore in ((("no-such-rule",), ()), ((), ("nothing-*",))):
        with pytest.raises(UsageError, match="unknown-rule"):
            read_policy(select, ignore, None, str(tmp_path))
