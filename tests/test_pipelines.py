"""What pipelines are given: the action's own shell, the hook, and the documented snippets, run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import junitparser
import pytest
import yaml

from fixtures.builder import snapshot
from tests.conftest import GOLDEN

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
INSTALL, VALIDATE = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")
SITE_PACKAGES = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
BASH = ("bash", "--noprofile", "--norc", "-e", "-o", "pipefail")  # as a runner calls it


@dataclass(frozen=True)
class Runner:
    """As much of a GitHub runner as a composite action sees."""

    home: Path

    def run(self, step: Mapping[str, Any], cwd: Path, **inputs: str) -> int:
        """Run a step with the action's defaults and ``inputs``; its exit code."""
        values = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()}
        values |= inputs

        def evaluate(found: re.Match[str]) -> str:
            context, _, name = found[1].partition(".")
            return str({"github": {"action_path": ROOT}, "inputs": values}[context][name])

        given = {name: EXPRESSION.sub(evaluate, text) for name, text in step["env"].items()}
        script = self.home / "step.sh"
        script.write_text(step["run"].replace('"$SOURCE/requirements-action.txt"', "/dev/null"))
        for name in ("summary", "output", "path"):
            (self.home / name).touch()
        paths = [*self.read("path").splitlines(), os.environ["PATH"]]
        environment = {
            **os.environ,
            **given,
            "PATH": os.pathsep.join(paths),
            "RUNNER_TEMP": str(self.home),
            "GITHUB_STEP_SUMMARY": str(self.home / "summary"),
            "GITHUB_OUTPUT": str(self.home / "output"),
            "GITHUB_PATH": str(self.home / "path"),
            # Only the package itself is installed: what it needs is here, and nothing is fetched.
            "PYTHONPATH": SITE_PACKAGES,
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
        }
        with (self.home / "log").open("wb") as log:
            done = subprocess.run(
                [*BASH, script],
                check=False,
                cwd=cwd,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return done.returncode

    def read(self, name: str) -> str:
        return (self.home / name).read_text()

    def outputs(self) -> dict[str, str]:
        """The action's outputs, by the expressions that define them."""
        step = dict(line.split("=", 1) for line in self.read("output").splitlines())
        names = {name: spec["value"] for name, spec in ACTION["outputs"].items()}
        return {
            name: EXPRESSION.sub(lambda found: step.get(found[1].rpartition(".")[2], ""), value)
            for name, value in names.items()
        }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner's home after the action installed itself."""
    home = tmp_path_factory.mktemp("runner")
    runner = Runner(home)
    assert runner.run(INSTALL, home) == 0, runner.read("log")
    return home


@pytest.fixture
def runner(installed: Path) -> Runner:
    for name in ("summary", "output"):
        (installed / name).unlink(missing_ok=True)
    return Runner(installed)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a sound checkpoint at ``checkpoints/vita``."""
    shutil.copytree(GOLDEN / "A7" / "base", tmp_path / "checkpoints" / "vita")
    tower = GOLDEN / "A7" / "tower-internvit"
    shutil.copytree(tower, tmp_path / "checkpoints" / "tower-internvit")
    return tmp_path


def break_(repository: Path) -> None:
    (repository / "checkpoints" / "vita" / "model-00002-of-00004.safetensors").unlink()


def test_the_action_installs_its_own_checkout(installed: Path) -> None:
    (package,) = installed.glob("vita-ckpt/venv/lib/*/site-packages/vita_ckpt/schemas")
    assert (package / "report-v1.json").exists()
    assert (installed / "path").read_text() == f"{installed}/vita-ckpt/venv/bin\n"


def test_a_sound_checkpoint_passes(runner: Runner, repository: Path) -> None:
    before = snapshot(repository)
    code = runner.run(VALIDATE, repository, paths="checkpoints/vita\n")
    assert code == 0, runner.read("log")
    outputs = runner.outputs()
    assert outputs["exit-code"] == "0"
    report = json.loads(Path(outputs["report"]).read_text())
    assert (report["ok"], [one["path"] for one in report["reports"]]) == (
        True,
        ["checkpoints/vita"],
    )
    assert "::error" not in runner.read("log")
    assert runner.read("summary").startswith("**1 checkpoint: ")
    assert snapshot(repository) == before


def test_a_broken_one_fails_with_annotations_and_a_summary(
    runner: Runner, repository: Path
) -> None:
    break_(repository)
    code = runner.run(
        VALIDATE,
        repository,
        paths="checkpoints/vita\n\n../elsewhere/../" + repository.name + "/checkpoints/vita",
        outputs="junit=report one.xml\nsarif=report.sarif\n",
    )
    assert code == 1, runner.read("log")
    assert runner.outputs()["exit-code"] == "1"
    assert re.search(r"^::error file=checkpoints/vita/.*missing-shard::", runner.read("log"), re.M)
    assert "<code>missing-shard</code>" in runner.read("summary")
    junit = junitparser.JUnitXml.fromfile(str(repository / "report one.xml"))
    assert junit.failures >= 1
    assert (repository / "report.sarif").exists()


def test_strict_and_further_arguments_are_passed_on(runner: Runner, repository: Path) -> None:
    shutil.rmtree(repository / "checkpoints" / "tower-internvit")
    paths = "checkpoints/vita"
    assert runner.run(VALIDATE, repository, paths=paths) == 0, runner.read("log")
    assert runner.run(VALIDATE, repository, paths=paths, strict="true") == 1
    assert runner.run(VALIDATE, repository, paths=paths, args="--strict") == 1


def test_inputs_are_data(runner: Runner, repository: Path) -> None:
    hostile = "$(touch pwned) `touch pwned` \"; touch pwned; '\n*"
    option = f"{hostile}\n--output=json=pwned"  # in paths, this is a path
    assert runner.run(VALIDATE, repository, paths=option, strict=hostile) == 3
    assert runner.run(VALIDATE, repository, paths="checkpoints/vita", args=hostile) in (2, 3)
    assert runner.run(VALIDATE, repository, paths="checkpoints/vita", outputs=hostile) == 2
    assert sorted(path.name for path in repository.iterdir()) == ["checkpoints"]
    for step in (INSTALL, VALIDATE):
        assert not EXPRESSION.search(step["run"])


def test_wrong_usage_is_said_and_leaves_no_report(runner: Runner, repository: Path) -> None:
    assert runner.run(VALIDATE, repository, paths="checkpoints/vita", args="--no-such") == 2
    assert runner.outputs() == {"exit-code": "2", "report": ""}
    assert runner.read("log").startswith("error: usage: ")
    assert runner.read("summary") == ""


@pytest.fixture
def shell(repository: Path) -> Any:
    """Run a line in the repository with this environment's ``vita-ckpt``."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(line: str) -> int:
        done = subprocess.run([*BASH, "-c", line], check=False, cwd=repository, env=environment)
        return done.returncode

    return run


def test_the_example_workflow_fits_the_action_and_runs(shell: Any, repository: Path) -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "workflow.yml").read_text())
    (job,) = workflow["jobs"].values()
    (validate,) = (step for step in job["steps"] if "/vita-ckpt@" in step.get("uses", ""))
    assert set(validate["with"]) <= set(ACTION["inputs"])
    (verify,) = (step["run"] for step in job["steps"] if "run" in step)
    assert shell(verify) == 0
    assert json.loads((repository / "verify.json").read_text())["ok"] is True
    (upload,) = (step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    written = {line.split("=")[1] for line in validate["with"]["outputs"].splitlines()}
    assert written | {"verify.json"} <= set(upload["with"]["path"].splitlines())


def test_the_documented_snippets_run(shell: Any, repository: Path) -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    action, gitlab, hooks = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert set(action[0]["with"]) <= set(ACTION["inputs"])
    documented = set(re.findall(r"^\| `([a-z]+)` \|(?! .*FORMAT)", page, re.M))
    assert set(ACTION["inputs"]) - {"outputs"} <= documented

    job = gitlab["checkpoint"]
    (line,) = job["script"]
    assert shell(line) == 0
    junit = junitparser.JUnitXml.fromfile(str(repository / job["artifacts"]["reports"]["junit"]))
    assert junit.tests

    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (used,) = hooks["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    command = " ".join([hook["entry"], *used["args"]])
    assert shell(command) == 0
    break_(repository)
    assert shell(command) == 1
    for name in ("config.json", "model.safetensors.index.json", "a/b.safetensors", "x.bin"):
        assert re.search(hook["files"], name)

    (example,) = re.findall(r"^    (vita-ckpt validate .*)$", page, re.M)
    assert shell(example) == 1
    assert (repository / "report.sarif").exists()
