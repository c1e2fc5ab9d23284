"""Every answer that was paid for, on disk before anybody uses it.

    OUT/answers.jsonl     one line an answer: key, query_id, text, finish_reason, token counts

Append-only. A line is forced to disk before the answer is handed on, so that a process that dies at any
instant leaves at most one incomplete line at the end; it is cut off when the file is opened again.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from alphadrive.errors import DataError, TeacherError
from alphadrive.teacher.request import Answer, TeacherRequest

ANSWERS_FILE = "answers.jsonl"


class AnswerCache:
    """The answers of a folder by request key, in memory too: a few hundred bytes each. One process at a
    time; the caller holds the folder's lock."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one. Raises DataError for a damaged line that is not the last."""
        self.num_cut_bytes = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.longest_prompt = 0
        self._path = path
        self._answers: dict[str, Answer] = {}
        self._is_broken = False
        self._read()
        self._file = path.open("ab", buffering=0)

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens of all answers in the file."""
        return self.prompt_tokens + self.completion_tokens

    def get(self, key: str) -> Answer | None:
        """The answer to the request of that key, if it was ever given."""
        return self._answers.get(key)

    def add(self, key: str, request: TeacherRequest, answer: Answer) -> None:
        """Keep an answer; on disk when this returns. Raises TeacherError when it cannot be written."""
        line = json.dumps({"key": key, "query_id": request.query_id, **asdict(answer)}).encode() + b"\n"
        if self._is_broken:
            raise TeacherError(f"{self._path}: not written to after an earlier error; an answer is lost")
        try:
            num_written = self._file.write(line)
            os.fsync(self._file.fileno())
            if num_written != len(line):
                raise OSError(f"only {num_written} of {len(line)} bytes were taken")
        except OSError as error:
            self._is_broken = True
            raise TeacherError(
                f"{self._path}: cannot keep an answer: {error}; make room and run the same command again"
            ) from error
        self._count(key, answer)

    def close(self) -> None:
        self._file.close()

    def _count(self, key: str, answer: Answer) -> None:
        self._answers[key] = answer
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0
        self.longest_prompt = max(self.longest_prompt, answer.prompt_tokens or 0)

    def _read(self) -> None:
        if not self._path.exists():
            return
        num_bytes = self._path.stat().st_size
        end = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                found = _parsed(line)
                if found is None:
                    if end + len(line) != num_bytes:
                        raise DataError(
                            f"{self._path}: row {number}: got {line[:60]!r}, expected an answer as this "
                            "command writes it; the file was damaged or edited: remove that line, and its "
                            "question is asked again"
                        )
                    break
                self._count(*found)
                end += len(line)
        self.num_cut_bytes = num_bytes - end
        if self.num_cut_bytes:
            os.truncate(self._path, end)


def _parsed(line: bytes) -> tuple[str, Answer] | None:
    """Key and answer of a whole line; None for anything else."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    texts = [values.get(name) for name in ("key", "text", "finish_reason")]
    counts = [values.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(count is None or (type(count) is int and count >= 0) for count in counts):
        return None
    return values["key"], Answer(
        text=values["text"],
        finish_reason=values["finish_reason"],
        prompt_tokens=values["prompt_tokens"],
        completion_tokens=values["completion_tokens"],
    )
