"""The shipped tiny model: made by the code beside it, again by the command."""

import json

import pytest

from alphadrive.model_source import model_folder_of
from alphadrive.tiny import pretrain
from alphadrive.tiny.build import SETTINGS
from alphadrive.tiny.tokenizer import build_tokenizer


def test_shipped_model_is_what_the_settings_and_the_tokenizer_say():
    from transformers import AutoTokenizer

    folder = model_folder_of("tiny", None)
    shipped = AutoTokenizer.from_pretrained(folder)
    assert shipped.get_vocab() == build_tokenizer().get_vocab()
    figures = json.loads((folder / "figures.json").read_text())
    assert {name: figures[name] for name in SETTINGS} == SETTINGS


@pytest.mark.e2e
def test_two_ranks_make_a_model_that_loads_and_is_judged(tmp_path, monkeypatch):
    from transformers import Qwen2VLForConditionalGeneration

    monkeypatch.setattr(pretrain, "NUM_HELD_OUT", 8)
    out = tmp_path / "model"
    figures = pretrain.build(out, num_scenes=64, steps=3, batch_size=8, learning_rate=1e-3, seed=3)
    assert figures["parameters"] == Qwen2VLForConditionalGeneration.from_pretrained(out).num_parameters()
    assert set(figures["field_accuracy"]) == {*pretrain.FIELDS, "all"}
    assert json.loads((out / "figures.json").read_text()) == figures
