"""A stage of a build or a repack: those of its tasks that have no receipt are run, and every result is counted, shown,
and held against the error budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from omniprep import io
from omniprep.compiler.output.lease import Lease
from omniprep.compiler.output.paths import of_generation
from omniprep.compiler.run.cluster import count_workers
from omniprep.compiler.run.error_budget import FirstErrors
from omniprep.compiler.run.tasks import Receipt, Task, read_receipt
from omniprep.compiler.run.workers import run_tasks
from omniprep.config import Workers
from omniprep.families.errors import FamilyError
from omniprep.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How the tasks of a stage are run."""

    name: Literal["plan", "encode", "repack", "remove"]
    out: str
    """The folder of the dataset."""
    workers: Workers
    """As `BuildConfig.workers`."""
    progress: Reporter
    lease: Lease | None = None
    """Checked after each task; None in a folder that nobody else knows of."""
    errors: FirstErrors | None = None
    """Shows each task's rejects; None where tasks decode nothing, and so reject nothing and crash nothing."""

    def run(self, tasks: Sequence[Task], efforts: Sequence[float] = (), memory: Sequence[int] = ()) -> list[Receipt]:
        """Run the tasks that have no receipt; returns the receipts of all, in order.

        Args:
            tasks: All tasks of the stage.
            efforts: Seconds that each takes a core, about. Those of most run first, so that no worker is left
                with one when the others are done; and --workers auto decides by them. None given: a second each.
            memory: Bytes that each holds beside what any task does, about.
        """
        receipts = {number: receipt for number, task in enumerate(tasks) if (receipt := read_receipt(task)) is not None}
        if self.lease is not None:
            self.lease.check()  # the receipts are ours to trust: who takes the folder over changes its lease first
        waiting = [number for number in range(len(tasks)) if number not in receipts]
        workers = count_workers(self.workers, [efforts[number] if efforts else 1.0 for number in waiting])
        waiting.sort(key=lambda number: -efforts[number] if efforts else 0.0)
        unit = "splits" if self.name == "plan" else "shards"
        self.progress.start(self.name, len(tasks), unit)
        self.progress.event("workers", {"stage": self.name, "workers": workers})
        for number, receipt in receipts.items():
            self._count(tasks[number], receipt, before=True)
        if receipts:
            self.progress.event("resumed", self._resumed([(tasks[number], r) for number, r in receipts.items()]))
            self.progress.message(f"{self.name}: {len(receipts)} of {len(tasks)} {unit} were done before")
        folder = io.join(self.out, "plan")
        stale_marks = [
            name for name in io.list_folder(folder) if name.startswith(f"{self.name}-") and name.endswith(".begun")
        ]
        generation = self.lease.generation if self.lease else ""
        marks = [
            io.join(folder, of_generation(f"{self.name}-{number:06d}", generation, ".begun"))
            for number in (waiting if self.errors is not None else ())
        ]
        # Reporters of other programs may know nothing of workers.
        show = partial(self.progress.workers, self.name) if getattr(self.progress, "nested", False) else None
        pending = [tasks[number] for number in waiting]
        try:
            for index, receipt in run_tasks(
                pending, workers, marks, self.progress.message, show, [memory[number] for number in waiting if memory],
                grow=self.workers == "auto",
            ):  # fmt: skip
                if self.lease is not None:
                    self.lease.check()
                receipts[waiting[index]] = receipt
                self._count(pending[index], receipt, before=False)
        except FamilyError as error:
            raise (self.errors.with_source_line(error) if self.errors is not None else error) from error
        for name in stale_marks:  # of tasks that ended before their mark was removed, or that Ray did
            io.remove(io.join(folder, name))
        self.progress.finish(self.name)
        return [receipts[number] for number in range(len(tasks))]

    def _count(self, task: Task, receipt: Receipt, *, before: bool) -> None:
        rejects = task.reject_counts(receipt)
        facts = {
            "stage": self.name,
            "number": task.number,
            "rows": task.row_count(receipt),
            "tokens": task.tokens(receipt),
            "bytes": receipt["bytes"],
            "seconds": receipt["seconds"],
            "rejects_by_code": dict(rejects),
            "before": before,
        }
        self.progress.event("task", {**facts, "path": receipt["path"]} if "path" in receipt else facts)
        self.progress.advance(self.name, 1, tokens=facts["tokens"], rejects=rejects.total())
        if self.errors is not None:
            self.errors.show(task, receipt, wanted=bool(rejects) and not before and self.progress.wants_rejects())

    def _resumed(self, done: Sequence[tuple[Task, Receipt]]) -> dict[str, int | str]:
        """What an earlier run left done, for the event of that name."""
        return {
            "stage": self.name,
            "done": len(done),
            "rows": sum(task.row_count(receipt) for task, receipt in done),
            "tokens": sum(task.tokens(receipt) for task, receipt in done),
        }
