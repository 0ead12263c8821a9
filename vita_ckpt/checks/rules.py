"""List the rules: every id that a finding can have, with its severity and meaning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vita_ckpt.core.anatomy.towers import KNOWN, listed
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.report import Finding, Severity


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its stable id, how bad a violation is, one line, and why it matters."""

    id: str
    severity: Severity
    title: str
    why: str


def finding(rule: str, subject: str, message: str, *, hint: str = "", file: str = "") -> Finding:
    """Return a violation of ``rule`` with its severity. Raises KeyError for an unknown rule."""
    return Finding(rule, RULES[rule].severity, subject, message, hint, file)


_FILES: Final = (
    Rule(
        "mid-surgery",
        "error",
        "a surgery in place is under way, or was interrupted",
        "Some bytes are old and some are new, which no loader can see; vita-ckpt recover restores "
        "the old state.",
    ),
    Rule(
        "missing-shard",
        "error",
        "a file that the index names is not there",
        "Every loader stops here, most of them after reading the others for minutes.",
    ),
    Rule(
        "lone-shard",
        "error",
        "one file of a checkpoint that consists of several",
        "What is sound in it says nothing about the others: validate the directory.",
    ),
    Rule(
        "index-mismatch",
        "error",
        "the index and a weight file disagree about a tensor",
        "Some loaders silently leave out a tensor that the index does not name, others read it. "
        "One that is named and missing is initialised at random, or stops the load.",
    ),
    Rule(
        "duplicate-tensor",
        "error",
        "one tensor in two files of a checkpoint",
        "Which one counts depends on the order in which a loader reads the files.",
    ),
    Rule(
        "index-total-size",
        "error",
        "total_size of the index is not the size of the tensors",
        "It misleads tools that plan memory or check a download by it. The index was edited, or "
        "belongs to other files.",
    ),
    Rule(
        "stale-weights",
        "error",
        "a weight file that the index does not name but that some loader reads",
        "Upstream reads every *.safetensors file of the directory when unfreeze_vision_tower is "
        "set, and huggingface_hub prefers a single file to an index: old weights come back.",
    ),
    Rule(
        "other-weights",
        "warning",
        "a weight file beside the checkpoint that no loader of VITA reads",
        "It doubles the download, and readers take it for the checkpoint.",
    ),
    Rule(
        "ambiguous-weights",
        "error",
        "a single weight file beside an index that does not name it",
        "Loaders disagree which of the two counts.",
    ),
    Rule(
        "partial-download",
        "warning",
        "a file of an interrupted download or copy",
        "What it should have become may be missing or incomplete.",
    ),
    Rule(
        "git-lfs-pointer",
        "error",
        "a git-lfs pointer in the place of a file",
        "The repository was cloned without git-lfs: the file itself was not downloaded.",
    ),
    Rule(
        "missing-index",
        "error",
        "several weight files and no index",
        "No loader knows which of them to read.",
    ),
    Rule(
        "weights-misnamed",
        "error",
        "the only weight file of a model's directory has a name that no loader looks for",
        "Loaders find no weights in it.",
    ),
    Rule(
        "several-steps",
        "error",
        "a run with several projectors",
        "It is unknown which one is meant: validate one of them.",
    ),
    Rule(
        "other-kind",
        "error",
        "weights of another kind than VITA's loaders read",
        "They are quantised, exported, or the state of a trainer. A loader needs the model that "
        "they were made from, or that the state becomes.",
    ),
    Rule(
        "other-family",
        "error",
        "a whole multimodal model that no known loader reads",
        "No loader of a known family reads it. Its tower can be taken out of it, and its projector "
        "if a family has that type. validate --kind looks at one part of it.",
    ),
    Rule(
        "unmerged-peft",
        "error",
        "a model saved by PEFT with its adapter beside the weights",
        "No model has names such as base_layer and lora_A.default, so a loader finds nothing that "
        "it knows.",
    ),
    Rule(
        "trained-beside",
        "note",
        "a trained projector, adapter or LoRA run beside a whole model",
        "The loaders of the model do not read it: what was trained is lost to them until it is "
        "merged.",
    ),
    Rule(
        "trained-in-state",
        "warning",
        "a step of a LoRA run whose other trained tensors are in the trainer's state alone",
        "The trainer writes non_lora_trainables.bin at the end of a run. Before that the projector "
        "is in the DeepSpeed state of the step.",
    ),
    Rule(
        "unreadable-file",
        "error",
        "a file that the system refuses to read",
        "Permissions, a broken link or a failing disk: no loader can read it either.",
    ),
    Rule(
        "training-state",
        "note",
        "state of the run that trained the checkpoint",
        "Optimiser states weigh more than the model, and some of them are pickles that execute "
        "code when they are loaded.",
    ),
)

_PICKLES: Final = (
    Rule(
        "pickle-runs-code",
        "error",
        "a pickle beside the weights that runs code when it is loaded",
        "It calls functions that start programs, reach files or look up functions by name. "
        "torch.load without weights_only, pickle.load, joblib.load and numpy.load with "
        "allow_pickle execute them.",
    ),
    Rule(
        "pickle-unknown-global",
        "warning",
        "a pickle beside the weights with a global that no trainer writes",
        "Loading it imports the module and calls what is named, and what that does is unknown.",
    ),
    Rule(
        "pickle-not-read",
        "warning",
        "a pickle beside the weights that could not be looked through",
        "It is damaged, packed, or too large: what it does when it is loaded is not known.",
    ),
    Rule(
        "pickle-of-trainer",
        "note",
        "a pickle beside the weights with objects that trainers write",
        "No loader of VITA needs it, and only torch.load without weights_only reads it.",
    ),
    Rule(
        "weights-with-objects",
        "warning",
        "a weight file of torch.save with objects beside its tensors",
        "torch.load with weights_only, its default since 2.6, refuses the whole file.",
    ),
    Rule(
        "several-state-dicts",
        "note",
        "a weight file of torch.save with several state dicts",
        "Only the program that wrote it knows which of them counts.",
    ),
)

# What breaks a format is no matter of degree: the ids are the codes of the errors of readers.
_FORMATS: Final = tuple(
    Rule(id_, "error", title, why)
    for ids, title, why in (
        (
            ("header-too-small", "header-too-large", "invalid-header-length"),
            "the length of a safetensors header cannot be right",
            "The file is cut off, or is not a safetensors file.",
        ),
        (
            ("invalid-header-start", "invalid-header-utf8", "invalid-header-json"),
            "a safetensors header that is not a JSON object",
            "The file is damaged, or is not a safetensors file.",
        ),
        (
            ("duplicate-key", "invalid-metadata", "invalid-tensor-entry", "unknown-dtype"),
            "a safetensors header that breaks the format",
            "The library refuses it, or takes one of two meanings.",
        ),
        (
            ("invalid-offsets", "invalid-shape", "misaligned-tensor"),
            "a tensor whose place in the file cannot be right",
            "The library refuses the file.",
        ),
        (
            ("shape-overflow", "tensor-size-mismatch"),
            "a tensor whose shape and bytes do not go together",
            "The library refuses the file.",
        ),
        (
            ("hole-in-data", "overlapping-tensors", "trailing-bytes"),
            "tensors that do not fill their file end to end",
            "The library refuses the file; what lies in a hole is hidden from every reader.",
        ),
        (
            ("truncated-file", "empty-file"),
            "a file that is cut off",
            "Half of a copy or download: loading stops, or reads what is not there.",
        ),
        (
            ("invalid-zip", "compressed-zip-entry", "duplicate-zip-entry"),
            "a .bin that is not a zip as torch.save writes it",
            "The file is damaged, or made to be read in two ways.",
        ),
        (
            ("invalid-pickle", "pickle-too-large", "invalid-name", "not-a-state-dict"),
            "a .bin whose pickle is not a state dict",
            "It holds something other than tensors by name.",
        ),
        (
            ("missing-storage", "unknown-storage", "truncated-storage", "tensor-outside-storage"),
            "a tensor of a .bin that points to data that is not there",
            "The file is damaged.",
        ),
        (
            ("expanded-tensor",),
            "tensors of a .bin that repeat a few bytes, and would fill a disk",
            "A view with a stride of 0 takes few bytes in the file. Written out, it takes all that "
            "its shape says.",
        ),
        (
            ("not-a-torch-file", "torchscript-archive", "big-endian-file", "not-a-regular-file"),
            "a file of another kind where weights should be",
            "No loader of VITA reads it.",
        ),
        (
            ("unreadable-tensor",),
            "a tensor of a .bin whose plain values are not in the file",
            "It is a part of a distributed tensor, sparse, quantised, or has no data at all.",
        ),
        (
            ("unsafe-pickle",),
            "a pickle that runs code",
            "torch.load without weights_only executes it.",
        ),
        (
            ("path-outside-checkpoint",),
            "an index that names a file outside the directory",
            "The index is broken or hostile. A loader would read other files of the machine.",
        ),
        (
            ("invalid-index",),
            "an index without a weight_map of tensors to files",
            "No loader finds the weights.",
        ),
        (
            ("json-too-large", "unreadable-directory", "reserved-name"),
            "something that no reader accepts",
            "The checkpoint cannot be read as it is.",
        ),
    )
    for id_ in ids
)

_NAMES: Final = (
    Rule(
        "missing-tensor",
        "error",
        "a tensor that the config demands is not there",
        "It is initialised at random, silently with most loaders.",
    ),
    Rule(
        "unexpected-tensor",
        "error",
        "a tensor that the model has no place for",
        "Loaders drop it silently: usually it was meant for another name or another model.",
    ),
    Rule(
        "shape-mismatch",
        "error",
        "a tensor of another shape than the config demands",
        "Loading stops with a size mismatch, after everything before it was read.",
    ),
    Rule(
        "empty-tensor",
        "error",
        "a tensor without elements",
        "A ZeRO-3 run saved it without gathering its parts: its values are lost.",
    ),
    Rule(
        "foreign-prefix",
        "error",
        "names below a prefix that no loader of a checkpoint expects",
        "PEFT, DDP or a wrapper put it there; every such tensor counts as missing.",
    ),
    Rule(
        "two-names",
        "error",
        "one tensor under two prefixes",
        "The loader takes one of them, and nothing says which.",
    ),
    Rule(
        "tied-lm-head",
        "warning",
        "lm_head.weight is stored although the config ties it to the embeddings",
        "Loaders drop it and use the embeddings: if the two differ, so do the results.",
    ),
    Rule(
        "lm-head-absent",
        "error",
        "no lm_head.weight, and the config does not tie it to the embeddings",
        "It is initialised at random: the model answers noise.",
    ),
    Rule(
        "mixed-dtypes",
        "warning",
        "the floating tensors of one part have different dtypes",
        "Loaders convert all to one; a part in two dtypes was put together from two sources.",
    ),
    Rule(
        "integer-tensor",
        "error",
        "a tensor of integers where the model has real numbers",
        "Loaders take the codes for values: what they stood for is lost.",
    ),
    Rule(
        "projector-dtype",
        "error",
        "a tensor of the projector that is complex, integer or boolean",
        "A projector multiplies real numbers: loading it drops a part of the values, or raises.",
    ),
    Rule(
        "tower-absent",
        "error",
        "no tensors of a vision tower",
        "VITA-1.5's loader silently leaves the tower in uninitialised memory. So do other loaders "
        "if the config says that the tower was trained.",
    ),
    Rule(
        "image-fails",
        "error",
        "a model that loads to the end, and raises at its first image",
        "Keys of the config ask for what the tower, the projector or the merging of tiles cannot "
        "do. That shows only when there is an image.",
    ),
    Rule(
        "tower-unused",
        "note",
        "the loader takes the tower from its directory, not the one that is stored",
        "LLaVA and Bunny read the directory after the checkpoint, unless the config says that the "
        "tower was trained. What is stored is dead weight.",
    ),
    Rule(
        "tower-differs",
        "warning",
        "the stored tower differs from the directory's, which the loader takes",
        "If the tower was trained, the config does not say so, and what it learnt is silently "
        "lost.",
    ),
    Rule(
        "tower-not-loadable",
        "error",
        "the loader raises where it reads the trained tower",
        "Bunny reads it again from *.safetensors files alone; LLaVA's class with S2 is not ready "
        "for it.",
    ),
    Rule(
        "newline-absent",
        "error",
        "no image_newline, which the merging of tiles appends to each row",
        "It is then silently made of uninitialised memory: numbers as large as 1e20, or NaN.",
    ),
    Rule(
        "audio-absent",
        "error",
        "the config names an audio encoder, and there are no tensors of one",
        "The loader leaves the encoder in uninitialised memory: audio answers are NaN.",
    ),
    Rule(
        "audio-not-built",
        "error",
        "tensors of an audio encoder, and a config that names none",
        "The loader builds no encoder and drops them.",
    ),
    Rule(
        "audio-files-missing",
        "error",
        "the audio encoder's directory lacks a file that upstream opens",
        "Upstream opens train.yaml, global_cmvn and final.pt before it reads the checkpoint, "
        "and stops.",
    ),
    Rule(
        "audio-directory-unreadable",
        "error",
        "train.yaml or global_cmvn describes no encoder that upstream can build and run",
        "Upstream stops while it builds the model, or at the first recording.",
    ),
    Rule(
        "audio-directory-mismatch",
        "error",
        "the audio encoder's directory describes another encoder than the tensors are of",
        "The loader builds what the directory says: tensors are missing, left over or do not fit.",
    ),
    Rule(
        "unknown-audio-encoder",
        "error",
        "the audio tensors are not those of an audio encoder with its adapter",
        "The loader builds what train.yaml says; what it has no tensor for stays uninitialised.",
    ),
    Rule(
        "audio-statistics-missing",
        "error",
        "running statistics of a batch norm in the audio adapter are missing",
        "The trainer's adapter file never holds them; without them the adapter's output is noise.",
    ),
    Rule(
        "audio-cmvn-missing",
        "error",
        "the mean or the deviation of the audio features is missing",
        "Features that are not normalised are noise to the encoder.",
    ),
    Rule(
        "audio-adapter-width",
        "error",
        "the audio adapter's output has another width than the language model",
        "Embeddings of sound cannot be put among those of text: the first recording raises.",
    ),
    Rule(
        "audio-dynamic-chunks",
        "warning",
        "upstream runs the audio encoder with chunks of random size",
        "The same recording gives different answers; vita-ckpt runs the configured chunk.",
    ),
    Rule(
        "projector-absent",
        "error",
        "no tensors of a projector",
        "Upstream draws it from N(0, 0.02) with zero biases, silently.",
    ),
    Rule(
        "unknown-projector",
        "error",
        "the projector's tensors are not those of a projector type",
        "Upstream builds the type that the config names: tensors go missing or are left over.",
    ),
    Rule(
        "unknown-tower",
        "error",
        "the tower's tensors are not those of a known tower",
        f"Upstream builds {listed(KNOWN)}.",
    ),
    Rule(
        "no-tensors",
        "error",
        "not a single tensor",
        "The program that saved it had gathered nothing, as a ZeRO-3 run does by default.",
    ),
    Rule(
        "ambiguous-key",
        "error",
        "a name that upstream's get_w drops, mangles or overwrites",
        "get_w splits at the keyword wherever it stands in the name.",
    ),
    Rule(
        "adapter-no-projector",
        "error",
        "an adapter without a projector",
        "Merging it would change nothing.",
    ),
    Rule(
        "adapter-no-audio-adapter",
        "error",
        "an audio adapter's file without an audio adapter",
        "Merging it would change nothing.",
    ),
    Rule(
        "flat-parameter",
        "error",
        "a projector as FSDP's flat parameter",
        "Its tensors lie one after another, and their shapes are not in the file.",
    ),
)

_CONFIG: Final = (
    Rule(
        "config-missing",
        "error",
        "no config.json",
        "No loader knows what to build.",
    ),
    Rule(
        "invalid-json",
        "error",
        "a config or index is not a JSON object",
        "No loader can read it.",
    ),
    Rule(
        "unknown-model-type",
        "error",
        "VITA has no such model_type",
        "transformers refuses it, or builds another model.",
    ),
    Rule(
        "architecture-mismatch",
        "error",
        "architectures names another class than that of model_type",
        "Servers choose the class by architectures, upstream's loader by model_type: they build "
        "different models.",
    ),
    Rule(
        "architecture-missing",
        "warning",
        "architectures names no class",
        "Servers choose the class by it.",
    ),
    Rule(
        "unknown-projector-type",
        "error",
        "mm_projector_type names nothing that upstream builds",
        "Upstream raises, or for an spp without a version passes features through unprojected.",
    ),
    Rule(
        "config-type",
        "error",
        "a key of the config has a value of the wrong type, or one that no model can have",
        'The string "false" is true in Python; numbers as text fail far from here, and so do sizes '
        "that no model has.",
    ),
    Rule(
        "config-type-unread",
        "warning",
        "a key of the config that does not affect the model has a value of the wrong type",
        "No loader is stopped by it; training, or a program that reads the config, may be.",
    ),
    Rule(
        "config-weights-mismatch",
        "error",
        "a key of the config contradicts the weights",
        "The model is built from the config: tensors do not fit, or are left out.",
    ),
    Rule(
        "config-stale",
        "warning",
        "a key of the config contradicts the weights, but no loader depends on it",
        "Readers and tools may: it describes another state of the checkpoint.",
    ),
    Rule(
        "hidden-size-mismatch",
        "error",
        "mm_hidden_size is not the width of the tower's output and the projector's input",
        "Upstream builds the projector by it: a size mismatch on load. It is the output width, "
        "four times the ViT's for InternViT, times the number of scales for S2.",
    ),
    Rule(
        "s2-needs-siglip",
        "error",
        "use_s2 with a tower other than SigLIP",
        "Upstream raises.",
    ),
    Rule(
        "invalid-s2-scales",
        "error",
        "s2_scales are not sizes, or not multiples of the tower's images",
        "Upstream cuts each scale into tiles of the smallest one.",
    ),
    Rule(
        "odd-patch-grid",
        "error",
        "an odd number of patches along a side, for InternViT's pixel shuffle",
        "Upstream raises on the first image.",
    ),
    Rule(
        "projector-tokens",
        "error",
        "the projector cannot take the tower's tokens",
        "Upstream raises on the first image.",
    ),
    Rule(
        "tower-path-misleads",
        "error",
        "upstream takes the tower's path for another class",
        "It chooses by a substring of the whole path. Loading then fails with a size mismatch.",
    ),
    Rule(
        "tower-path-absolute",
        "warning",
        "the tower's or the audio encoder's path is absolute",
        "It exists on the machine that trained the checkpoint and on no other.",
    ),
    Rule(
        "tower-path-unreachable",
        "warning",
        "the tower's or the audio encoder's directory is not reachable from here",
        "Upstream reads the tower's config and processor there, whatever the checkpoint holds.",
    ),
    Rule(
        "tower-directory-mismatch",
        "error",
        "the tower's directory describes another tower than the checkpoint's tensors",
        "Upstream builds what the directory describes and loads the checkpoint's tensors into it.",
    ),
    Rule(
        "tower-directory-unreadable",
        "error",
        "the tower's directory cannot be read",
        "Upstream reads the tower's config and processor there.",
    ),
    Rule(
        "processor-size-mismatch",
        "error",
        "the processor makes images of another size than the tower takes",
        "Positions are interpolated, or the tower raises.",
    ),
    Rule(
        "fewer-embeddings-than-tokens",
        "error",
        "fewer rows of embeddings than tokens in the tokenizer",
        "Upstream resizes to len(tokenizer): the missing rows are invented.",
    ),
    Rule(
        "more-embeddings-than-tokens",
        "note",
        "more rows of embeddings than tokens in the tokenizer",
        "Upstream cuts the surplus when it loads: harmless.",
    ),
    Rule(
        "projector-untrained",
        "warning",
        "the projector was drawn at random and not trained since",
        "Images mean nothing to the language model until alignment training.",
    ),
    Rule(
        "invalid-provenance",
        "warning",
        "vita_ckpt.json is not what a surgery writes",
        "What it says of the checkpoint cannot be trusted.",
    ),
)

_LORA: Final = (
    Rule(
        "run-not-loadable",
        "error",
        "a run for which upstream's loader raises with any base",
        "VITA-1.5's loader has no code for most runs (explain); LLaVA's takes no projector run "
        "with added tokens, LLaVA-NeXT's none on Qwen2, Bunny's none with a trained tower.",
    ),
    Rule(
        "run-rows-absent",
        "error",
        "a run whose config counts more tokens than it or its base has rows for",
        "LLaVA's loader then silently replaces both tables by uninitialised memory.",
    ),
    Rule(
        "lora-config-missing",
        "error",
        "LoRA deltas without adapter_config.json",
        "Rank and alpha are unknown: the deltas cannot be merged.",
    ),
    Rule(
        "lora-pair-incomplete",
        "error",
        "a LoRA delta without its other half",
        "Both lora_A and lora_B are needed for a weight.",
    ),
    Rule(
        "lora-rank-mismatch",
        "error",
        "a LoRA delta of another rank than adapter_config.json says",
        "PEFT refuses the shape; with a wrong rank the scale alpha / r is wrong too.",
    ),
    Rule(
        "lora-alpha",
        "error",
        "lora_alpha is not a positive number",
        "It is half of the scale of every delta.",
    ),
    Rule(
        "dora-magnitude-missing",
        "error",
        "use_dora without the magnitudes of the deltas",
        "DoRA scales each column of a weight by lora_magnitude_vector: without it PEFT draws other "
        "values than were trained.",
    ),
    Rule(
        "lora-untrained",
        "warning",
        "LoRA deltas that are zero",
        "Merging them would change nothing: lora_B starts at zero and was not trained.",
    ),
    Rule(
        "lora-base-absent",
        "warning",
        "the base that a LoRA run was trained on cannot be found",
        "Deltas are worth nothing without it; on another machine it may be there.",
    ),
    Rule(
        "lora-target-absent",
        "error",
        "a LoRA delta for a weight that the base does not have, or of another shape",
        "The run was trained on another base.",
    ),
    Rule(
        "lora-config-invalid",
        "error",
        "a setting of adapter_config.json of the wrong type",
        "PEFT fails on it, or takes it for something else.",
    ),
    Rule(
        "lora-unsupported",
        "error",
        "a setting or a tensor of a LoRA run that a merge cannot follow",
        "Without it the merge would compute another model than was trained.",
    ),
    Rule(
        "lora-tensor-unplaced",
        "error",
        "a trained tensor of a LoRA run for which the base has no place",
        "Upstream silently drops it.",
    ),
    Rule(
        "lora-target-untrained",
        "warning",
        "a module that adapter_config.json targets has no delta",
        "PEFT silently leaves it unchanged from the base.",
    ),
    Rule(
        "lora-delta-untargeted",
        "warning",
        "a LoRA delta for a module that adapter_config.json does not target",
        "PEFT silently ignores it.",
    ),
    Rule(
        "lora-bias-absent",
        "warning",
        "a bias that adapter_config.json says was trained is not in the run",
        'Older versions of PEFT save none with `bias="lora_only"`: a merge keeps the base\'s.',
    ),
)

_TRAINING: Final = (
    Rule(
        "missing-rank",
        "error",
        "a training state lacks the file of a rank",
        "Every rank has a part of every tensor, or of some: the model is incomplete without it.",
    ),
    Rule(
        "left-over-rank",
        "error",
        "files of more ranks than a training state has",
        "A run with more ranks left them: a tool that counts files mixes two models.",
    ),
    Rule(
        "ranks-disagree",
        "error",
        "the files of a training state are of different steps, versions or runs",
        "Parts of different models would be put together, with nothing to show it.",
    ),
    Rule(
        "training-state-layout",
        "error",
        "the files of a training state do not hold what they say",
        "Every tensor behind the place where it goes wrong would have other values.",
    ),
    Rule(
        "masters-differ",
        "error",
        "float32 masters do not round to the copies that the model ran with",
        "One of the two is of another step, or was converted wrongly.",
    ),
    Rule(
        "incomplete-save",
        "error",
        "a distributed checkpoint without .metadata",
        "It is written last: the save was interrupted, and files of ranks may be empty.",
    ),
    Rule(
        "latest-leads-out",
        "error",
        "the file 'latest' does not name a directory beside it",
        "A program that follows it reads what is there.",
    ),
    Rule(
        "missing-tag",
        "error",
        "the file 'latest' names a state that is not there",
        "Resuming or converting the run fails with this file.",
    ),
    Rule(
        "several-states",
        "note",
        "a run with several training states",
        "Each is validated by its own path.",
    ),
    Rule(
        "stage-3-shapes",
        "note",
        "model states whose tensors are empty",
        "Stage 3 of ZeRO saves the names only: the values are in the optimizer states of all "
        "ranks, and vita-ckpt consolidate joins them.",
    ),
)

_VALUES: Final = (
    Rule(
        "value-nan",
        "error",
        "a tensor with NaN",
        "One of them reaches every logit.",
    ),
    Rule(
        "value-inf",
        "error",
        "a tensor with infinite values",
        "They become NaN with the first normalisation.",
    ),
    Rule(
        "value-float16-overflow",
        "warning",
        "a tensor with values above 65504",
        "In float32 or bfloat16 they are sound. Upstream's loader casts everything to float16: "
        "there they become infinite.",
    ),
    Rule(
        "value-all-zero",
        "error",
        "a weight that is zero everywhere",
        "A dead layer: it was never trained, gathered or loaded.",
    ),
    Rule(
        "value-constant",
        "warning",
        "a weight that has one value everywhere",
        "It was initialised and never trained, or overwritten.",
    ),
)

_RUN: Final = (
    Rule(
        "logits-not-finite",
        "error",
        "the forward pass gives NaN or infinity",
        "The model answers nothing at all.",
    ),
    Rule(
        "float16-not-finite",
        "error",
        "the forward pass gives NaN or infinity in float16",
        "Upstream runs in float16 whatever the checkpoint's dtype is.",
    ),
    Rule(
        "float16-weight",
        "error",
        "a weight that float16 cannot hold",
        "Upstream's loader makes it infinite.",
    ),
    Rule(
        "float16-activation",
        "error",
        "an activation that float16 cannot hold",
        "Upstream runs in float16: it becomes infinite there.",
    ),
    Rule(
        "weight-not-finite",
        "error",
        "a weight that is NaN or infinite",
        "It reaches every logit.",
    ),
    Rule(
        "activation-not-finite",
        "error",
        "an activation that is NaN or infinite",
        "It is where the logits go wrong.",
    ),
    Rule(
        "image-token-count",
        "error",
        "an image becomes another number of tokens than it should",
        "Prompts are built for a fixed number of them.",
    ),
    Rule(
        "image-ignored",
        "error",
        "another image does not move the logits",
        "A dead or zero projector.",
    ),
    Rule(
        "audio-ignored",
        "error",
        "another recording does not move the logits",
        "A dead or zero audio adapter.",
    ),
    Rule(
        "audio-token-count",
        "error",
        "a recording becomes another number of tokens than encoder and adapter should make",
        "The encoder and the adapter do not go together.",
    ),
    Rule(
        "text-ignored",
        "error",
        "another text does not move the logits",
        "The language model is dead.",
    ),
    Rule(
        "not-deterministic",
        "error",
        "two equal runs differ",
        "Something was not loaded, or memory is broken.",
    ),
    Rule(
        "language-changed",
        "error",
        "text-only logits are not those of the base",
        "Surgery on vision must not touch language.",
    ),
    Rule(
        "golden-mismatch",
        "error",
        "the logits are not those of the saved golden",
        "Something changed since it was saved.",
    ),
)

_DIFF: Final = (
    Rule(
        "tensor-added", "note", "a tensor that only the second has", "A difference, not a defect."
    ),
    Rule(
        "tensor-removed", "note", "a tensor that only the first has", "A difference, not a defect."
    ),
    Rule("tensor-shape", "note", "a tensor of another shape", "A difference, not a defect."),
    Rule("tensor-dtype", "note", "a tensor of another dtype", "A difference, not a defect."),
    Rule("tensor-bytes", "note", "a tensor with other values", "A difference, not a defect."),
    Rule(
        "config-changed", "note", "a config key with another value", "A difference, not a defect."
    ),
    Rule("file-changed", "note", "another file beside the weights", "A difference, not a defect."),
    Rule(
        "only-outside-changed",
        "error",
        "something outside --only changed",
        "The contract was that nothing else does.",
    ),
    Rule(
        "only-nothing-changed",
        "error",
        "nothing that --only names changed",
        "The contract was that it does: the training or the merge had no effect.",
    ),
)

_DIGESTS: Final = (
    Rule(
        "digest-mismatch",
        "error",
        "bytes that are not what they were when they were written",
        "Disks and copies lose bits silently, and a flipped bit of a weight shows nowhere else. "
        "Or another program changed the file.",
    ),
    Rule(
        "invalid-manifest",
        "error",
        "the manifest is damaged",
        "It can no longer say whether the checkpoint is what it was.",
    ),
    Rule(
        "manifest-file-missing",
        "error",
        "a file that the manifest describes is not there, or cannot be read",
        "The checkpoint is not complete.",
    ),
    Rule(
        "not-in-manifest",
        "note",
        "a file that the manifest does not list",
        "It was added later, so nothing says what it should be.",
    ),
    Rule(
        "undo-damaged",
        "error",
        "what is kept to undo the last in-place surgery is damaged",
        "The checkpoint may be sound, but undo would refuse to restore the old state.",
    ),
)

_LOADERS: Final = (
    Rule(
        "no-format-metadata",
        "error",
        "a safetensors file whose metadata does not say its format",
        "transformers 4.41, on which VITA runs, raises OSError over it, and AttributeError where "
        "there is no metadata at all; later versions do not require it.",
    ),
    Rule(
        "no-index-metadata",
        "error",
        "an index without metadata",
        "transformers raises a KeyError over it, before and after version 5.",
    ),
)

GROUPS: Final[dict[str, tuple[Rule, ...]]] = {
    "files": _FILES,
    "file formats": _FORMATS,
    "pickles beside the weights": _PICKLES,
    "names and shapes": _NAMES,
    "config": _CONFIG,
    "LoRA runs": _LORA,
    "training state": _TRAINING,
    "loaders": _LOADERS,
    "values": _VALUES,
    "digests (validate --deep)": _DIGESTS,
    "forward pass": _RUN,
    "diff": _DIFF,
}


def _table(groups: Iterable[tuple[Rule, ...]]) -> dict[str, Rule]:
    return {rule.id: rule for group in groups for rule in group}


RULES: Final = _table(GROUPS.values())
