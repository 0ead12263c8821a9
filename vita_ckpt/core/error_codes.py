"""Explain every code that an error can have beside the rules: what ``vita-ckpt rules CODE`` says.

``docs/errors.md`` is written from this table.
"""

from __future__ import annotations

from typing import Final

from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCodes:
    """Codes that mean one thing, and what it is, in Markdown."""

    codes: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """The codes of one kind of error: its title, its exit code, its rows, and what follows them."""

    title: str
    exit_code: int
    rows: tuple[ErrorCodes, ...]
    remark: str = ""


# What stands in the place of a code where no exception of ours does.
WORDS: Final = {
    "usage": "The command does not have these options or arguments: --help lists them.",
    "system": "What the system said of a stream, such as a full stdout.",
    "interrupted": "The command was interrupted; the line says in which state the output is.",
    "internal-error": "A bug in vita-ckpt: --debug shows where.",
}

SECTIONS: Final = (
    Section(
        "Wrong usage (`UsageError`, exit 2)",
        2,
        (
            ErrorCodes(
                ("base-and-adapter-swapped",),
                "`--base` names an adapter and `--adapter` the model: the hint is the command "
                "the other way round",
            ),
            ErrorCodes(
                ("dtype-not-in-torch-file",),
                "a `.bin` cannot hold this dtype in a way that every torch loads: write "
                "`.safetensors`",
            ),
            ErrorCodes(
                ("empty-path",),
                "a path without a character, such as a variable that is not set: the working "
                "directory is `.`",
            ),
            ErrorCodes(
                ("key-without-torch-file",),
                "`--key` chooses in files of `torch.save`, and none was given",
            ),
            ErrorCodes(
                ("extra-not-found",),
                "`--with` names no tensor of the adapter",
            ),
            ErrorCodes(
                ("in-place-on-hub",),
                "a checkpoint on the hub cannot be changed in place",
            ),
            ErrorCodes(
                (
                    "invalid-hub-address",
                    "invalid-repository",
                ),
                "not `hf://org/name[@revision][/subfolder]`, not `org/name`",
            ),
            ErrorCodes(
                ("invalid-output",),
                "`--output` takes FORMAT=FILE, and `--html` a FILE; stdout is for `--format`",
            ),
            ErrorCodes(
                ("option-needed",),
                "one option is of no use without another: the line names both",
            ),
            ErrorCodes(
                (
                    "base-of-lora-run",
                    "several-adapters",
                ),
                "`consolidate` writes a LoRA run without its base, and one adapter",
            ),
            ErrorCodes(
                (
                    "tag-of-a-file",
                    "unknown-tag",
                    "unknown-weights",
                ),
                "`--tag` names no state of the run, `--weights` is neither masters nor copies",
            ),
            ErrorCodes(
                ("no-output",),
                "neither `--out` nor `--dry-run` nor `--plan-out`",
            ),
            ErrorCodes(
                ("no-output-directory",),
                "the directory of the output does not exist",
            ),
            ErrorCodes(
                ("output-exists",),
                "nothing is ever overwritten",
            ),
            ErrorCodes(
                ("outputs-collide",),
                "two reports for one file",
            ),
            ErrorCodes(
                ("output-is-a-link",),
                "`--output` follows a link that another user could have created",
            ),
            ErrorCodes(
                ("output-overlaps-input",),
                "the output is, contains or lies in an input",
            ),
            ErrorCodes(
                ("unknown-attention",),
                "`--attn` names what the library does not have, or what is not installed",
            ),
            ErrorCodes(
                ("unknown-format",),
                "`--format` or `--output` names no format of reports",
            ),
            ErrorCodes(
                ("unknown-dtype",),
                "`--dtype` is not f32, bf16 or f16 (or, exit 3: a file names a dtype that the"
                " format does not have)",
            ),
            ErrorCodes(
                ("unknown-loader",),
                "`validate` knows no such loader: `vita-ckpt explain` lists them",
            ),
            ErrorCodes(
                (
                    "unknown-kind",
                    "unknown-rule",
                ),
                "`validate` knows no such kind or rule: `vita-ckpt rules` lists them",
            ),
            ErrorCodes(
                (
                    "empty-prompt",
                    "invalid-prompt",
                ),
                "`--prompt` has no text, or is not UTF-8",
            ),
            ErrorCodes(
                ("audio-adapter-choice-needed",),
                "neither the base's audio adapter nor that of `final.pt` fits the new encoder: "
                "`--adapter FILE` or `--adapter reinit`",
            ),
            ErrorCodes(
                (
                    "images-do-not-fit-placeholders",
                    "tiles-do-not-fit-images",
                    "tiles-do-not-merge",
                    "recordings-do-not-fit-placeholders",
                    "token-out-of-range",
                    "no-vision-modules",
                    "no-audio-modules",
                    "features-do-not-fit-encoder",
                    "audio-too-long",
                ),
                "a call of the model with inputs that do not go together; a prompt that says "
                "`<image>` more often than there are images; `--image` for a checkpoint without"
                " a tower",
            ),
            ErrorCodes(
                (
                    "invalid-launch",
                    "invalid-rank-timeout",
                ),
                "RANK, WORLD_SIZE, LOCAL_RANK or MASTER_PORT has a value that it cannot have: "
                "`--single` ignores them; `--rank-timeout` takes seconds",
            ),
            ErrorCodes(
                ("invalid-max-memory",),
                "`--max-memory` takes cpu=SIZE or GPU=SIZE",
            ),
            ErrorCodes(
                (
                    "invalid-config-value",
                    "invalid-setting",
                    "unknown-config-key",
                ),
                "`set` takes KEY=VALUE for the keys of the vision and audio config, each of its"
                " type",
            ),
            ErrorCodes(
                ("invalid-configuration",),
                "`vita-ckpt.toml` or `[tool.vita-ckpt]` says what cannot be",
            ),
            ErrorCodes(
                (
                    "invalid-max-new-tokens",
                    "max-new-tokens-without-prompt",
                ),
                "`--max-new-tokens` is a number from 1, for the answer to `--prompt`",
            ),
            ErrorCodes(
                ("invalid-audio-path",),
                "the string for `mm_audio_encoder` is empty or not printable",
            ),
            ErrorCodes(
                ("invalid-tower-path",),
                "the string for `mm_vision_tower` is not printable",
            ),
            ErrorCodes(
                ("link-not-possible",),
                "`--link` asks for what the file system of base and output cannot do",
            ),
            ErrorCodes(
                ("model-extra-missing",),
                "torch, transformers, accelerate or Pillow is not installed",
            ),
            ErrorCodes(
                ("not-in-place",),
                "an extraction, or a base that is not a checkpoint directory, has nothing to "
                "change in place. Or a plan changes a file in a folder, or one that is not a "
                "weight "
                "file, index, config or README",
            ),
            ErrorCodes(
                (
                    "no-such-device",
                    "unknown-device",
                ),
                "`--device` names no device that torch sees",
            ),
            ErrorCodes(
                ("option-without-tower",),
                "a merge that makes a VITA checkpoint of a language model takes no `--dtype` "
                "and no `--with`",
            ),
            ErrorCodes(
                ("options-exclude-each-other",),
                "two options that cannot both be meant",
            ),
            ErrorCodes(
                ("path-on-hub",),
                "what is written, changed in place or pushed, a plan, a golden and an image lie"
                " on this machine",
            ),
            ErrorCodes(
                ("plan-not-repeatable",),
                "only plans of functions such as `plan_swap_tower` are saved: they can be "
                "computed again",
            ),
            ErrorCodes(
                (
                    "projector-choice-needed",
                    "projector-does-not-fit",
                ),
                "the old projector does not fit the new tower: `--projector FILE` or `reinit`",
            ),
            ErrorCodes(
                ("projector-type-mismatch",),
                "`--projector-type` and the projector file disagree",
            ),
            ErrorCodes(
                ("invalid-revision",),
                "`push --revision` or `--push ORG/NAME@` without a name",
            ),
            ErrorCodes(
                ("base-not-on-hub",),
                "a surgery with `--push` of a base on this machine: `--out`, then `push`",
            ),
            ErrorCodes(
                ("repository-is-public",),
                "`push --private` into a repository that everybody sees",
            ),
            ErrorCodes(
                ("tower-already-there",),
                "`--tower` for a base that has one: `swap-tower` replaces it",
            ),
            ErrorCodes(
                ("weights-left-out",),
                "`push` of a directory whose weights lie in one that is left out, or under a "
                "name that is not UTF-8",
            ),
            ErrorCodes(
                ("wrong-output-kind",),
                "an extraction makes a `.safetensors` or `.bin` file, a merge makes a directory",
            ),
            ErrorCodes(
                (
                    "unknown-choice",
                    "unknown-part",
                    "invalid-size",
                ),
                "`convert` or `resize-embeddings`: an option, a part of a model, a size or a "
                "number that is not valid",
            ),
            ErrorCodes(
                ("unknown-token",),
                "`resize-embeddings --init copy:TOKEN`: no token and no row of the checkpoint",
            ),
        ),
    ),
    Section(
        "The input cannot be read (`InputError`, exit 3)",
        3,
        (
            ErrorCodes(
                (
                    "ambiguous-training-state",
                    "several-states",
                ),
                "two saves in one directory; a run with several states, of which `--tag` picks one",
            ),
            ErrorCodes(
                ("ambiguous-weights",),
                "a single weight file beside an index that does not name it: loaders disagree "
                "which one counts",
            ),
            ErrorCodes(
                ("audio-absent",),
                "the base has no audio encoder to merge an adapter into",
            ),
            ErrorCodes(
                ("audio-adapter-width",),
                "the audio encoder's adapter is for a language model of another width",
            ),
            ErrorCodes(
                (
                    "base-does-not-fit-run",
                    "model-type-mismatch",
                ),
                "the run was trained on another language model",
            ),
            ErrorCodes(
                ("lora-base-absent",),
                "a LoRA run names no base that is here or in the hub's cache: `--base` does",
            ),
            ErrorCodes(
                ("big-endian-file",),
                "saved on a big-endian machine",
            ),
            ErrorCodes(
                ("excluded-parameters",),
                "a training state without its frozen parameters: `--base` supplies them",
            ),
            ErrorCodes(
                ("flattened-parameters",),
                "FSDP's flat vectors have no names inside: save with `use_orig_params=True`",
            ),
            ErrorCodes(
                ("git-lfs-pointer",),
                "the file itself was not downloaded",
            ),
            ErrorCodes(
                ("key-not-found",),
                "the file has no state dict at the path that `--key` gives: those it has are "
                "listed",
            ),
            ErrorCodes(
                ("input-changed",),
                "an input is not what the plan was computed from (`StaleInputError`)",
            ),
            ErrorCodes(
                ("invalid-plan",),
                "the file is not a plan of this version, or says what its operation does not make "
                "of its inputs",
            ),
            ErrorCodes(
                ("invalid-tokenizer-file",),
                "a file of a tokenizer that is not text, or is too large",
            ),
            ErrorCodes(
                ("invalid-run-config",),
                "a vision key in the config of a run has a value that it cannot have",
            ),
            ErrorCodes(
                ("model-card-too-large",),
                "the README of the base is not a model card",
            ),
            ErrorCodes(
                (
                    "masters-differ",
                    "missing-rank",
                    "left-over-rank",
                    "ranks-disagree",
                    "training-state-layout",
                    "incomplete-save",
                    "latest-leads-out",
                    "missing-tag",
                ),
                "findings of `validate` on training state: `vita-ckpt rules RULE` explains them",
            ),
            ErrorCodes(
                ("missing-config",),
                "a checkpoint directory needs a `config.json`, a LoRA run's an "
                "`adapter_config.json`",
            ),
            ErrorCodes(
                ("missing-index",),
                "several weight files and no index",
            ),
            ErrorCodes(
                (
                    "missing-shard",
                    "lone-shard",
                    "index-total-size",
                    "partial-download",
                    "other-kind",
                ),
                "findings of `validate`: `vita-ckpt rules RULE` explains them",
            ),
            ErrorCodes(
                ("not-enough-information",),
                "a base without vision modules needs a run with its `config.json`, and the "
                "tower: what is missing is listed",
            ),
            ErrorCodes(
                ("missing-parameter",),
                "a universal directory lacks a parameter that the model states name",
            ),
            ErrorCodes(
                (
                    "no-copies",
                    "no-model",
                ),
                "a training state without copies in the dtype of training, or of an optimizer "
                "alone",
            ),
            ErrorCodes(
                ("not-a-checkpoint",),
                "the directory holds no weights that are known here",
            ),
            ErrorCodes(
                ("not-a-regular-file",),
                "a directory, pipe or device where a file should be (exit 2 for `--output`)",
            ),
            ErrorCodes(
                ("not-a-training-state",),
                "no training state is there, or a file of it holds something else",
            ),
            ErrorCodes(
                ("not-a-vita-checkpoint",),
                "the base has no config, is an adapter, or is a plain language model",
            ),
            ErrorCodes(
                ("not-a-weight-file",),
                "a JSON file was given: give its directory",
            ),
            ErrorCodes(
                (
                    "parallel-training-state",
                    "transformed-training-state",
                ),
                "parts of tensor, pipeline or expert parallelism, or files that were "
                "transformed (zstd) when they were written: use the framework that wrote them",
            ),
            ErrorCodes(
                ("not-found",),
                "nothing is at that path; where it could mean a repository on the hub, the hint"
                " is its address",
            ),
            ErrorCodes(
                ("no-tensors",),
                "a file without a single tensor",
            ),
            ErrorCodes(
                ("other-family",),
                "a model or a run of another family than VITA: its tower and its projector can "
                "be taken out of it, nothing is put into it",
            ),
            ErrorCodes(
                ("unmerged-peft",),
                "a model that was saved with its LoRA deltas unmerged: `merge-lora` without "
                "`--adapter` merges them into it, and other surgeries come after that",
            ),
            ErrorCodes(
                ("quantised-weights",),
                "the weights are quantised, and what was asked for needs them in a floating dtype",
            ),
            ErrorCodes(
                ("reserved-name",),
                "a tensor is called `__metadata__`, which no safetensors file can hold",
            ),
            ErrorCodes(
                ("serving-config-cannot-follow",),
                "a deployment folder's config.json is a server's, and cannot describe such a tower",
            ),
            ErrorCodes(
                ("several-steps",),
                "a run with several projectors: name one",
            ),
            ErrorCodes(
                ("shard-names-collide",),
                "two `.bin` shards would get one name as safetensors",
            ),
            ErrorCodes(
                ("torchscript-archive",),
                "a TorchScript archive instead of a state dict",
            ),
            ErrorCodes(
                ("stale-manifest",),
                "the base has changed since its manifest was written: its digests would say "
                "that the result is damaged",
            ),
            ErrorCodes(
                ("unreadable-tensor",),
                "the values of a tensor are not in the file as they are. It is a part of a "
                "DTensor, sparse, quantised, of a dtype that no weight file has, or without "
                "data. The hint is the call that makes it plain before saving",
            ),
            ErrorCodes(
                (
                    "unreadable-directory",
                    "unreadable-file",
                ),
                "the system refuses",
            ),
            ErrorCodes(
                ("worker-killed",),
                "a process of `validate --jobs` or `diff --values` was killed, as a machine does "
                "that runs out of memory",
            ),
            ErrorCodes(
                ("not-a-tokenizer",),
                "`resize-embeddings --tokenizer` names a directory without `tokenizer.json` or "
                "`vocab.json` that can be read",
            ),
            ErrorCodes(
                ("no-embeddings",),
                "`resize-embeddings` needs `model.embed_tokens.weight`, and a head beside it "
                "with as many rows",
            ),
            ErrorCodes(
                ("tensor-names-collide",),
                "`convert --names`: two tensors would get one name, and which one is meant "
                "cannot be known",
            ),
            ErrorCodes(
                ("names-not-determined",),
                "`convert --names` needs a `config.json` from which the tensors of a model or a"
                " tower follow",
            ),
            ErrorCodes(
                ("dtypes-differ",),
                "experts of several dtypes cannot be fused into one tensor",
            ),
            ErrorCodes(
                ("too-few-rows",),
                "`resize-embeddings` to fewer rows than the tokenizer has tokens, or than may "
                "be needed",
            ),
            ErrorCodes(
                ("weights-disagree",),
                "`set` takes `vocab_size` and `tie_word_embeddings` only where the tensors agree",
            ),
        ),
    ),
    Section(
        "The hub (`HubError`, exit 3)",
        3,
        (
            ErrorCodes(
                ("cache-damaged",),
                "a file in huggingface_hub's cache has another size than on the hub: remove it",
            ),
            ErrorCodes(
                ("hub-failed",),
                "an answer that no hub gives: try again, look at `HF_ENDPOINT`",
            ),
            ErrorCodes(
                (
                    "hub-forbids",
                    "token-refused",
                ),
                "the account or the token may not do this: `hf auth login`, or `HF_TOKEN`",
            ),
            ErrorCodes(
                ("hub-offline",),
                "`HF_HUB_OFFLINE` is set, and the cache does not have it",
            ),
            ErrorCodes(
                ("hub-unreachable",),
                "no way to the hub: the network, a proxy, `HF_ENDPOINT`; a download that does "
                "not come to an end",
            ),
            ErrorCodes(
                ("no-range-support",),
                "a server on the way gives whole files only: `hf download`, then use the files",
            ),
            ErrorCodes(
                ("not-on-hub",),
                "a file that was listed is not there any more",
            ),
            ErrorCodes(
                ("branch-moved",),
                "the branch has new commits since it was read: look at them, then run the command"
                " again",
            ),
            ErrorCodes(
                ("rate-limited",),
                "too many requests: wait, or log in",
            ),
            ErrorCodes(
                ("repository-gated",),
                "its conditions must be accepted on its page",
            ),
            ErrorCodes(
                ("repository-not-found",),
                "no such repository, or a private one and no token for it",
            ),
            ErrorCodes(
                ("revision-not-found",),
                "no such branch, tag or commit",
            ),
            ErrorCodes(
                ("wrong-range",),
                "a server gave other bytes than were asked for, or not as many: nothing was used",
            ),
        ),
        "`push` also reports `input-changed` for a file that changed while it was uploaded: "
        "nothing was committed. On the hub it means that a file has another digest than was "
        "listed, or that a plan's branch has moved.",
    ),
    Section(
        "A surgery in place (`InputError`, exit 3)",
        3,
        (
            ErrorCodes(
                ("changed-since",),
                "a file has changed since the surgery that is to be undone: `undo --force` puts"
                " the old one back all the same, and keeps a changed file that was new",
            ),
            ErrorCodes(
                ("damaged-journal",),
                "what was saved is not what its digests say: nothing was put back "
                "(`MalformedFileError`)",
            ),
            ErrorCodes(
                ("foreign-journal",),
                "the journal was not signed by you for this directory: it came with the "
                "checkpoint, or the directory was moved or restored, or the key was lost. "
                "`vita-ckpt clean --foreign-journal` removes it; `recover --force` and `undo "
                "--force` trust it",
            ),
            ErrorCodes(
                ("mid-surgery",),
                "a surgery in place is under way, or was interrupted: `vita-ckpt recover` "
                "restores the old state, unless the journal is foreign",
            ),
            ErrorCodes(
                ("not-a-directory",),
                "a link or a file is in the place of the directory of journals (exit 2: "
                "`push` takes a directory)",
            ),
            ErrorCodes(
                ("not-the-same-file",),
                "a file to be patched was replaced, linked or cut off meanwhile",
            ),
            ErrorCodes(
                ("nothing-to-undo",),
                "no surgery in place has left what undoes it",
            ),
            ErrorCodes(
                ("owned-elsewhere",),
                "a surgery of another host: run the command there, or `--force` if its process "
                "is dead",
            ),
            ErrorCodes(
                ("surgery-under-way",),
                "another process is changing the checkpoint",
            ),
        ),
    ),
    Section(
        "The model cannot be built or run (`InputError`, exit 3)",
        3,
        (
            ErrorCodes(
                ("audio-encoder-unknown",),
                "nothing leads to the directory of the audio encoder: `--audio-encoder` names it",
            ),
            ErrorCodes(
                ("chat-template-failed",),
                "the tokenizer's chat template fails, or loses or adds an `<image>`",
            ),
            ErrorCodes(
                ("image-too-large",),
                "more pixels than are decoded, also once padded to a square or resized",
            ),
            ErrorCodes(
                ("invalid-golden",),
                "`verify --save-golden` did not write this file",
            ),
            ErrorCodes(
                ("hidden-size-unknown",),
                "neither embeddings nor config say how wide the language model is",
            ),
            ErrorCodes(
                ("invalid-s2-scales",),
                "`s2_scales` is not a list of sizes",
            ),
            ErrorCodes(
                (
                    "odd-patch-grid",
                    "pixels-do-not-fit-tower",
                    "s2-needs-siglip",
                    "s2-scales-do-not-fit-tower",
                    "unsupported-tower-config",
                    "unknown-tower-family",
                ),
                "the tower's config or the image do not go together with what the tower computes",
            ),
            ErrorCodes(
                (
                    "rank-failed",
                    "rank-hangs",
                    "rank-lost",
                ),
                "of the processes that a launcher started, one failed unexpectedly, did not get"
                " on for `--rank-timeout`, or ended: all of them end",
            ),
            ErrorCodes(
                ("ranks-disagree",),
                "the processes that a launcher started see different files, or run different "
                "versions",
            ),
            ErrorCodes(
                ("rendezvous-failed",),
                "the processes that a launcher should have started did not find each other "
                "within a minute: MASTER_ADDR and MASTER_PORT say where they look",
            ),
            ErrorCodes(
                ("out-of-memory",),
                "with `--max-memory` the weights stream from the files",
            ),
            ErrorCodes(
                ("processor-config-unknown",),
                "nothing says how an image becomes pixels: `--tower` names a directory with a "
                "`preprocessor_config.json`",
            ),
            ErrorCodes(
                ("tokenizer-crashed",),
                "the process in which the tokenizer and the chat template run ended without an "
                "answer",
            ),
            ErrorCodes(
                ("tokenizer-does-not-fit",),
                "the prompt has token ids without a row in the embedding",
            ),
            ErrorCodes(
                ("tokenizer-missing",),
                "`--prompt` needs the checkpoint's own tokenizer",
            ),
            ErrorCodes(
                ("tokenizer-needs-code",),
                "the tokenizer comes with code of its own, which is never run",
            ),
            ErrorCodes(
                ("tokenizer-over-limit",),
                "the tokenizer or the chat template took more than 4 GiB of memory, 60 s of CPU"
                " time or 120 s, or gave a text without bounds",
            ),
            ErrorCodes(
                ("tokenizer-unreadable",),
                "the library cannot build the tokenizer from its files",
            ),
            ErrorCodes(
                ("tokens-do-not-fit-projector",),
                "the projector cannot take this number of tokens",
            ),
            ErrorCodes(
                ("newline-absent",),
                "a surgery would make a model whose merging of tiles lacks `image_newline`",
            ),
            ErrorCodes(
                ("tower-absent",),
                "the config names a tower and the checkpoint has none of its tensors",
            ),
            ErrorCodes(
                ("tower-path-unreachable",),
                "the loader of the checkpoint's family takes the tower of its directory, which is "
                "not here: give it with `--tower`",
            ),
            ErrorCodes(
                ("tower-config-mismatch",),
                "the tower's `config.json` describes another tower than its tensors",
            ),
            ErrorCodes(
                ("tower-config-unknown",),
                "the tower's tensors do not determine its config: `--tower` or `--tower-config`"
                " names it",
            ),
            ErrorCodes(
                ("run-rows-absent",),
                "a run of LLaVA counts more tokens than it or its base has rows for, and its loader"
                " takes uninitialised memory: `resize-embeddings` gives the base rows",
            ),
            ErrorCodes(
                ("newline-absent",),
                "a projector run lacks the `image_newline` that merging tiles needs: the run of the"
                " next stage has one",
            ),
            ErrorCodes(
                ("tower-path-misleads",),
                "upstream would take the tower's path for another family: rename the directory,"
                " or give the path with `--tower-path`",
            ),
            ErrorCodes(
                ("unreadable-image",),
                "no image, or a damaged one",
            ),
            ErrorCodes(
                ("unsupported-config",),
                "a key of `config.json` has a value that no model can be built with: `validate`"
                " lists every such key",
            ),
            ErrorCodes(
                (
                    "unsupported-processor-config",
                    "unsupported-image-aspect-ratio",
                    "no-tile-grid",
                ),
                "a key of `preprocessor_config.json` or of the config, by which images are "
                "prepared, that means nothing here",
            ),
            ErrorCodes(
                ("unknown-tower",),
                "no SigLIP, CLIP, EVA-CLIP or InternViT tower is there",
            ),
            ErrorCodes(
                (
                    "unknown-model-type",
                    "unknown-projector-type",
                ),
                "the config names what no family has",
            ),
            ErrorCodes(
                ("language-model-not-built",),
                "transformers has no class for the language model: all but `verify` works",
            ),
            ErrorCodes(
                ("packed-projector",),
                "the base's projector is stored as codes of a quantisation: merge before it is "
                "quantised",
            ),
            ErrorCodes(
                ("weights-do-not-fit",),
                "the tensors are not exactly those that the config describes",
            ),
        ),
    ),
    Section(
        "A file breaks its format (`MalformedFileError`, exit 3)",
        3,
        (
            ErrorCodes(
                (
                    "compressed-zip-entry",
                    "duplicate-zip-entry",
                    "invalid-zip",
                ),
                "not a zip as `torch.save` writes it",
            ),
            ErrorCodes(
                ("duplicate-key",),
                "a safetensors header names something twice",
            ),
            ErrorCodes(
                ("duplicate-tensor",),
                "one tensor in two files of a checkpoint",
            ),
            ErrorCodes(
                ("empty-file",),
                "zero bytes",
            ),
            ErrorCodes(
                (
                    "header-too-large",
                    "header-too-small",
                    "invalid-header-length",
                ),
                "the length of a safetensors header cannot be right",
            ),
            ErrorCodes(
                (
                    "hole-in-data",
                    "overlapping-tensors",
                    "trailing-bytes",
                    "truncated-file",
                ),
                "the tensors of a safetensors file do not fill it end to end, or a file is cut off",
            ),
            ErrorCodes(
                ("index-mismatch",),
                "the index and a shard disagree about a tensor",
            ),
            ErrorCodes(
                (
                    "invalid-header-json",
                    "invalid-header-start",
                    "invalid-header-utf8",
                ),
                "a safetensors header is not a JSON object",
            ),
            ErrorCodes(
                ("invalid-index",),
                "no `weight_map` of tensors to files",
            ),
            ErrorCodes(
                (
                    "invalid-yaml",
                    "yaml-too-large",
                ),
                "a `train.yaml` is no YAML mapping, is nested too deeply, has aliases, or more "
                "than 4 MB",
            ),
            ErrorCodes(
                ("invalid-global-cmvn",),
                "the feature statistics of an audio encoder are neither JSON nor Kaldi's text, "
                "as its `train.yaml` says",
            ),
            ErrorCodes(
                ("unsupported-audio-config",),
                "a `train.yaml` describes an audio encoder that upstream cannot build or run",
            ),
            ErrorCodes(
                (
                    "invalid-json",
                    "json-too-large",
                ),
                "a config or index is not a JSON object, or is nested more than 100 levels deep",
            ),
            ErrorCodes(
                ("invalid-manifest",),
                "`vita_ckpt.manifest.json` is not, byte for byte, what was written",
            ),
            ErrorCodes(
                ("invalid-metadata",),
                "`__metadata__` is not a map of strings to strings",
            ),
            ErrorCodes(
                ("invalid-name",),
                "a tensor name that is not text",
            ),
            ErrorCodes(
                (
                    "invalid-offsets",
                    "invalid-shape",
                    "invalid-tensor-entry",
                    "misaligned-tensor",
                    "shape-overflow",
                    "tensor-size-mismatch",
                ),
                "the entry of a tensor contradicts itself",
            ),
            ErrorCodes(
                (
                    "invalid-pickle",
                    "pickle-too-large",
                ),
                "not a pickle as `torch.save` writes it",
            ),
            ErrorCodes(
                ("expanded-tensor",),
                "views in a `.bin` repeat a few bytes until they would fill a disk",
            ),
            ErrorCodes(
                (
                    "missing-storage",
                    "unknown-storage",
                    "truncated-storage",
                    "tensor-outside-storage",
                ),
                "a tensor of a `.bin` points where there is nothing",
            ),
            ErrorCodes(
                (
                    "not-a-state-dict",
                    "not-a-torch-file",
                ),
                "a file of another kind",
            ),
            ErrorCodes(
                ("path-outside-checkpoint",),
                "an index names a file outside the directory, a tokenizer's config names a "
                "path, or a journal names a file that no surgery changes",
            ),
            ErrorCodes(
                ("view-too-large",),
                "two strided views that overlap themselves and are larger than their files "
                "cannot be compared",
            ),
        ),
    ),
    Section(
        "A pickle runs code (`UnsafePickleError`, exit 3)",
        3,
        (
            ErrorCodes(
                ("unsafe-pickle",),
                "the global or opcode that is named; nothing was executed",
            ),
        ),
    ),
    Section(
        "The adapter does not fit (`AdapterError`, `CastError`, exit 3)",
        3,
        (
            ErrorCodes(
                ("bad-adapter-values",),
                "the adapter holds NaN, infinities, a matrix of zeros or integers; "
                "`--allow-bad-values` takes it all the same",
            ),
            ErrorCodes(
                (
                    "adapter-no-audio-adapter",
                    "unknown-audio-adapter",
                ),
                "no tensor is named `audio_encoder.adpter.*`, or they are those of no audio "
                "adapter",
            ),
            ErrorCodes(
                ("audio-adapter-does-not-fit",),
                "the audio adapter is not of the type or the widths of the base's",
            ),
            ErrorCodes(
                ("run-rows-absent",),
                "the run's config counts more tokens than the base or the run has rows for",
            ),
            ErrorCodes(
                ("adapter-no-projector",),
                "no tensor is named `mm_projector.*`; what was found is named",
            ),
            ErrorCodes(
                ("flat-parameter",),
                "FSDP saved its parameters one after another: save a full state dict",
            ),
            ErrorCodes(
                ("ambiguous-key",),
                "a name that upstream's `get_w` would drop, mangle or overwrite",
            ),
            ErrorCodes(
                ("ambiguous-projector-type",),
                "these tensors can be several types, and no config says which",
            ),
            ErrorCodes(
                ("cast-not-defined",),
                "integers do not become a projector",
            ),
            ErrorCodes(
                ("cast-overflow",),
                "a finite value would become infinite in that dtype",
            ),
            ErrorCodes(
                ("empty-tensor",),
                "a tensor without elements, as a ZeRO-3 run saves it that did not gather",
            ),
            ErrorCodes(
                ("extra-does-not-fit",),
                "the base has no such tensor, or one of another shape",
            ),
            ErrorCodes(
                ("lora-already-merged",),
                "the base's lineage says that this run was merged into it: a second merge would"
                " add its deltas twice",
            ),
            ErrorCodes(
                ("lora-config-missing",),
                "deltas without the `adapter_config.json` that alone knows their alpha",
            ),
            ErrorCodes(
                ("lora-empty",),
                "neither deltas nor anything else that was trained",
            ),
            ErrorCodes(
                ("not-a-lora-run",),
                "`--adapter` of `merge-lora` is a projector or a checkpoint",
            ),
            ErrorCodes(
                (
                    "projector-incomplete",
                    "projector-unexpected-tensor",
                    "projector-shape-mismatch",
                    "unknown-projector",
                ),
                "the tensors are not a complete projector",
            ),
            ErrorCodes(
                ("quantised-part",),
                "the part is quantised: codes are other numbers without their scales",
            ),
            ErrorCodes(
                ("projector-width-mismatch",),
                "a projector for another tower or language model",
            ),
            ErrorCodes(
                ("mean-not-finite",),
                "the mean of the embeddings, for new rows, is not a number: some of them hold NaN "
                "or infinity",
            ),
        ),
        "A LoRA run that `validate` finds wrong is refused by `merge-lora` with the rule's id, "
        "such as `lora-rank-mismatch` or `lora-unsupported`: see [the rules](rules.md).",
    ),
    Section(
        "The output could not be written (`OutputError`, exit 3)",
        3,
        (
            ErrorCodes(
                (
                    "no-space",
                    "output-not-allowed",
                    "read-only-output",
                    "write-failed",
                ),
                "what the system said; nothing is left behind",
            ),
            ErrorCodes(
                ("no-state-directory",),
                "a surgery in place has no place for the key that signs its journal: let "
                "`XDG_STATE_HOME` name a directory of yours; nothing was changed",
            ),
            ErrorCodes(
                ("owner-not-kept",),
                "a surgery in place would leave a file to another user than its owner: run it "
                "as the owner; nothing was changed",
            ),
            ErrorCodes(
                ("check-failed",),
                "what was read again is not what was written; nothing is left behind",
            ),
            ErrorCodes(
                ("rollback-failed",),
                "a surgery in place failed, and so did putting back what was there: `vita-ckpt "
                "recover` once the disk works",
            ),
        ),
    ),
)

ERRORS: Final[dict[str, tuple[Section, ErrorCodes]]] = {
    code: (section, row) for section in SECTIONS for row in section.rows for code in row.codes
}


def explain_error(code: str) -> tuple[str, str] | None:
    """Return what kind of error a code is of, and what it means; None for a code that is none."""
    if code in WORDS:
        return "no exception of Python", WORDS[code]
    found = ERRORS.get(code)
    if found is None:
        return None
    section, row = found
    return section.title.replace("`", ""), row.meaning.replace("`", "")
