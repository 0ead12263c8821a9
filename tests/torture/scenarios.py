"""What is tortured: one table of commands, each on a tiny checkpoint, with what must come of it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fixtures.builder import (
    Spec,
    TowerSpec,
    mm_projector,
    read_tensors,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from tests.torture.disk import Nodes, Tree, identity
from tests.torture.faults import Fault
from tests.torture.runner import Run, Runner
from vita_ckpt.cli.main import main
from vita_ckpt.core.filenames import HOME
from vita_ckpt.core.journal import decode
from vita_ckpt.storage.system.state import known_key

_SPEC: Final = Spec()
_PROVENANCE: Final = "vita_ckpt.json"
_HIDDEN: Final = ".vita-ckpt"
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")

_MERGE: Final = ("merge-projector", "--base", "base", "--adapter", "adapter.safetensors")
_SWAP: Final = ("swap-tower", "--base", "base", "--tower", "tower-siglip", "--projector", "reinit")


@dataclass(frozen=True)
class Scenario:
    """A command, run where ``base``, an adapter and a tower lie; ``subject`` is what it makes.

    A ``subject`` that is ``base`` is changed in place. ``first`` are commands that are run before,
    undisturbed; ``interrupted`` is one that is killed in the middle of its surgery. Only tensors
    that begin with one of ``changes`` may differ. Shards have other names in ``blobs`` if they are
    ``links``, hard or symbolic: these are inputs, whatever is done to the checkpoint.
    """

    name: str
    argv: tuple[str, ...]
    subject: str
    changes: tuple[str, ...]
    first: tuple[tuple[str, ...], ...] = ()
    interrupted: tuple[str, ...] = ()
    links: Literal["", "hard", "symbolic"] = ""

    @property
    def in_place(self) -> bool:
        """Whether it changes a checkpoint that is there."""
        return self.subject == "base"

    @property
    def undoes(self) -> bool:
        """Whether it is an undo itself."""
        return self.argv[0] == "undo"

    @property
    def can_be_done_again(self) -> bool:
        """Whether a second run does the same once more; a merged delta is not added twice."""
        return self.in_place and not self.undoes and self.argv[0] != "merge-lora"

    @property
    def can_be_undone(self) -> bool:
        """Whether it leaves what takes it back."""
        return self.in_place and not self.undoes and not self.interrupted


_LORA: Final = ("merge-lora", "--base", "base", "--adapter", "lora")
_LORA_MODULE: Final = "model.layers.0.self_attn.q_proj"

_PROJECTOR: Final = ("model.mm_projector.",)
_VISION: Final = ("model.mm_projector.", "model.vision_tower.")
_MERGE_HERE: Final = (*_MERGE, "--in-place")
_SWAP_HERE: Final = (*_SWAP, "--in-place")
_SET_HERE: Final = ("set", "base", "mm_hidden_size=64", "--in-place")
_CONVERT: Final = ("convert", "base", "--dtype", "f32", "--max-shard-size", "9KB")
_RESIZE: Final = ("resize-embeddings", "base", "--tokens", "40", "--init", "normal")
_ROWS: Final = ("model.embed_tokens.", "lm_head.")
_ALL: Final = ("",)

SCENARIOS: Final = (
    Scenario("merge", (*_MERGE, "--out", "out"), "out", _PROJECTOR),
    Scenario("merge-linked", (*_MERGE, "--out", "out", "--link", "hardlink"), "out", _PROJECTOR),
    Scenario("swap", (*_SWAP, "--out", "out"), "out", _VISION),
    Scenario("set-in-place", _SET_HERE, "base", ()),
    Scenario("merge-in-place", _MERGE_HERE, "base", _PROJECTOR),
    Scenario("merge-after-set", _MERGE_HERE, "base", _PROJECTOR, first=(_SET_HERE,)),
    Scenario("merge-of-hard-links", _MERGE_HERE, "base", _PROJECTOR, links="hard"),
    Scenario("merge-of-symbolic-links", _MERGE_HERE, "base", _PROJECTOR, links="symbolic"),
    Scenario("swap-in-place", _SWAP_HERE, "base", _VISION),
    Scenario("lora", (*_LORA, "--out", "out"), "out", (_LORA_MODULE,)),
    Scenario("lora-in-place", (*_LORA, "--in-place"), "base", (_LORA_MODULE,)),
    Scenario("convert", (*_CONVERT, "--out", "out"), "out", _ALL),
    Scenario("convert-in-place", (*_CONVERT, "--in-place"), "base", _ALL),
    Scenario("resize-in-place", (*_RESIZE, "--in-place"), "base", _ROWS),
    Scenario("undo-merge", ("undo", "base"), "base", _PROJECTOR, first=(_MERGE_HERE,)),
    Scenario("undo-swap", ("undo", "base"), "base", _VISION, first=(_SWAP_HERE,)),
    Scenario("recover-merge", ("recover", "base"), "base", _PROJECTOR, interrupted=_MERGE_HERE),
    Scenario("recover-swap", ("recover", "base"), "base", _VISION, interrupted=_SWAP_HERE),
)


@dataclass(frozen=True)
class Prepared:
    """A scenario with the directory that it starts from, and its subject before and after it."""

    scenario: Scenario
    template: Nodes
    old: Tree
    new: Tree
    _begun: dict[Path, object] = field(default_factory=dict)
    _judged: dict[str, str] = field(default_factory=dict)

    def fresh(self, directory: Path) -> Path:
        """``directory``, made or emptied, as the scenario starts from."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self.template.write(str(directory))
        move_in(directory)
        self._begun[directory] = identity(str(directory))
        return directory

    def judged(self, what: str, directory: Path, judge: Callable[[], str]) -> str:
        """What a judge says of a directory in which a run was.

        Where that left all as it found it, which is often, the judge is asked the first time only.
        """
        if identity(str(directory)) != self._begun[directory]:
            return judge()
        if what not in self._judged:
            self._judged[what] = judge()
        return self._judged[what]


def prepare(scenario: Scenario, runner: Runner, directory: Path) -> Prepared:
    """Build what a scenario starts from, and run it once, undisturbed, to know what it makes.

    That is checked independently: every tensor that may not change is what it was.
    """
    here = directory / "template"
    here.mkdir(parents=True)
    base = write_checkpoint(here / "base", _SPEC, dtype="BF16", shards=3)
    _give_other_names(base, here / "blobs", scenario)
    shapes = mm_projector("mlp2x_gelu", _SPEC.mm_hidden, _SPEC.hidden)
    write_adapter(here / "adapter.safetensors", shapes, dtype="BF16", seed=9)
    write_tower(here / "tower-siglip", TowerSpec("siglip"))
    _write_run(here / "lora")
    tensors = read_tensors(here / "base")
    for argv in scenario.first:
        _succeed(runner, argv, here)
    old = state(here, scenario)
    template = Nodes.load(str(here))
    if scenario.interrupted:
        template = _interrupt(scenario.interrupted, runner, template, directory / "interrupted")
        _succeed(runner, scenario.interrupted, here)
    else:
        _succeed(runner, scenario.argv, here)
    new = state(here, scenario)
    assert old != new
    after = read_tensors(here / scenario.subject)

    def kept(found: dict[str, Any]) -> dict[str, Any]:
        return {n: t for n, t in found.items() if not n.startswith(scenario.changes or ("-",))}

    assert kept(after) == kept(tensors)
    if "merge" in scenario.name:
        merged = tensors | read_tensors(here / "adapter.safetensors")
        assert after == (tensors if scenario.undoes else merged)
    if "convert" in scenario.name:
        assert after.keys() == tensors.keys()
        assert all(after[n][:2] == ("F32", tensors[n][1]) for n in tensors)
    prepared = Prepared(scenario, template, old, new)
    shutil.rmtree(here)
    return prepared


def _write_run(root: Path) -> None:
    """Write a LoRA run with one delta."""
    root.mkdir()
    prefix, width = f"base_model.model.{_LORA_MODULE}", _SPEC.hidden
    halves: dict[str, tuple[int, ...]] = {
        f"{prefix}.lora_A.weight": (4, width),
        f"{prefix}.lora_B.weight": (width, 4),
    }
    write_adapter(root / "adapter_model.safetensors", halves, dtype="BF16", seed=8, prefix="")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": [_LORA_MODULE], "peft_type": "LORA"}
    (root / "adapter_config.json").write_text(json.dumps(settings))


def _give_other_names(base: Path, blobs: Path, scenario: Scenario) -> None:
    if not scenario.links:
        return
    blobs.mkdir()
    for number, shard in enumerate(sorted(base.glob("*.safetensors"))):
        if scenario.links == "hard":
            (blobs / str(number)).hardlink_to(shard)
        else:
            shard.rename(blobs / str(number))
            shard.symlink_to(f"../blobs/{number}")


def _succeed(runner: Runner, argv: Sequence[str], cwd: Path) -> None:
    run = runner.run(argv, cwd)
    assert run.code == 0, run


def _interrupt(argv: Sequence[str], runner: Runner, start: Nodes, directory: Path) -> Nodes:
    """Kill a command before each of its changes, the last first, until it is mid-surgery."""

    def fresh() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        start.write(str(directory))
        move_in(directory)

    fresh()
    count, _ = runner.run_recorded(argv, directory)
    for at in range(count, 0, -1):
        fresh()
        assert runner.run_faulty(argv, directory, Fault(at)).killed
        if mid_surgery(directory / "base"):
            return Nodes.load(str(directory))
    raise AssertionError("no kill left it mid-surgery")


def move_in(root: Path) -> None:
    """Make the journals of checkpoints that were copied here those of the copies.

    A journal is signed for one directory with a key that lies outside of it, so that a copy is
    foreign. The states that a sweep makes of memory stand for one directory that stayed where it
    was: what was signed is signed again for the copy, and what was torn remains as it is.
    """
    key = known_key()
    for path in root.glob(f"*/{HOME}/*/journal.json"):
        try:
            journal = decode(path.read_bytes())
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if key is not None and journal.is_signed(key, journal.directory):
            signed = journal.signed(key, path.parents[2].stat().st_ino)
            path.write_bytes(signed.encode())


def state(root: Path, scenario: Scenario) -> Tree:
    """A scenario's subject as far as it counts: {} where it is absent."""
    path = root / scenario.subject
    return normal(Nodes.load(str(path)).tree()) if os.path.lexists(path) else {}


def normal(tree: Tree) -> Tree:
    """A checkpoint's tree without journals, stages, and the times in its provenance."""
    found: Tree = {"": None}
    for name, content in tree.items():
        if name.startswith(_HIDDEN):
            continue
        timed = name == _PROVENANCE and isinstance(content, bytes)
        found[name] = _without_times(content) if timed else content
    return found


def _without_times(content: bytes | str | None) -> bytes | str | None:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [strip(entry) for entry in value]
        return "time" if isinstance(value, str) and _TIME.fullmatch(value) else value

    try:
        return json.dumps(strip(json.loads(content or ""))).encode()
    except ValueError:
        return content


def call(*argv: object) -> Run:
    """Run the command line in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in argv])
        except SystemExit as exit_:
            code = exit_.code
    signal.signal(signal.SIGTERM, handler)
    assert isinstance(code, int)
    return Run(code, out.getvalue(), err.getvalue())


def mid_surgery(checkpoint: Path) -> bool:
    """Whether readers say so; they must agree. What validates says it as a finding."""
    inspected, validated = call("inspect", checkpoint), call("validate", checkpoint)
    mid = inspected.err.startswith("error: mid-surgery")
    assert inspected.code == (3 if mid else 0), inspected
    assert len(inspected.err.splitlines()) == mid, inspected
    assert validated.code in (0, 1), validated
    assert ("mid-surgery" in validated.out) is mid, (inspected, validated)
    assert validated.code or not mid, validated
    return mid
