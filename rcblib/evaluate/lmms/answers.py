"""Keep the answers of an lmms-eval run on disk as they come, so that an interrupted run goes on where it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from rcblib.runs.files import config_hash, to_plain
from rcblib.runs.paths import user_path


class AnswerFile:
    """Append finished answers to a file of a process, and find them again, in whichever process of a later run.

    lmms-eval's own cache takes the answers of a task when all of them are given; what a run had answered before it was
    cut off is lost to it.

    Parameters
    ----------
    folder : path-like
        Where each process has a file, ``answers.<number>.jsonl``.
    made_with : Mapping
        What answers depend on besides the request, such as model and pruner. Others in the folder are passed over.
    number : int
        The process.
    """

    def __init__(self, folder: str | os.PathLike, made_with: Mapping[str, Any], number: int = 0):
        self.folder, self.number = user_path(folder, "answers_folder"), number
        self._made_with = config_hash(made_with)

    def key(self, request: Any) -> str:
        """Name what an answer depends on: the request's text, generation settings and document, and `made_with`.

        What is shown is known by its document, not looked at.
        """
        context, settings, _, doc_id, task, split = request.args
        asked = [self._made_with, task, split, doc_id, context, to_plain(settings)]
        return json.dumps(asked, sort_keys=True, default=str)

    def read(self) -> dict[str, dict[str, Any]]:
        """Return what was kept, by key: ``answer``, a text, and ``count``, its visual tokens."""
        found = {}
        for path in sorted(self.folder.glob("answers.*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # empty, or the end of a run that was cut off while it wrote
                    continue
                found[entry.pop("key")] = entry
        return found

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write entries as `read` returns them, with their ``key``; they are on disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"answers.{self.number}.jsonl").open("a", encoding="utf-8") as file:
            # Each begins a line of its own, also behind one that was cut off.
            file.writelines(f"\n{json.dumps(to_plain(dict(entry)))}" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
