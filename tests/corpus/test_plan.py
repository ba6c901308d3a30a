"""What is left to do, and the outputs, without Ray and without a model."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import RATE, voice

from whisper_npu import OutputError, UsageError
from whisper_npu.corpus.manifest import Item
from whisper_npu.corpus.manifests import read_manifest
from whisper_npu.corpus.names import RUN_FILE
from whisper_npu.corpus.plan import (
    examine_block,
    index_blocks,
    list_sources,
    make_plan,
    work_blocks,
    write_index,
    write_manifest,
)
from whisper_npu.corpus.publish import publish
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import ResultStore
from whisper_npu.corpus.verify import verify_corpus

DIGESTS = ("model", "options")


@pytest.fixture
def sounds(tmp_path):
    """A folder of recordings: two are equal, one is missing by the manifest."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 5.0)):
        soundfile.write(folder / f"{name}.wav", voice(seconds), RATE)
    (folder / "twin.wav").write_bytes((folder / "a.wav").read_bytes())
    return folder


@pytest.fixture
def out(tmp_path):
    """The folder of outputs."""
    return Folder(str(tmp_path / "out"))


@pytest.fixture
def items(sounds):
    found = list(read_manifest(str(sounds)))
    return [*found, Item(id="gone", audio=str(sounds / "gone.wav"), reference="x")]


def plan_of(out, items, *, retry_errors=False, digests=DIGESTS):
    state, store = Folder(out.path("state")), ResultStore(Folder(out.path("results")))
    write_manifest(state, items)
    names, sources = list_sources(state)
    index = write_index(state, names, map(examine_block, index_blocks(state, names)))
    keys = store.read_keys()
    plan = make_plan(state, sources, index, keys, digests=digests, retry_errors=retry_errors)
    return plan, state, store


def planned(state, plan, seconds=1000.0):
    blocks = list(work_blocks(state, plan, seconds, {}))
    return [[row["audio"].rsplit("/", 1)[-1] for row in block.to_pylist()] for block in blocks]


def result(key, *, error=None, text="hello"):
    if error:
        return {"key": key, "error": error, "work_seconds": 0.0}
    segment = {"id": 0, "start": 0.0, "end": 1.0, "text": f" {text}", "words": None}
    coverage = {"transcribed": 1.0, "silent": 0.0, "skipped": 0.0, "dropped": 0.0}
    return {
        **{"key": key, "text": text, "language": "en", "segments": [segment], "duration": 1.0},
        **{"coverage": coverage, "warnings": [], "device": "CPU", "precision": "f32"},
        **{"kv_cache": "concat", "model": "tiny", "work_seconds": 0.5, "error": None},
    }


def store_results(store, plan, *rows, **facts):
    store.write([result(plan.keys[row].decode(), **facts) for row in rows])


class TestPlan:
    def test_equal_recordings_are_transcribed_once(self, out, items):
        plan, state, _ = plan_of(out, items)
        assert planned(state, plan) == [["a.wav", "b.wav", "c.wav"]]
        assert plan.seconds_to_do == 8.0
        assert plan.keys[0] == plan.keys[3]
        assert plan.keys[4] == b""

    def test_long_recordings_come_first_and_alone(self, out, items):
        plan, state, _ = plan_of(out, items)
        assert planned(state, plan, 4.0) == [["c.wav"], ["a.wav", "b.wav"]]
        assert planned(state, plan, 2.5) == [["c.wav"], ["a.wav"], ["b.wav"]]

    def test_what_is_stored_is_not_done_again(self, out, items):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0, 2)
        plan, state, _ = plan_of(out, items)
        assert planned(state, plan) == [["b.wav"]]

    def test_a_longer_manifest(self, out, items, sounds):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0, 1, 2)
        soundfile.write(sounds / "d.wav", voice(3.0), RATE)
        plan, state, _ = plan_of(out, read_manifest(str(sounds)))
        assert planned(state, plan) == [["d.wav"]]

    @pytest.mark.parametrize("digests", [("other", "options"), ("model", "other")])
    def test_another_model_or_other_options(self, out, items, digests):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0, 1, 2)
        plan, state, _ = plan_of(out, items, digests=digests)
        assert planned(state, plan) == [["a.wav", "b.wav", "c.wav"]]

    def test_changed_content(self, out, items, sounds):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0, 1, 2)
        soundfile.write(sounds / "b.wav", voice(4.0), RATE)
        plan, state, _ = plan_of(out, items)
        assert planned(state, plan) == [["b.wav"]]

    def test_cuts_are_different_work(self, out, items):
        cut = replace(items[2], id="cut", offset=1.0, seconds=2.0)
        plan, state, _ = plan_of(out, [items[2], cut, replace(cut, id="other", offset=1.5)])
        assert planned(state, plan) == [["c.wav"] * 3]
        assert list(plan.seconds) == [5.0, 2.0, 2.0]

    def test_errors_are_tried_again_on_request(self, out, items):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0, 2)
        store_results(store, plan, 1, error="broken")
        plan, state, _ = plan_of(out, items)
        assert planned(state, plan) == []
        plan, state, _ = plan_of(out, items, retry_errors=True)
        assert planned(state, plan) == [["b.wav"]]
        store.write([result(plan.keys[1].decode()), result("0" * 32)])  # in another file
        plan, state, _ = plan_of(out, items, retry_errors=True)
        assert planned(state, plan) == []

    def test_an_id_that_is_there_twice(self, out, items):
        with pytest.raises(UsageError, match="the id 'gone' is in the manifest twice"):
            plan_of(out, [*items, items[-1]])

    def test_a_manifest_without_recordings(self, out):
        with pytest.raises(UsageError, match="names no recording"):
            plan_of(out, [])


class TestStore:
    def test_results_are_found_by_their_keys(self, out, items):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0, 1, text="one")
        store_results(store, plan, 2, text="two")
        keys = store.read_keys()
        places, failed = keys.find(plan.keys)
        assert list(places < 0) == [False, False, False, False, True]
        assert not failed.any()
        found = [row["text"] for row in keys.results(places[:4])]
        assert found == ["one", "one", "two", "one"]

    def test_a_success_counts_more_than_an_error(self, out, items):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0, 1, error="no")
        store_results(store, plan, 1)
        _, failed = store.read_keys().find(plan.keys[:2])
        assert list(failed) == [True, False]

    def test_a_damaged_file(self, out, items):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0)
        (name,) = store.folder.names()
        (store.folder.local_path / name).write_bytes(b"no parquet")
        with pytest.raises(OutputError, match=r"cannot be read.*delete it"):
            store.read_keys()

    def test_results_of_another_version(self, out, items):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0)
        (name,) = store.folder.names()
        path = store.folder.local_path / name
        pq.write_table(pq.read_table(path).drop_columns("warnings"), path)
        with pytest.raises(OutputError, match=r"has not the columns of this version; delete it"):
            store.read_keys()

    @pytest.mark.parametrize("content", [b"no parquet", None])
    def test_facts_that_cannot_be_read(self, out, items, content):
        plan_of(out, items)
        path = out.local_path / "state" / "index.parquet"
        if content is None:
            pq.write_table(pq.read_table(path).drop_columns("stamp"), path)
        else:
            path.write_bytes(content)
        with pytest.raises(OutputError, match=r"index.parquet: cannot be read.*delete it"):
            plan_of(out, items)

    def test_a_file_that_cannot_be_written(self, out, items):
        plan, _, store = plan_of(out, items)
        store_results(store, plan, 0)
        store.folder.local_path.rename(store.folder.local_path.with_name("moved"))
        store.folder.local_path.write_text("in the way")
        with pytest.raises(OutputError, match="cannot be written: "):
            store_results(store, plan, 1)


def test_drafts_of_killed_programs_are_removed(out):
    out.make()
    with out.create("whole") as file:
        file.write(b"whole")
        drafts = [path for path in out.local_path.iterdir() if path.name != "whole"]
        copy = drafts[0].with_name(drafts[0].name[:-4] + "abcd")
        copy.write_bytes(b"half")
    (out.local_path / ".hidden").touch()
    out.remove_drafts()
    assert sorted(path.name for path in out.local_path.iterdir()) == [".hidden", "whole"]


class TestRemoteFolder:
    """A store without renames, as object stores are."""

    @pytest.fixture
    def remote(self, tmp_path):
        return Folder(f"memory://{tmp_path.name}")

    def test_files_that_are_open_together(self, remote):
        with remote.create("one") as one, remote.create("two") as two:
            one.write(b"1")
            two.write(b"2")
        with remote.open("one") as one, remote.open("two") as two:
            assert (one.read(), two.read()) == (b"1", b"2")

    def test_a_file_that_is_not_finished_does_not_appear(self, remote):
        def stop():
            with remote.create("half") as file:
                file.write(b"half")
                raise KeyError

        with pytest.raises(KeyError):
            stop()
        assert remote.names() == []

    def test_the_outputs(self, remote, items):
        plan, state, store = plan_of(remote, items)
        store_results(store, plan, 0, 1, 2)
        publish(remote, state, plan, store.read_keys(), ["srt"])
        with remote.open("corpus.parquet") as file:
            assert pq.read_table(file)["text"].to_pylist() == ["hello"] * 4 + [None]
        assert remote.names() == ["corpus.jsonl", "corpus.parquet", "results", "state", "subtitles"]


@pytest.fixture
def published(out, items):
    """The outputs, in which one recording failed."""
    plan, state, store = plan_of(out, items)
    store_results(store, plan, 0, text="héllo")
    store_results(store, plan, 1, error="broken")
    publish(out, state, plan, store.read_keys(), ["srt"])
    with out.create(RUN_FILE) as file:
        file.write(json.dumps({"manifest": str(items[0].audio), "kind": None}).encode())
    return out.local_path


class TestPublish:
    def test_a_row_for_every_row_of_the_manifest(self, published, items):
        rows = pq.read_table(published / "corpus.parquet").to_pylist()
        assert [row["id"] for row in rows] == [item.id for item in items]
        assert [row["text"] for row in rows] == ["héllo", None, None, "héllo", None]
        assert rows[1]["error"] == "broken"
        assert rows[2]["error"].startswith("not transcribed")
        assert rows[4]["error"].endswith("gone.wav: no such file")
        assert rows[0]["segments"][0]["text"] == " héllo"
        assert rows[0]["digest"] == rows[3]["digest"] != rows[1]["digest"]

    def test_lines(self, published, items):
        lines = list(map(json.loads, (published / "corpus.jsonl").read_text().splitlines()))
        assert [line["pred_text"] for line in lines] == ["héllo", None, None, "héllo", None]
        assert lines[4]["text"] == "x"
        assert lines[0]["audio_filepath"] == items[0].audio

    def test_subtitles(self, published):
        names = sorted(path.name for path in (published / "subtitles").iterdir())
        assert names == ["a.wav.srt", "twin.wav.srt"]
        assert "héllo" in (published / "subtitles" / "a.wav.srt").read_text()

    def test_the_fields_of_the_manifest_do_not_hide_the_row(self, out, items, sounds):
        """A line can be read from any folder, whatever the manifest says."""
        given = [{"audio_filepath": "a.wav", "id": None, "error": 3, "note": "\ud800", "n": "é"}]
        path = sounds / "m.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in given))
        plan, state, store = plan_of(out, read_manifest(str(path)))
        store_results(store, plan, 0)
        publish(out, state, plan, store.read_keys(), [])
        (line,) = map(json.loads, (out.local_path / "corpus.jsonl").read_text().splitlines())
        assert (line["id"], line["audio_filepath"]) == ("a.wav", str(sounds / "a.wav"))
        assert (line["error"], line["note"], line["n"]) == (None, "\ud800", "é")

    def test_each_id_has_subtitles_of_its_own(self, out, items):
        ids = ["x", "/x", "../x", "x//", "..", "é" * 300, "é" * 299]
        many = [replace(items[0], id=each) for each in ids]
        plan, state, store = plan_of(out, many)
        store_results(store, plan, 0)
        publish(out, state, plan, store.read_keys(), ["txt"])
        folder = out.local_path / "subtitles"
        names = [str(path.relative_to(folder)) for path in folder.rglob("*.txt")]
        assert len(names) == len(ids)
        assert "x.txt" in names
        publish(out, state, plan, store.read_keys(), ["txt"])
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.txt")) == sorted(
            names
        )

    def test_subtitles_of_a_text_that_is_an_error_now_are_removed(self, out, items):
        plan, state, store = plan_of(out, items)
        store_results(store, plan, 0, 1)
        publish(out, state, plan, store.read_keys(), ["txt"])
        (out.local_path / "results" / store.folder.names()[0]).unlink()
        store_results(store, plan, 0)
        publish(out, state, plan, store.read_keys(), ["txt"])
        names = sorted(path.name for path in (out.local_path / "subtitles").iterdir())
        assert names == ["a.wav.txt", "twin.wav.txt"]

    def test_ids_stay_below_the_folder(self, out, items):
        strange = [replace(items[0], id="../../x"), replace(items[1], id="/abs/y")]
        plan, state, store = plan_of(out, strange)
        store_results(store, plan, 0, 1)
        publish(out, state, plan, store.read_keys(), ["txt"])
        found = {str(p.relative_to(out.local_path)) for p in out.local_path.rglob("*.txt")}
        assert found == {"subtitles/x.txt", "subtitles/abs/y.txt"}


class TestVerify:
    @pytest.mark.parametrize(
        ("change", "finding"),
        [
            ({}, ()),
            ({"text": None}, ("a.wav: has neither a text with its seconds nor an error",)),
            ({"coverage": None}, ("a.wav: has neither a text with its seconds nor an error",)),
            ({"duration": float("nan")}, ("a.wav: nan of nan s are not accounted for",)),
        ],
    )
    def test_a_row_without_its_facts(self, out, items, change, finding):
        plan, state, store = plan_of(out, items[:1])
        store.write([{**result(plan.keys[0].decode()), **change}])
        publish(out, state, plan, store.read_keys(), [])
        with out.create(RUN_FILE) as file:
            file.write(json.dumps({"manifest": items[0].audio, "kind": None}).encode())
        assert verify_corpus(out.url).findings == finding

    def test_a_line_in_the_place_of_another(self, published, items, tmp_path):
        path = published / "corpus.jsonl"
        lines = path.read_text().splitlines()
        lines[0], lines[3] = lines[3], lines[0]  # twins: the same text
        path.write_text("\n".join(lines))
        rows = [{"id": item.id, "audio_filepath": item.audio} for item in items]
        manifest = tmp_path / "m.jsonl"
        manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        found = verify_corpus(str(published), str(manifest)).findings
        assert found[0] == "a.wav: corpus.jsonl differs from corpus.parquet"
        assert found[2] == "twin.wav: corpus.jsonl differs from corpus.parquet"

    def test_complete(self, published, items, tmp_path):
        rows = [{"id": item.id, "audio_filepath": item.audio} for item in items]
        path = tmp_path / "m.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        found = verify_corpus(str(published), str(path))
        assert (found.rows, found.transcribed, found.errors) == (5, 2, 3)
        assert found.seconds == 2.0
        assert found.findings == ("c.wav: not transcribed; run the same command again",)

    def test_rows_that_differ(self, published, items, tmp_path):
        rows = [{"id": item.id, "audio_filepath": item.audio} for item in items]
        rows[0]["duration"] = 9.0
        rows[1]["id"] = "other"
        rows.append({"id": "more", "audio_filepath": "x"})
        path = tmp_path / "m.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        found = verify_corpus(str(published), str(path)).findings
        assert found == (
            "a.wav: 1.00 s were read, the manifest states 9.00 s",
            "other: corpus.parquet has b.wav in its place",
            "c.wav: not transcribed; run the same command again",
            "more: is missing in corpus.parquet",
        )
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows[2:4]))
        rows = verify_corpus(str(published), str(path)).findings
        assert "a.wav" in rows[0]
        assert sum("not in the manifest" in row for row in rows) == 6

    def test_seconds_that_are_lost(self, out, items):
        plan, state, store = plan_of(out, items[:1])
        row = result(plan.keys[0].decode())
        row["coverage"]["transcribed"] = 0.5
        store.write([row])
        publish(out, state, plan, store.read_keys(), [])
        with out.create(RUN_FILE) as file:
            file.write(json.dumps({"manifest": items[0].audio, "kind": None}).encode())
        (finding,) = verify_corpus(out.url).findings
        assert finding == "a.wav: 0.50 of 1.00 s are not accounted for"

    def test_no_outputs(self, tmp_path):
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(UsageError, match="no run of `whisper-npu corpus` has used it"):
                verify_corpus(str(folder))
        (tmp_path / "state").mkdir()
        with pytest.raises(UsageError, match="its run has not come to its end; give the command"):
            verify_corpus(str(tmp_path))

    @pytest.mark.parametrize("name", ["corpus.parquet", "corpus.jsonl", "run.json"])
    def test_an_output_that_is_missing_or_damaged(self, published, name):
        path = published / name
        path.write_text("{")
        with pytest.raises(OutputError, match=r"cannot be read: .*; give the command of the run"):
            verify_corpus(str(published))
        path.unlink()
        with pytest.raises(OutputError, match=f": {name} missing; give the command of the run"):
            verify_corpus(str(published))


def test_memory_of_keys_is_small(out):
    """Less than 100 bytes for each key."""
    store = ResultStore(Folder(out.path("results")))
    store.write([result(f"{number:032x}") for number in range(50)])
    keys = store.read_keys()
    kept = sum(value.nbytes for value in vars(keys).values() if isinstance(value, np.ndarray))
    assert kept <= 50 * 100
