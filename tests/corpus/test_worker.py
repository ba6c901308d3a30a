"""The worker of an actor, in this process: its texts are those of `transcribe_all`."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import RATE, voice

from whisper_npu import TranscribeOptions, load_model
from whisper_npu.corpus import engine
from whisper_npu.corpus.audio import stamp_of
from whisper_npu.corpus.publish import to_transcription
from whisper_npu.corpus.run import _actors_that_fit, _forgotten_at_a_stop
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import ResultStore, work_key
from whisper_npu.corpus.worker import WORK, ModelSettings, Worker

# The tiny Whisper invents text: every window of sound becomes some.
INVENT = TranscribeOptions(
    vad=False,
    language="en",
    without_timestamps=True,
    no_speech_threshold=None,
    temperature=0.0,
    unheard_speech_threshold=None,
)


@pytest.fixture
def items(tmp_path):
    """Work: two recordings, a missing and a broken one, and a cut."""
    for name, seconds in (("a", 2.0), ("b", 3.0)):
        soundfile.write(tmp_path / f"{name}.wav", voice(seconds), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    names = ("a", "gone", "broken", "b")
    work = [dict.fromkeys(WORK.names) | {"audio": str(tmp_path / f"{n}.wav")} for n in names]
    work.append({**work[3], "offset": 1.0, "seconds": 1.5})
    return [{**item, "key": f"{number:032x}"} for number, item in enumerate(work)]


@pytest.fixture
def settings(tiny_folder):
    return ModelSettings(model=str(tiny_folder), options=INVENT)


@pytest.fixture
def worker(settings, tmp_path):
    """A worker, and the folders of its results and its attempts."""
    store, attempts = Folder(str(tmp_path / "results")), Folder(str(tmp_path / "attempts"))
    attempts.make()
    return Worker(settings, ResultStore(store), attempts), store, attempts


def block(items):
    import pyarrow as pa

    return pa.Table.from_pylist(items, schema=WORK)


def stored(store):
    """All results by key."""
    tables = [pq.read_table(store.local_path / name) for name in store.names()]
    return {row["key"]: row for table in tables for row in table.to_pylist()}


def test_texts_are_those_of_transcribe_all(worker, items, tiny_folder, tmp_path):
    act, store, attempts = worker
    (done,) = act(block(items)).to_pylist()
    assert (done["items"], done["failed"], done["seconds"]) == (5, 2, 6.5)
    assert attempts.names() == []
    rows = [stored(store)[item["key"]] for item in items]
    assert "gone.wav: no such file" in rows[1]["error"]
    assert "broken.wav" in rows[2]["error"]
    samples, _ = soundfile.read(items[3]["audio"], dtype="int16")
    soundfile.write(tmp_path / "cut.wav", samples[RATE : RATE * 5 // 2], RATE)
    paths = [items[0]["audio"], items[3]["audio"], tmp_path / "cut.wav"]
    with load_model(tiny_folder) as model:
        wanted = [stream.result() for stream in model.transcribe_all(iter(paths), INVENT)]
    assert [rows[n]["text"] for n in (0, 3, 4)] == [each.text for each in wanted]
    assert all(each.text for each in wanted)
    again = to_transcription(rows[0])
    as_stored = [replace(s, tokens=(), seek=0, retries=()) for s in wanted[0].segments]
    assert list(again.segments) == as_stored
    assert rows[0]["coverage"] == wanted[0].coverage.seconds()
    assert (again.device, again.precision) == (wanted[0].device, wanted[0].precision)
    assert rows[0]["work_seconds"] > 0


def attempted(attempts, items, count):
    """Note attempts, as processes that ended leave it."""
    with attempts.create(work_key(*(item["key"] for item in items))) as file:
        file.write(str(count).encode())


def test_a_block_that_ended_its_process_twice_is_done_one_by_one(worker, items):
    act, store, attempts = worker
    attempted(attempts, items, 2)
    (done,) = act(block(items)).to_pylist()
    assert (done["items"], done["failed"]) == (5, 2)
    assert len(store.names()) == 5
    assert attempts.names() == []


def test_a_recording_that_ends_its_process_becomes_an_error(worker, items):
    act, store, attempts = worker
    attempted(attempts, items, 2)
    attempted(attempts, items[3:4], 2)
    act(block(items))
    rows = stored(store)
    assert rows[items[3]["key"]]["error"].endswith(
        "its process ended 2 times while it was transcribed"
    )
    assert rows[items[0]["key"]]["text"]
    assert rows[items[4]["key"]]["text"]


def test_errors_that_end_the_run_are_returned(worker, items, settings):
    act, store, attempts = worker
    store.local_path.write_text("in the way")
    (done,) = act(block(items)).to_pylist()
    assert done["fatal"] == "OutputError"
    assert "cannot be written" in done["message"]
    broken = Worker(replace(settings, load={"device": "GPU.7"}), ResultStore(store), attempts)
    (done,) = broken(block(items)).to_pylist()
    assert done["fatal"] == "DeviceError"
    assert "GPU.7" in done["message"]


def test_an_attempt_after_one_that_ended_is_a_whole_block(worker, items):
    act, store, attempts = worker
    attempted(attempts, items, 1)
    act(block(items))
    assert len(store.names()) == 1


def test_a_recording_that_changes_during_the_run_is_an_error(worker, items):
    """Its text must not be stored under the digest of its old bytes."""
    transcribe, store, _ = worker
    work = [{**item, "stamp": stamp_of(item["audio"])} for item in (items[0], items[3])]
    soundfile.write(items[0]["audio"], voice(4.0), RATE)
    transcribe(block(work))
    found = stored(store)
    assert found[items[0]["key"]]["error"].endswith(
        "changed during the run; run the same command again"
    )
    assert found[items[3]["key"]]["error"] is None


def test_a_store_that_cannot_be_asked_any_more_is_named_with_its_reason(worker, items, monkeypatch):
    def stamp(audio):
        raise PermissionError(13, "Permission denied")

    transcribe, store, _ = worker
    monkeypatch.setattr("whisper_npu.corpus.worker.stamp_of", stamp)
    transcribe(block([{**items[0], "stamp": "as before"}]))
    (found,) = stored(store).values()
    assert found["error"] == f"{items[0]['audio']}: cannot be read: Permission denied"


def test_a_run_that_is_told_to_end_forgets_its_attempts(tmp_path):
    """A recording is not to blame for them; see the attempts that end a process."""
    attempts = Folder(str(tmp_path / "attempts"))
    attempts.make()
    for error, n_left in ((ValueError, 1), (KeyboardInterrupt, 0)):
        with attempts.create("block") as file:
            file.write(b"2")
        with pytest.raises(error), _forgotten_at_a_stop(attempts):
            raise error
        assert len(attempts.names()) == n_left


def test_the_size_of_a_model_counts_the_folders_in_it(tmp_path, monkeypatch):
    """As the hub has them: the graphs are in `onnx/`."""
    monkeypatch.setattr(engine, "processors", lambda: 64)
    monkeypatch.setattr(engine, "memory", lambda: int(2e9))
    (tmp_path / "onnx").mkdir()
    with (tmp_path / "onnx" / "encoder_model.onnx").open("wb") as file:
        file.truncate(1_000_000_000)  # takes no room
    assert _actors_that_fit(str(tmp_path), 1) == 1
