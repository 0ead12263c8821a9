"""``vita-ckpt verify``: one forward pass, and what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vita_ckpt.api import verify as api
from vita_ckpt.cli import completion, console, render
from vita_ckpt.cli.launched import rank_options, run_in_ranks, speaks
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE, LOCAL
from vita_ckpt.cli.progress import shown_progress
from vita_ckpt.cli.verification_text import verification_lines
from vita_ckpt.core.report import has_errors
from vita_ckpt.core.verification import Verification
from vita_ckpt.errors import UsageError

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks


@click.command("verify")
@click.argument("checkpoint", type=ANYWHERE)
@click.option(
    "--device",
    default="auto",
    metavar="auto|cuda|cuda:N|cpu",
    shell_complete=completion.one_of(("auto", "cuda", "cpu")),
    help="Where to run.",
)
@click.option(
    "--dtype",
    shell_complete=completion.torch_dtypes,
    metavar="DTYPE",
    help="float32, bfloat16 …; float32 is faster on CPUs without bfloat16.  [default: the "
    "checkpoint's]",
)
@click.option(
    "--attn",
    metavar="NAME",
    shell_complete=completion.one_of(("sdpa", "eager", "flash_attention_2")),
    help="The library's attention implementation.",
)
@click.option(
    "--max-memory",
    multiple=True,
    metavar="DEVICE=SIZE",
    help="What weights may take, such as cpu=4GB, or 0=20GB and 1=20GB for several GPUs; a larger "
    "model streams from its files.  [default: most of what is free]",
)
@click.option(
    "--tower",
    type=ANYWHERE,
    metavar="DIR",
    help="The tower's directory, for its config; also for its weights, where its family's loader "
    "takes those.",
)
@click.option(
    "--audio-encoder",
    type=ANYWHERE,
    metavar="DIR",
    help="The audio encoder's directory, for its train.yaml.",
)
@click.option(
    "--against",
    type=ANYWHERE,
    metavar="BASE",
    help="A checkpoint whose text-only logits must be the same.",
)
@click.option("--save-golden", type=LOCAL, metavar="FILE", help="Save a fingerprint of the logits.")
@click.option("--golden", type=LOCAL, metavar="FILE", help="Compare with a saved fingerprint.")
@click.option(
    "--image",
    type=LOCAL,
    metavar="FILE",
    help="An image in place of a synthetic one; the prompt is about it.",
)
@click.option("--prompt", metavar="TEXT", help="Print the greedy answer to a text.")
@click.option(
    "--max-new-tokens",
    type=int,
    metavar="N",
    help=f"The longest answer; a streamed model is read once for each token.  [default: "
    f"{api.NEW_TOKENS}]",
)
@rank_options
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema verify-v1).")
@click.pass_obj
def command(
    settings: Settings,
    checkpoint: str,
    device: str,
    dtype: str | None,
    attn: str | None,
    max_memory: tuple[str, ...],
    tower: str | None,
    audio_encoder: str | None,
    against: str | None,
    save_golden: str | None,
    golden: str | None,
    image: str | None,
    prompt: str | None,
    max_new_tokens: int | None,
    single: bool,
    rank_timeout: float,
    as_json: bool,
) -> int:
    """Load a checkpoint strictly and run it once.

    It runs on a GPU if there is one. A checkpoint larger than memory streams from its own files.
    The checks: no tensor is missing, extra or of the wrong shape; logits are finite, also in
    upstream's float16; image and recording become the expected number of tokens; image, recording
    and text change the logits. Exit 1 if something is wrong.

    --prompt uses the checkpoint's own tokenizer and chat template. The image comes before the text,
    or where the text says <image>. It is prepared by the preprocessor_config.json of --tower, of
    the checkpoint, or of the tower's directory, and cut into tiles where the config says so.

    Under torchrun, or srun with torch's variables, each process reads and runs some of the layers,
    and the first one reports: torchrun --nproc-per-node 8 -m vita_ckpt verify CHECKPOINT.
    """

    def run(ranks: Ranks | None) -> int:
        with shown_progress(settings.quiet or not speaks(ranks)) as on_progress:
            verification = api.verify(
                checkpoint,
                device=device,
                dtype=dtype,
                tower=tower,
                audio_encoder=audio_encoder,
                attn=attn,
                max_memory=_max_memory(max_memory),
                against=against,
                golden=golden,
                save_golden=save_golden,
                image=image,
                prompt=prompt,
                max_new_tokens=max_new_tokens,
                on_progress=on_progress,
                stores=settings.stores,
                ranks=ranks,
            )
        if speaks(ranks):
            _report(verification, settings, as_json)
        return 1 if has_errors(verification.findings) else 0

    return run_in_ranks(run, single=single, rank_timeout=rank_timeout)


def _report(verification: Verification, settings: Settings, as_json: bool) -> None:
    if verification.skipped_audio_tensors:
        settings.note(
            f"{verification.skipped_audio_tensors} audio tensors are not run: their train.yaml is "
            "not reachable from here (--audio-encoder DIR)"
        )
    if as_json:
        render.echo_json(verification.to_dict())
    else:
        console.say("\n".join(verification_lines(verification)))


def _max_memory(entries: tuple[str, ...]) -> dict[str | int, int | str] | None:
    memory: dict[str | int, int | str] = {}
    for entry in entries:
        device, equals, size = entry.partition("=")
        if not equals or not (device == "cpu" or device.isdecimal()):
            raise UsageError(
                "invalid-max-memory", entry, expected="cpu=SIZE or GPU=SIZE, such as cpu=4GB"
            )
        memory[device if device == "cpu" else int(device)] = size
    return memory or None
