"""Compiled graphs with damage in their files: compiled again, with the same text."""

import pytest
from fuzzing import damaged, examples
from hypothesis import given
from hypothesis import strategies as st

from whisper_npu import load_model


@pytest.fixture(scope="module")
def cache(tiny_folder, tiny_audio, tmp_path_factory):
    """The content of a filled cache's files, and the text of the model that filled it."""
    folder = tmp_path_factory.mktemp("fuzzed-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHISPER_NPU_CACHE", str(folder))
        patch.setenv("WHISPER_NPU_CACHE_LIMIT", "1")
        text = text_of(tiny_folder, tiny_audio)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        assert len(files) >= 3
        yield {path: path.read_bytes() for path in files}, text


def text_of(folder, audio):
    with load_model(folder) as model:
        return model.transcribe(audio[0], language="en").result().text


@examples(10)
@given(data=st.data())
def test_damaged_entries(cache, tiny_folder, tiny_audio, data):
    files, text = cache
    path = data.draw(st.sampled_from(sorted(files)))
    path.write_bytes(data.draw(damaged(files[path])))
    assert text_of(tiny_folder, tiny_audio) == text
