"""docs/coming-from.md: complete, and its programs run."""

import re
import shutil
from dataclasses import fields

import pytest
from repository import ROOT

from whisper_npu import TranscribeOptions
from whisper_npu.runtime.options import _ELSEWHERE, unknown_option

PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
OPENAI_WHISPER = """
    audio verbose temperature compression_ratio_threshold logprob_threshold no_speech_threshold
    condition_on_previous_text initial_prompt carry_initial_prompt word_timestamps
    prepend_punctuations append_punctuations clip_timestamps hallucination_silence_threshold
    task language sample_len best_of beam_size patience length_penalty prompt prefix
    suppress_tokens suppress_blank without_timestamps max_initial_timestamp fp16
"""
FASTER_WHISPER = """
    audio language task log_progress beam_size best_of patience length_penalty repetition_penalty
    no_repeat_ngram_size temperature compression_ratio_threshold log_prob_threshold
    no_speech_threshold condition_on_previous_text prompt_reset_on_temperature initial_prompt
    prefix suppress_blank suppress_tokens without_timestamps max_initial_timestamp word_timestamps
    prepend_punctuations append_punctuations multilingual vad_filter vad_parameters max_new_tokens
    chunk_length clip_timestamps hallucination_silence_threshold hotwords
    language_detection_threshold language_detection_segments batch_size
"""
LOADING = """
    name device download_root in_memory model_size_or_path device_index compute_type cpu_threads
    num_workers local_files_only files revision use_auth_token
"""


def rows():
    """The first and last cell of every row of the page's tables whose first cell is one name."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| `") and re.fullmatch(r"`\w+`", cells[0]):
            yield cells[0].strip("`"), cells


@pytest.mark.parametrize(("names", "mark"), [(OPENAI_WHISPER, "o"), (FASTER_WHISPER, "f")])
def test_every_parameter_of_transcribe_has_a_row(names, mark):
    found = [name for name, cells in rows() if len(cells) == 3 and mark in cells[1].split()]
    assert sorted(found) == sorted(names.split())


def test_every_parameter_of_loading_has_a_row():
    found = {name for name, cells in rows() if len(cells) == 2}
    assert found == set(LOADING.split())


def test_what_has_the_same_name_is_an_option():
    ours = {field.name for field in fields(TranscribeOptions)}
    for name, cells in rows():
        if len(cells) == 3 and name != "audio":
            assert (name in ours) == cells[2].lower().startswith(("*same*", "same name")), name


def test_the_error_of_every_other_name_knows_it():
    ours = {field.name for field in fields(TranscribeOptions)}
    for name in {*OPENAI_WHISPER.split(), *FASTER_WHISPER.split()} - ours - {"audio"}:
        assert "see docs/coming-from.md" in str(unknown_option(name)), name
    assert not ours & set(_ELSEWHERE)


def test_its_programs_run(tiny_en_folder, beckett, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.en").symlink_to(tiny_en_folder, target_is_directory=True)
    for name in ("talk.mp3", "a.mp3"):
        shutil.copy(beckett, name)
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(programs) >= 7
    names = {}
    for program in programs:
        exec(compile(program, "docs/coming-from.md", "exec"), names)
    assert "fail better" in names["text"].lower()
    assert "missing.mp3: no such file" in capsys.readouterr().out
