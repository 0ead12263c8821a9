"""The guarantees as checks on a directory in which a run ended, or was ended."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.torture.disk import Node, Nodes, Tree
from tests.torture.power import Crash
from tests.torture.runner import Run
from tests.torture.scenarios import Prepared, call, mid_surgery, move_in, normal, state


def after_kill(prepared: Prepared, root: Path) -> str:
    """Guarantees 1, 2, 4 and 5, for a run that died; "old" or "new", what it came to."""

    def judge() -> str:
        _check_surroundings(prepared, root)
        assert len(leftovers(prepared, root)) <= 1
        outcome = settled(prepared, root)
        clean(prepared, root)
        return outcome

    return prepared.judged("killed", root, judge)


def after_success(prepared: Prepared, root: Path) -> str:
    """What exit 0 promises: the result is right, and there is nothing else."""
    _check_surroundings(prepared, root)
    assert leftovers(prepared, root) == []
    if prepared.scenario.interrupted:
        assert state(root, prepared.scenario) in (prepared.old, prepared.new)
    else:
        assert state(root, prepared.scenario) == prepared.new
    if prepared.scenario.in_place:
        assert not mid_surgery(root / "base")
    return "new"


def after_error(prepared: Prepared, root: Path, run: Run, *, persistent: bool) -> str:
    """What a run that met an error may leave: its result or nothing; how it ended.

    A persistent error may make it impossible to clean up or to roll back: then it is as if the run
    had been killed, and a checkpoint in place says that it is mid-surgery.
    """
    assert "Traceback" not in run.out + run.err, run
    if run.code == 0:
        after_success(prepared, root)
        return "done all the same"
    lines = run.err.splitlines()
    assert run.code in (1, 2, 3), run
    assert len(lines) == 1 and lines[0].startswith("error: "), run
    assert "internal-error" not in lines[0], run
    if persistent and leftovers(prepared, root):
        after_kill(prepared, root)
        return "could not clean up"
    return prepared.judged("failed", root, lambda: _left_by_error(prepared, root, run))


def _left_by_error(prepared: Prepared, root: Path, run: Run) -> str:
    _check_surroundings(prepared, root)
    assert leftovers(prepared, root) == []
    if prepared.scenario.interrupted or (prepared.scenario.in_place and mid_surgery(root / "base")):
        settled(prepared, root)
        return "mid-surgery"
    if prepared.scenario.undoes and state(root, prepared.scenario) == prepared.new:
        # All is put back; what failed is only to make it last that the journal has gone. A power
        # cut could bring that back, and recover would do the same again: it is what is advised.
        assert "vita-ckpt recover" in run.err, run
        assert call("recover", root / "base").code == 0
        assert state(root, prepared.scenario) == prepared.new
        return "undone, and not sure to last"
    assert state(root, prepared.scenario) == prepared.old, run
    return "nothing done"


def after_interrupt(prepared: Prepared, root: Path, run: Run) -> str:
    """A run that was asked to end: it says what it left, and leaves nothing else."""
    assert run.code == 130, run
    lines = run.err.strip().splitlines()  # click ends the line of a ^C first
    assert len(lines) == 1 and lines[0].startswith("error: interrupted"), run
    outcome = prepared.judged("interrupted", root, lambda: _left_by_interrupt(prepared, root, run))
    claims = {"nothing was written": "old", "as it was": "old", "complete": "new"}
    if not prepared.scenario.interrupted:
        assert all(claims[words] == outcome for words in claims if words in lines[0]), (
            outcome,
            run,
        )
    said = lines[0].removeprefix("error: interrupted").removeprefix(": ")
    return f"{outcome}, as it said: {said.replace(str(root), '')!r}"


def _left_by_interrupt(prepared: Prepared, root: Path, run: Run) -> str:
    _check_surroundings(prepared, root)
    assert leftovers(prepared, root) == [], run
    if prepared.scenario.interrupted:
        settled(prepared, root)
    elif prepared.scenario.in_place:
        assert not mid_surgery(root / "base"), run
    now = state(root, prepared.scenario)
    assert now in (prepared.old, prepared.new), differences(prepared, root)
    return "old" if now == prepared.old else "new"


def after_crash(prepared: Prepared, crash: Crash, directory: Path) -> str:
    """A power cut: as after a kill, though any part of what was not synced is lost.

    At the end of a run nothing may be: exit 0 has been said. A state in place is made a directory,
    for recover to mend.
    """
    scenario = prepared.scenario
    if not scenario.in_place:
        found = _split(crash.tree, scenario.subject)
        assert found[""] == _split(prepared.template.tree(), scenario.subject)[""]
        made = normal(found[scenario.subject]) if scenario.subject in crash.tree else {}
        assert made == prepared.new or (made == prepared.old and not crash.last), crash
        return "old" if made == prepared.old else "new"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    crash.nodes.write(str(directory))
    move_in(directory)
    _check_surroundings(prepared, directory)
    outcome = settled(prepared, directory)
    if crash.last and not scenario.interrupted:
        assert outcome == "new"
        if scenario.can_be_undone:
            undone(prepared, directory)
    return outcome


def settled(prepared: Prepared, root: Path) -> str:
    """Exactly old or exactly new, if need be once recover has mended it: "old" or "new"."""
    scenario, now = prepared.scenario, state(root, prepared.scenario)
    if scenario.in_place:
        checkpoint = root / scenario.subject
        mid = mid_surgery(checkpoint)
        assert mid or now in (prepared.old, prepared.new)
        _recover(checkpoint)
        mended = state(root, scenario)
        assert mid or mended == now
        now = mended
        assert not mid_surgery(checkpoint)
        before = Nodes.load(str(checkpoint)).tree()
        _recover(checkpoint)
        assert Nodes.load(str(checkpoint)).tree() == before, "recover on a healthy checkpoint"
    assert now in (prepared.old, prepared.new), differences(prepared, root)
    return "old" if now == prepared.old else "new"


def undone(prepared: Prepared, root: Path) -> None:
    """A result in place goes back, bit for bit, by undo."""
    run = call("undo", root / prepared.scenario.subject)
    assert run.code == 0, run
    assert state(root, prepared.scenario) == prepared.old


def leftovers(prepared: Prepared, root: Path) -> list[str]:
    """Stages beside the subject, or in it."""
    places = [root, root / prepared.scenario.subject] if prepared.scenario.in_place else [root]
    return [str(path) for place in places for path in place.glob(".vita-ckpt-*.tmp")]


def clean(prepared: Prepared, root: Path) -> None:
    """Dead stages go, and nothing else does."""
    before = state(root, prepared.scenario)
    run = call("clean", root / "base" if prepared.scenario.in_place else root)
    assert run.code == 0, run
    assert leftovers(prepared, root) == []
    assert state(root, prepared.scenario) == before
    _check_surroundings(prepared, root)


def differences(prepared: Prepared, root: Path) -> str:
    """Where a subject is neither what it was nor what it should be."""
    found = state(root, prepared.scenario)
    said = []
    for name in sorted({*found, *prepared.old, *prepared.new}):
        same = [
            label
            for label, tree in (("old", prepared.old), ("new", prepared.new))
            if found.get(name, "absent") == tree.get(name, "absent")
        ]
        said.append(f"{name}: {' and '.join(same) or 'neither'}")
    return "; ".join(said)


def _recover(checkpoint: Path) -> None:
    run = call("recover", checkpoint)
    assert run.code == 0, run


def _split(tree: Tree, subject: str) -> dict[str, Tree]:
    """What lies below a subject, by paths in it; "" is everything else but stages."""
    parts: dict[str, Tree] = {"": {}, subject: {}}
    for path, content in tree.items():
        first, _, rest = path.partition("/")
        if first == subject:
            if rest:
                parts[subject][rest] = content
        elif not first.startswith(".vita-ckpt-"):
            parts[""][path] = content
    return parts


def _check_surroundings(prepared: Prepared, root: Path) -> None:
    """Every input is what it was, its times included, and nothing new is there but stages."""
    scenario = prepared.scenario

    def others(nodes: Nodes) -> dict[str, Node | None]:
        found: dict[str, Node | None] = {}
        for path, number in nodes.below(nodes.root):
            first = path.partition("/")[0]
            if first != scenario.subject and not first.startswith(".vita-ckpt-"):
                node = nodes.nodes[number]
                found[path] = None if nodes.is_directory(number) else node
        return found

    assert others(Nodes.load(str(root))) == others(prepared.template)
