"""Manifests of corpora with anything in them: rows, or one line that says what is wrong."""

import gzip
import json

import pytest
from fuzzing import damaged, examples, json_values
from hypothesis import given
from hypothesis import strategies as st

from whisper_npu import UsageError
from whisper_npu.corpus.manifest import Item
from whisper_npu.corpus.manifests import read_manifest

ROWS = {
    "nemo.jsonl": {
        "audio_filepath": "a.wav",
        "offset": 1.5,
        "duration": 2.0,
        "text": "hello",
        "id": "one",
    },
    "recordings.jsonl": {
        "id": "one",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 16000,
        "duration": 1.0,
    },
    "cuts.jsonl": {
        "id": "one",
        "type": "MonoCut",
        "start": 0.0,
        "duration": 1.0,
        "channel": 0,
        "recording": {
            "id": "r",
            "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
            "sampling_rate": 16000,
            "num_samples": 32000,
            "duration": 2.0,
        },
        "supervisions": [{"id": "s", "start": 0, "duration": 1.0, "text": "hello"}],
    },
}


def rows_of(path):
    """The rows of a manifest, which may also be refused in one line."""
    reason = None
    try:
        rows = list(read_manifest(str(path)))
    except UsageError as error:
        reason = str(error)
    if reason is not None:
        assert str(path.parent) in reason
        assert "\n" not in reason
        return None
    assert all(isinstance(row, Item) and row.id and row.audio for row in rows)
    return rows


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_themselves_are_read(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(ROWS[name]))
    assert len(rows_of(tmp_path / name)) == 1


@pytest.mark.parametrize("name", ROWS)
@examples(150)
@given(data=st.data())
def test_fields_of_any_type(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("fields") / name
    row = json.loads(json.dumps(ROWS[name]))
    place = row
    while True:  # also in the recording of a cut
        field = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[field], dict) and data.draw(st.booleans()):
            place = place[field]
            continue
        place[field] = data.draw(json_values())
        break
    path.write_bytes(json.dumps(row).encode("utf-8", "surrogatepass"))
    rows_of(path)


@pytest.mark.parametrize("name", [*ROWS, "list.tsv", "cuts.jsonl.gz"])
@examples(100)
@given(data=st.data())
def test_damaged_manifests(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("damaged") / name
    if name == "list.tsv":
        content = b"client_id\tpath\tsentence\nx\ta.wav\thello\ny\tb.wav\tworld\n"
    else:
        content = 3 * (json.dumps(ROWS[name.removesuffix(".gz")]) + "\n").encode()
    if name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    path.write_bytes(data.draw(damaged(content)))
    rows_of(path)
