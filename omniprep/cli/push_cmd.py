"""`omniprep push`."""

import click

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command, command_progress, observed
from omniprep.printable import say


@click.command(
    name="push",
    cls=Command,
    examples=(
        "omniprep push packed/ my-org/my-chats --dry-run",
        "omniprep push packed/ my-org/my-chats",
        "omniprep push run/ my-org/my-model",
    ),
)
@click.argument("dataset", metavar="DIR")
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--revision", help="Branch to push to; created if absent.  [default: main]")
@click.option("--public", is_flag=True, help="Make a new repository public.  [default: private]")
@click.option("--dry-run", is_flag=True, help="Only list what would be sent; works without a network too.")
@click.option("--model", help="Checkpoint whose tokenizer reads the preview.  [default: the build's]")
@CHECK_PIXELS
@observed
def push(
    dataset: str,
    repo_id: str,
    revision: str | None,
    public: bool,
    dry_run: bool,
    model: str | None,
    check_pixels: CheckPixels,
    quiet: bool,
) -> None:
    """Upload a dataset to the Hugging Face Hub, with a card and a preview for the Hub's viewer; or a trained model.

    A folder with a model or an adapter (a run of `omniprep train`, or one of its checkpoints) becomes a model
    repository, without the trainer's state.

    Files that the Hub has already are not sent, so the same command resumes after a stop, and later sends what changed.
    """
    from omniprep.hub.upload import push as run_push
    from omniprep.progress import size

    with command_progress(quiet=quiet) as progress:
        done = run_push(
            dataset, repo_id, progress, revision=revision, private=not public, dry_run=dry_run, model=model,
            check_pixels=check_pixels,
        )  # fmt: skip
        progress.event("finished", {"out": done.url, "files": len(done.sent), "dry_run": dry_run})
    if done.remark:
        say(done.remark, error=True)
    if dry_run:
        for part in done.sent:
            say(f"{size(part.size):>12}  {part.name}")
        for name in done.removed:
            say(f"{'remove':>12}  {name}")
    total = size(sum(part.size for part in done.sent))
    verb = "would send" if dry_run else "sent"
    say(f"{done.url}: {verb} {len(done.sent)} files ({total}), {done.same} were there, {len(done.removed)} removed")
