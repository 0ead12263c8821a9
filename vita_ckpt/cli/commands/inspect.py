"""``vita-ckpt inspect``: what a checkpoint is, on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from vita_ckpt.api.inspect import inspect, list_tensors, module_tree
from vita_ckpt.api.locate import as_checkpoint, check_key
from vita_ckpt.checks.audio_summary import AudioSummary
from vita_ckpt.checks.inspection.rows import ModuleRow, TensorRow
from vita_ckpt.checks.inspection.summary import ConfigLine, Inspection
from vita_ckpt.cli import completion, console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.outputs import Output, check_outputs, html_option, write_output
from vita_ckpt.cli.paths import ANYWHERE, key_option
from vita_ckpt.cli.progress import shown_progress
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families import FAMILIES
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import CONFIG
from vita_ckpt.core.kinds import CHECKPOINTS
from vita_ckpt.core.memory import Memory
from vita_ckpt.core.reading_notes import reading_notes
from vita_ckpt.core.spelling import globs_of_nothing
from vita_ckpt.core.training.state import TrainingState
from vita_ckpt.errors import printable

if TYPE_CHECKING:
    from vita_ckpt.checks.distribution import Distribution

_KINDS = {
    **{kind: f"{FAMILIES[name].label} checkpoint" for name, kind in CHECKPOINTS.items()},
    "language-model": "plain language model, no vision modules",
    "projector": "projector adapter",
    "lora-run": "LoRA run",
    "vision-tower": "standalone vision tower",
    "audio-adapter": "audio adapter",
    "multimodal-model": "multimodal model of another family",
    "peft-model": "unmerged PEFT save: a model with its adapter beside the weights",
    "shard": "one file of a checkpoint that consists of several: name its directory",
    "training-state": "training state, no checkpoint",
    "unknown": "weights of no known kind",
}


@click.command("inspect")
@click.argument("checkpoint", type=ANYWHERE)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema inspect-v1).")
@click.option(
    "--tensors",
    "pattern",
    is_flag=False,
    flag_value="*",
    shell_complete=completion.tensors,
    metavar="[GLOB]",
    help="List the tensors, or those whose names match GLOB.",
)
@click.option(
    "--depth", type=click.IntRange(1, 64), metavar="N", help="A module tree, N name parts deep."
)
@click.option("--values", is_flag=True, help="Read every byte: how large values are, by part.")
@html_option
@click.option(
    "--dtype",
    metavar="DTYPE",
    shell_complete=completion.dtypes,
    help="Estimate the memory in f32, bf16 or f16.  [default: the commonest of the weights]",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1 << 20),
    default=1,
    show_default=True,
    metavar="N",
    help="Estimate the memory for N inputs at once.",
)
@key_option
@click.pass_obj
def command(
    settings: Settings,
    /,
    checkpoint: str,
    as_json: bool,
    pattern: str | None,
    depth: int | None,
    values: bool,
    page: Output | None,
    dtype: str | None,
    batch: int,
    key: str | None,
) -> int:
    """Show what a checkpoint is, without loading it.

    CHECKPOINT is a checkpoint directory, an adapter or its run, a LoRA run, a vision tower, or a
    single weight file. Every key of the vision config is shown beside what the weights themselves
    say. A tower directory that cannot be reached from here is reported, but is not an error. Exit 1
    if config.json is missing, or the adapter_config.json of a LoRA run.
    """
    stores = settings.stores
    if page is not None:
        check_outputs((page,), (checkpoint,))
    opened = as_checkpoint(checkpoint, stores, key)
    check_key(key, opened)
    for note in reading_notes(opened):
        settings.note(note)
    inspection = inspect(opened, dtype=dtype, batch=batch, stores=stores)
    tensors = list_tensors(opened, pattern) if pattern is not None else None
    modules = module_tree(opened, depth) if depth is not None else None
    found = _distributions(opened, settings) if values else None
    if page is not None:
        write_output(page, _page(inspection, opened, found))
    if tensors == [] and pattern is not None:
        settings.note(globs_of_nothing((pattern,), opened.tensors)[0])
    if as_json:
        said = None if found is None else {part: one.to_dict() for part, one in found.items()}
        lists = {"tensor_list": tensors, "modules": modules, "values": said}
        render.echo_json({**inspection.to_dict(), **lists})
    elif tensors is None and modules is None:
        console.say("\n".join((*_screen(inspection), *_value_lines(found or {}))))
    else:
        tables = [_tensor_table(tensors)] if tensors is not None else []
        tables += [_module_table(modules)] if modules is not None else []
        tables += [*_value_lines(found or {})][1:]
        console.say("\n\n".join(tables))
    return 1 if inspection.missing else 0


def _distributions(opened: Checkpoint, settings: Settings) -> dict[str, Distribution]:
    from vita_ckpt.api.distribution import distributions  # noqa: PLC0415 - numpy

    with shown_progress(settings.quiet) as on_progress:
        return distributions(opened, on_progress=on_progress, stores=settings.stores)


def _page(
    inspection: Inspection, opened: Checkpoint, values: Mapping[str, Distribution] | None
) -> str:
    from vita_ckpt.cli.html.inspection import inspection_page  # noqa: PLC0415 - start-up

    return inspection_page(
        inspection,
        opened,
        _headline(inspection),
        _config_rows(inspection),
        list(_facts(inspection)),
        values,
    )


def _screen(inspection: Inspection) -> Iterable[str]:
    yield printable(render.path(inspection.path))
    yield "  " + printable(_headline(inspection))
    yield ""
    rows = [
        (
            parts.LABELS[part.name],
            part.tensors,
            render.count(part.parameters),
            render.size(part.bytes),
            ", ".join(part.dtypes) or "–",
        )
        for part in inspection.parts
    ]
    total = render.count(inspection.parameters), render.size(inspection.bytes)
    rows.append(("total", inspection.tensors, *total, ", ".join(inspection.dtypes) or "–"))
    yield render.table(rows, ("part", "tensors", "params", "bytes", "dtype"), " rrr ")
    lines = _config_rows(inspection)
    if lines:
        yield ""
        yield render.table(lines, ("config", "value", "weights say", "agree"))
    facts = list(_facts(inspection))
    if facts:
        yield ""
        yield render.table(facts, ("", "")).lstrip("\n")
    if inspection.needs_alignment:
        yield "! the projector was drawn at random: it needs alignment training"
    for sentence in inspection.disagreements:
        yield printable(f"! {sentence}")
    for name, reason in inspection.left_out.items():
        yield printable(f"· {name}: {reason}")


def _config_rows(inspection: Inspection) -> list[tuple[str, str, str, str]]:
    return [
        (key, _value(line), _as_text(line.weights), _verdict(line))
        for key, line in inspection.config.items()
        if line.present or line.weights is not None
    ]


def _value_lines(values: Mapping[str, Distribution]) -> Iterable[str]:
    if not values:
        return
    rows = [
        (
            parts.LABELS[part],
            f"{one.elements:,}",
            *(f"{number:,}" for number in (one.zeros, one.nan, one.infinite)),
            "–" if one.typical is None else f"{one.typical:.3g}",
            f"{one.largest:.3g}" if one.elements else "–",
        )
        for part, one in values.items()
    ]
    headers = ("part", "values", "zero", "NaN", "infinite", "median |x| from", "largest |x|")
    yield ""
    yield render.table(rows, headers, " rrrrrr")


def _headline(inspection: Inspection) -> str:
    words = [_KINDS[inspection.kind]]
    if inspection.family is not None and inspection.kind not in CHECKPOINTS.values():
        words[0] = f"{words[0]}: {inspection.family}"
    if inspection.quantisation is not None:
        words.append(f"quantised: {inspection.quantisation}")
    if inspection.model_type is not None:
        architectures = ", ".join(inspection.architectures)
        words.append(inspection.model_type + (f" ({architectures})" if architectures else ""))
    if inspection.backbone is not None:
        loader = f", loader {inspection.loader_name}" if inspection.loader_name else ""
        words.append(f"{inspection.backbone} backbone{loader}")
    files = len(inspection.shards)
    formats = " + ".join(sorted({shard.format for shard in inspection.shards}))
    on_disk = render.size(sum(shard.bytes for shard in inspection.shards))
    words.append(f"{on_disk} in {files} {formats} file{'s' if files != 1 else ''}")
    return " · ".join(words)


def _facts(inspection: Inspection) -> Iterable[tuple[str, str]]:
    if inspection.config_file not in (None, CONFIG):
        yield "config", f"{inspection.config_file}; {CONFIG} is a server's, such as vLLM's"
    yield from _family_facts(inspection)
    if inspection.dispatch is not None:
        built = inspection.dispatch.tower_class or "nothing"
        yield "upstream builds", f"{built}: {inspection.dispatch.reason}"
    if inspection.tower is not None and inspection.kind in (
        "vision-tower",
        "multimodal-model",
    ):
        yield "tower", f"{inspection.tower}"
    directory = inspection.tower_directory
    if directory is not None:
        what = directory.problem or str(directory.tower or "no known tower")
        where = f" ({render.path(directory.path)})" if directory.path is not None else ""
        yield "tower directory", f"{what}{where}"
    if inspection.projector is not None:
        types = " or ".join(inspection.projector.types)
        widths = f"{inspection.projector.in_width}→{inspection.projector.out_width}"
        yield "projector", f"{types} {widths}"
    if inspection.training is not None:
        yield from _training(inspection.training)
    yield from _audio_facts(inspection)
    if inspection.lora is not None:
        lora = inspection.lora
        base = lora.base_model or "not named"
        yield "LoRA", f"{lora.deltas} deltas, r {lora.r}, alpha {lora.lora_alpha}, base {base}"
        yield "LoRA targets", ", ".join(lora.targets) or "not named"
        share = "" if lora.share is None else f", {lora.share:.0%} of the language model"
        yield "LoRA changes", f"{lora.modules} weights, {lora.changes:,} parameters{share}"
        if lora.trained:
            where = f", projector in {lora.projector_file}" if lora.projector_file else ""
            yield "trained beside", f"{lora.trained} tensors{where}"
    if inspection.tokens_per_image is not None:
        yield (
            "tokens per image",
            str(inspection.tokens_per_image)
            + (" for each tile" if inspection.tiles is not None else ""),
        )
    if inspection.tiles is not None:
        yield "tiles", inspection.tiles
    if inspection.memory is not None:
        yield from _memory(inspection.memory)


def _memory(memory: Memory) -> Iterable[tuple[str, str]]:
    sizes: dict[int, list[str]] = {}
    for dtype, size in memory.weights_as.items():
        if dtype != memory.dtype:
            sizes.setdefault(size, []).append(dtype)
    others = (f"{render.size(size)} in {' or '.join(dtypes)}" for size, dtypes in sizes.items())
    needs = [f"weights {render.size(memory.weights)} in {memory.dtype} ({', '.join(others)})"]
    if memory.kv_cache_per_1000_tokens is not None:
        needs.append(f"KV cache {render.size(memory.kv_cache_per_1000_tokens)} for 1,000 tokens")
    if memory.tower_activations is not None:
        needs.append(f"tower {render.size(memory.tower_activations)} for one image")
    if memory.batch > 1:
        needs.append(f"tokens and image of each of {memory.batch} inputs")
    yield "memory", "; ".join(needs)


def _family_facts(inspection: Inspection) -> Iterable[tuple[str, str]]:
    """Yield what distinguishes a family: which tower its loader takes, and what of it."""
    if inspection.family_evidence is None:
        return
    yield "family", f"{inspection.family}, by {inspection.family_evidence}"
    facts = {
        "tower from": inspection.tower_source,
        "features": inspection.features,
    }
    yield from ((label, fact) for label, fact in facts.items() if fact is not None)


def _training(state: TrainingState) -> Iterable[tuple[str, str]]:
    yield "training state", ", ".join(state.summary())
    if state.dtype:
        yield "trained in", state.dtype
    known = (("trained", state.trained), ("frozen", state.frozen), ("buffers", state.buffers))
    counts = [f"{len(names)} {label}" for label, names in known if names]
    counts += [f"{name} tied to {stored}" for name, stored in list(state.shared.items())[:2]]
    counts += ["frozen parameters excluded"] if state.excluded else []
    if counts:
        yield "tensors", ", ".join(counts)
    sizes = f"masters {render.size(state.master_bytes)}"
    yield (
        "sizes",
        sizes + (f", moments {render.size(state.moment_bytes)}" * bool(state.moment_bytes)),
    )
    for note in state.notes:
        yield "", note


def _audio_facts(inspection: Inspection) -> Iterable[tuple[str, str]]:
    directory, audio = inspection.audio_directory, inspection.audio
    if directory is not None:
        where = f" ({render.path(directory.path)})" if directory.path is not None else ""
        yield "audio directory", (directory.problem or "readable") + where
    if audio is not None and audio.width is not None:
        words = [f"{audio.blocks} blocks of width {audio.width}"]
        words += [f"{audio.heads} heads"] if audio.heads is not None else []
        words += [f"{audio.mel_bins} mel bins", f"{audio.positions}"]
        words += _chunks(audio)
        yield "audio encoder", ", ".join(words)
    if audio is not None and audio.adapter is not None:
        widths = f"{audio.adapter} {audio.adapter_in_width}→{audio.adapter_out_width}"
        details = [f"kernel {audio.adapter_kernel}"] if audio.adapter != "linear" else []
        details += [f"{audio.adapter_norm} norm"] if audio.adapter_norm is not None else []
        details += [audio.adapter_activation] if audio.adapter_activation is not None else []
        yield "audio adapter", ", ".join([widths, *details])
    if audio is not None and audio.prompt:
        yield "audio prompt", f"{audio.prompt} embeddings"


def _chunks(audio: AudioSummary) -> list[str]:
    if audio.chunk is None or audio.left_chunks is None:
        return []
    if audio.chunk <= 0:
        text = "no chunks"
    else:
        left = "all" if audio.left_chunks < 0 else f"{audio.left_chunks}"
        text = f"chunks of {audio.chunk}, {left} to the left"
    return [text + (" (upstream draws them at random)" if audio.dynamic_chunks else "")]


def _value(line: ConfigLine) -> str:
    if not line.present:
        return "–"
    return line.problem if line.problem is not None else _as_text(line.value)


def _as_text(value: Any) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _verdict(line: ConfigLine) -> str:
    return {True: "yes", False: "NO", None: ""}[line.agrees]


def _tensor_table(tensors: list[TensorRow]) -> str:
    rows = [(t["name"], t["dtype"], t["shape"], t["shard"] or "–", t["bytes"]) for t in tensors]
    return render.table(rows, ("name", "dtype", "shape", "shard", "bytes"), "    r")


def _module_table(modules: list[ModuleRow]) -> str:
    rows = [
        (
            "· " * m["name"].count(".") + m["name"].rpartition(".")[2],
            m["tensors"],
            render.count(m["parameters"]),
            render.size(m["bytes"]),
        )
        for m in modules
    ]
    return render.table(rows, ("module", "tensors", "params", "bytes"), " rrr")
