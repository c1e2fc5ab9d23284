"""Answers survive whatever ends the process, and damage is never taken for an answer."""

import errno
import os

import pytest

from alphadrive.errors import DataError, TeacherError
from alphadrive.teacher.answer_cache import AnswerCache
from alphadrive.teacher.request import Answer, TeacherRequest


def request(prompt="why?", image=b"picture", model="m", max_answer_tokens=100):
    return TeacherRequest(
        query_id="q", model=model, prompt=prompt, image=image, max_answer_tokens=max_answer_tokens
    )


def answer(text="because", prompt_tokens=10, completion_tokens=3):
    return Answer(
        text=text,
        finish_reason="stop",
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


@pytest.fixture
def path(tmp_path):
    """Three answers, the second without token counts."""
    path = tmp_path / "answers.jsonl"
    cache = AnswerCache(path)
    for number, counts in enumerate([(10, 3), (None, None), (20, 4)]):
        cache.add(f"key-{number}", request(), answer(f"text {number} é\n", *counts))
    cache.close()
    return path


def test_answers_are_there_again(path):
    cache = AnswerCache(path)
    assert [cache.get(f"key-{number}").text for number in range(3)] == [f"text {n} é\n" for n in range(3)]
    assert cache.get("key-3") is None
    assert (cache.prompt_tokens, cache.completion_tokens, cache.longest_prompt) == (30, 7, 20)
    assert cache.num_cut_bytes == 0 and len(cache) == 3


def test_last_line_torn_at_any_byte_costs_that_answer_only(path):
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        cache = AnswerCache(path)
        assert (len(cache), cache.num_cut_bytes) == (2, end - last)
        cache.add("key-2", request(), answer("again"))
        cache.close()
        assert AnswerCache(path).get("key-2").text == "again"


@pytest.mark.parametrize("tail", [b"\0" * 40, b"\xff\xfe\n", b"[1]\n", b'{"key": 1}\n', b"{}\n"])
def test_last_line_that_is_no_answer_is_cut_off(path, tail):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + tail)
    cache = AnswerCache(path)
    assert (len(cache), cache.num_cut_bytes) == (3, len(tail))
    assert path.stat().st_size == size


def test_damage_before_the_end_is_an_error_with_its_row(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"key": "key-1", "te\n' + lines[2])
    with pytest.raises(DataError, match=r"answers\.jsonl: row 1: got .*remove that line"):
        AnswerCache(path)
    assert path.read_bytes().splitlines(keepends=True)[2] == lines[2]


def test_answer_that_cannot_be_written_is_not_taken_as_kept(path, monkeypatch):
    cache = AnswerCache(path)

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", no_space)
        with pytest.raises(TeacherError, match=r"cannot keep an answer: .*No space left"):
            cache.add("key-3", request(), answer())
    assert cache.get("key-3") is None
    with pytest.raises(TeacherError, match="not written to after an earlier error"):
        cache.add("key-4", request(), answer())


def test_key_covers_all_that_is_sent_and_nothing_else():
    first = request()
    others = [request("how?"), request(image=b"other"), request(model="n"), request(max_answer_tokens=99)]
    assert len({first.key, *(other.key for other in others)}) == 5
    renamed = TeacherRequest(
        query_id="another", model="m", prompt="why?", image=b"picture", max_answer_tokens=100
    )
    assert renamed.key == first.key


def test_body_carries_the_image_as_it_is(picture):
    for image_format in ("PNG", "JPEG", "WEBP"):
        body = request(image=picture(image_format=image_format)).body()
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        assert url.startswith(f"data:image/{image_format.lower()};base64,")
