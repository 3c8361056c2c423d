"""The journal of a folder run: which pictures began, and how each attempt ended. Written by the user's process only."""

import json
import re
import time
from pathlib import Path
from secrets import token_hex
from typing import Any

from tudsr.apps.remote import Task, filesystem, in_words, is_url, joined

NAME = ".tudsr-journal"
MOST_ATTEMPTS = 2
_ENDS = ("done", "failed", "stopped")
_PART_LINES = 100  # a filesystem behind a URL cannot append: the last part is written anew with each line


class Journal:
    """JSON lines in the output folder, one for each beginning and each end; it comes into being with the first line.

    On a disk it is one file that grows; behind a URL it is numbered parts, a new one for each run.

    Args:
        folder: path or URL of the output folder; None keeps the journal in memory.
        fresh: whether earlier attempts count no more.

    Raises:
        InputError: when an existing journal cannot be read.
    """

    def __init__(self, folder: str | None, *, fresh: bool = False) -> None:
        self._folder = folder
        self._attempts: dict[str, int] = {}  # of pictures whose last attempt has no end
        self._number, self._part = 1, list[str]()
        self._run = token_hex(4)  # two runs at once do not write each other's part anew
        if folder is not None:
            with in_words(joined(folder, NAME)):
                lines = self._read_parts(folder) if is_url(folder) else self._read_file(folder)
            for line in [] if fresh else lines:
                self._count(line)

    def attempts(self, task: Task) -> int:
        """Return how many attempts at a picture began since one last ended."""
        return self._attempts.get(self._key(task), 0)

    def begin(self, task: Task, **facts: Any) -> None:
        """Write that work on a picture is about to begin.

        Raises:
            InputError: when the journal cannot be written.
        """
        attempt = self.attempts(task) + 1
        self._attempts[self._key(task)] = attempt
        self._write("began", task, {"attempt": attempt} | facts)

    def end(self, task: Task, how: str, **facts: Any) -> None:
        """Write that an attempt ended: done, failed or stopped by the user."""
        assert how in _ENDS, how
        self._attempts.pop(self._key(task), None)
        self._write(how, task, facts)

    def lost(self, task: Task, **facts: Any) -> None:
        """Write that a worker died; the attempt keeps counting as one without an end."""
        self._write("lost", task, facts)

    def _key(self, task: Task) -> str:
        if self._folder is None:
            return task.target
        if is_url(self._folder):
            return task.target.removeprefix(self._folder.rstrip("/") + "/")
        return Path(task.target).relative_to(self._folder).as_posix()

    def _count(self, line: str) -> None:
        try:
            event = json.loads(line)
            how, key = event["event"], event["output"]
        except (ValueError, KeyError, TypeError):
            return  # the end of a line that a kill cut off
        if how == "began":
            self._attempts[key] = event.get("attempt", 1)
        elif how in _ENDS:
            self._attempts.pop(key, None)

    def _write(self, how: str, task: Task, facts: dict[str, Any]) -> None:
        if self._folder is None:
            return
        now = round(time.time(), 3)
        event = {"time": now, "event": how, "input": task.source, "output": self._key(task)} | facts
        line = json.dumps(event, ensure_ascii=False) + "\n"
        with in_words(joined(self._folder, NAME)):
            if is_url(self._folder):
                self._write_part(self._folder, line)
            else:
                path = Path(self._folder) / f"{NAME}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(line)

    def _read_file(self, folder: str) -> list[str]:
        path = Path(folder) / f"{NAME}.jsonl"
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):  # a kill cut the last line off; the next one must not join it
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        return text.splitlines()

    def _read_parts(self, folder: str) -> list[str]:
        fs, path = filesystem(folder)
        parts = []
        for name in fs.ls(path, detail=False) if fs.isdir(path) else []:
            match = re.search(rf"{re.escape(NAME)}-(\d+)-\w+\.jsonl$", name)
            if match is not None:
                parts.append((int(match[1]), name))
        self._number = max((number for number, _ in parts), default=0) + 1
        return [line for _, name in sorted(parts) for line in fs.cat_file(name).decode().splitlines()]

    def _write_part(self, folder: str, line: str) -> None:
        if len(self._part) == _PART_LINES:
            self._number, self._part = self._number + 1, []
        self._part.append(line)
        fs, path = filesystem(folder)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(
            f"{path.rstrip('/')}/{NAME}-{self._number:05}-{self._run}.jsonl",
            "".join(self._part).encode(errors="backslashreplace"),
        )
