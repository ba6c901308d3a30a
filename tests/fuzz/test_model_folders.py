"""Model folders with anything in their files: read, or refused in one line."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from fuzzing import damaged, examples, json_values
from hypothesis import given
from hypothesis import strategies as st
from model_surgery import copy_folder

from whisper_npu import load_model
from whisper_npu.errors import WhisperNpuError
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.text.tokenizer import Tokenizer

CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "export_manifest.json",
    "tokenizer.json",
)
GRAPHS = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")


@contextmanager
def read_or_refused():
    """Allow errors of ours, of one line, and no others."""
    reason = "none"
    try:
        yield
    except WhisperNpuError as error:
        reason = str(error)
    assert reason
    assert "\n" not in reason


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """A folder whose files are changed and put back."""
    copy = copy_folder(tiny_folder, tmp_path_factory.mktemp("fuzz") / "tiny")
    (copy / "export_manifest.json").unlink()  # else all is refused, because files have changed
    return copy


@contextmanager
def changed(path, content):
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def read(folder):
    with read_or_refused():
        found = read_model_folder(folder)
        Tokenizer(found.tokenizer)


@pytest.fixture(scope="module")
def fields(tiny_folder):
    """The fields of each configuration."""
    return {name: sorted(json.loads((tiny_folder / name).read_text())) for name in CONFIGURATIONS}


@examples(200)
@given(data=st.data())
def test_fields_of_any_type(folder, tiny_folder, fields, data):
    name = data.draw(st.sampled_from(CONFIGURATIONS))
    content = json.loads((tiny_folder / name).read_text())
    for field in data.draw(st.lists(st.sampled_from(fields[name]), min_size=1, max_size=3)):
        content[field] = data.draw(json_values())
    with changed(folder / name, json.dumps(content).encode("utf-8", "surrogatepass")):
        read(folder)


@examples(200)
@given(data=st.data())
def test_damaged_configurations(folder, tiny_folder, data):
    name = data.draw(st.sampled_from(CONFIGURATIONS))
    content = data.draw(damaged((tiny_folder / name).read_bytes()))
    with changed(folder / name, content):
        read(folder)


@examples(12)
@given(data=st.data())
def test_damaged_graphs(folder, data):
    name = data.draw(st.sampled_from(GRAPHS))
    content = data.draw(damaged((folder / name).read_bytes()))
    with changed(folder / name, content), read_or_refused(), load_model(folder) as model:
        model.transcribe(np.zeros(16000, np.float32)).result()
