"""Take a tower from a donor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.families import VITA, ModelFamily, family_of
from vita_ckpt.core.anatomy.towers import Tower
from vita_ckpt.core.anatomy.towers.tensors import expected_shapes
from vita_ckpt.core.binding.modules import Surroundings, tower_class
from vita_ckpt.core.checkpoint import Checkpoint, Shape
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.kinds import kind_of
from vita_ckpt.core.quantisation import refuse_codes
from vita_ckpt.core.serving import builds_tower
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.surgery.donors import without_inner_wrappers
from vita_ckpt.surgery.vision.arguments import VisionModelArgs


@dataclass(frozen=True, slots=True)
class DonorTower:
    """A tower to put into a checkpoint, with exactly the tensors that its config describes."""

    checkpoint: Checkpoint
    shapes: Mapping[str, Shape]  # of the checkpoint's tensors, including any others
    described: Tower
    config: Mapping[str, Any]
    guessed: bool  # derived from the tensors, as for every lone file

    @classmethod
    def of(cls, args: VisionModelArgs) -> DonorTower:
        """Look at what was given as a tower. Raises InputError for what is none."""
        checkpoint = without_inner_wrappers(args.vision_tower)
        refuse_quantised_tower(checkpoint)
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        below = parts.below(parts.TOWER_PREFIX, shapes)
        if below:  # another VITA checkpoint: only its tower counts
            shapes = {parts.TOWER_PREFIX + name: shape for name, shape in below.items()}
        described = towers.tower_of_shapes(shapes)
        if described is None:
            model_type = (checkpoint.config or {}).get("model_type")
            raise InputError(
                "unknown-tower",
                checkpoint.root,
                expected=f"the tensors of a {towers.listed(towers.KNOWN)} tower",
                got=f"none of these, and model_type {model_type!r}"
                if model_type
                else ", ".join(list(shapes)[:4]),
                hint="give the tower's own directory",
            )
        sizes = towers.config_of_shapes(shapes)
        given = None if described.traits.lone_file else args.tower_config
        if given is not None and below:  # as its family stores it, which may cut it
            donor = family_of(checkpoint.config, checkpoint.tensors) or VITA
            given = donor.stored_tower(described.family, given)
        config = given or sizes
        if config is None and described.traits.lone_file:
            raise InputError(
                "weights-do-not-fit",
                checkpoint.root,
                expected=towers.enumerate_words([*described.traits.sizing_tensors], "and")
                + f", by which {described.traits.label}'s sizes are known",
                got=f"{described}, without one of them",
                hint="the tower is incomplete",
            )
        if config is None:
            raise InputError(
                "tower-config-unknown",
                checkpoint.root,
                expected="a config.json beside the tower's weights, which do not determine it",
                got=f"{described}",
                hint="copy the tower's config.json there, or give it with --tower-config",
            )
        tower = cls(checkpoint, shapes, described, config, config is sizes)
        tower._check()
        return tower

    def _check(self) -> None:
        by_config = towers.tower_of_config(self.config)
        if by_config is not None and (by_config.family, by_config.layers) != (
            self.described.family,
            self.described.layers,
        ):
            raise InputError(
                "tower-config-mismatch",
                self.checkpoint.root,
                expected=f"the tensors of {by_config}, as its config says",
                got=f"those of {self.described}",
                hint="the config.json belongs to another tower: --tower-config names the right one",
            )
        found = {own: self.shapes[name] for name, own in towers.own_names(self.shapes).items()}
        compare(expected_shapes(self.config), found).refuse(
            self.checkpoint.root,
            f"exactly the tensors of {by_config or self.described}, as its config says",
            "the tower is incomplete, or the config.json belongs to another one",
        )
        if self.described.has_odd_grid:
            raise InputError(
                "odd-patch-grid",
                self.checkpoint.root,
                expected=f"{self.described.traits.grid_needed}, "
                f"for {self.described.traits.label}'s pixel shuffle",
                got=f"{self.described.grid} ({self.described})",
                hint="no checkpoint with this tower runs upstream",
            )

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return the plan's notes about the tower."""
        tokens = self.described.tokens()
        width = config["mm_hidden_size"]
        notes = [f"vision tower: {self.described}, {tokens} tokens of {width} features per image"]
        if self.guessed and not self.described.traits.lone_file:
            notes.append("the tower has no config.json: taken for the published one of its shapes")
        kind = str(config["mm_projector_type"])
        if tokens is not None and projectors.tokens_out(kind, tokens) is None:
            notes.append(f"a {kind} projector cannot take {tokens} tokens: upstream will raise")
        return notes


def refuse_quantised_tower(checkpoint: Checkpoint) -> None:
    """Raise AdapterError if the tower of ``checkpoint``, or the lone tower, is quantised."""
    kind = kind_of(checkpoint)
    own = [n for n in checkpoint.tensors if kind.part_of(n) == parts.VISION_TOWER]
    refuse_codes(checkpoint, own or checkpoint.tensors, "a vision tower")


def check_path(
    args: VisionModelArgs, tower: Tower, config: Mapping[str, Any], family: ModelFamily
) -> None:
    """Raise InputError unless upstream builds this tower's class from ``mm_vision_tower``."""
    path = args.mm_vision_tower
    if not path.isprintable():
        raise UsageError("invalid-tower-path", path, expected="a printable path")
    by_path = tower_class(config, Surroundings(path_exists=args.path_exists), family)
    if by_path is None or by_path.family == tower.family:
        return
    by_rule = by_path.reason.outcome in (towers.Outcome.RULE, towers.Outcome.NO_RULE)
    raise InputError(
        "tower-path-misleads",
        path,
        expected=f"a path that upstream takes for {tower.traits.label}",
        got=f"{by_path.tower_class or 'nothing'}: {by_path.reason}",
        hint="the run's config.json names it: the run was trained with another tower"
        if args.run_config
        else _other_path(family, tower)
        if by_rule
        else "rename the directory, or name the path for the config with --tower-path",
    )


def _other_path(family: ModelFamily, tower: Tower) -> str:
    """Say by which path a family's loader would build a tower, if by any."""
    name = f"name/{tower.family}"
    built = family.dispatch({"mm_vision_tower": name}, lambda _: False).family
    if built == tower.family:
        return f"--tower-path names it as the hub does, with {tower.family!r} in the name"
    return f"{family.label} builds no {tower.traits.label} tower from any path"


def check_serving(base: Checkpoint, tower: Tower) -> None:
    """Raise InputError for a tower that a deployment folder's config.json cannot describe."""
    if base.serving_config is not None and not builds_tower(base.serving_config, tower.family):
        raise InputError(
            "serving-config-cannot-follow",
            base.root,
            expected="a tower of the family that its config.json, a server's, describes",
            got=f"{tower}",
            hint="swap the tower of the checkpoint that was deployed, and deploy that again",
        )
