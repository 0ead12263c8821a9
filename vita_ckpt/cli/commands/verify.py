"""``vita-ckpt verify``: one forward pass, and what it shows."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import click

from vita_ckpt.api import ranks
from vita_ckpt.api import verify as api
from vita_ckpt.cli import console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE, LOCAL
from vita_ckpt.cli.progress import shown_progress
from vita_ckpt.cli.verification_text import verification_lines
from vita_ckpt.core.progress import unwatched
from vita_ckpt.core.report import has_errors
from vita_ckpt.core.verification import Verification
from vita_ckpt.errors import UsageError, VitaCkptError


@click.command("verify")
@click.argument("checkpoint", type=ANYWHERE)
@click.option("--device", default="auto", metavar="auto|cuda|cuda:N|cpu", help="Where to run.")
@click.option(
    "--dtype",
    metavar="DTYPE",
    help="float32, bfloat16 …; float32 is faster on CPUs without bfloat16.  [default: the "
    "checkpoint's]",
)
@click.option("--attn", metavar="NAME", help="The library's attention implementation.")
@click.option(
    "--max-memory",
    multiple=True,
    metavar="DEVICE=SIZE",
    help="What weights may take, such as cpu=4GB, or 0=20GB and 1=20GB for several GPUs; a larger "
    "model streams from its files.",
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
@click.option(
    "--single", is_flag=True, help="Run in this process alone, even if a launcher started several."
)
@click.option(
    "--rank-timeout",
    type=float,
    default=ranks.RANK_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="Under a launcher: end if nothing moves on any rank for so long.",
)
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
    environment = {} if single else os.environ
    with ranks.join_ranks(environment, timeout=rank_timeout) as joined:
        if joined is not None:
            _end_at_once()
        # A launcher mixes what its processes print.
        watch = shown_progress(settings.quiet) if joined is None else nullcontext(unwatched)
        try:
            with watch as on_progress:
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
                    ranks=joined,
                )
        except VitaCkptError as error:
            if joined is None:
                raise
            # It is said before the ranks part: a launcher kills who is left.
            if joined.speaks:
                console.warn(f"error: {error}")
            return error.exit_code
        if joined is None or joined.speaks:
            _report(verification, settings, as_json)
    return 1 if has_errors(verification.findings) else 0


def _end_at_once() -> None:
    """Let a signal end this process, also while it waits for another rank in torch."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


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
