"""Every kind of manifest names the same recordings."""

import gzip
import io
import json
import os
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import RATE, voice

from whisper_npu import UsageError
from whisper_npu.corpus import manifests
from whisper_npu.corpus.audio import Source, examine
from whisper_npu.corpus.manifests import read_manifest
from whisper_npu.corpus.names import KINDS

TEXTS = {"a": "first", "b": "second one", "c": "third"}


@pytest.fixture
def sounds(tmp_path):
    """Three recordings by name."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    found = {}
    for number, name in enumerate(TEXTS):
        found[name] = folder / f"{name}.flac"
        soundfile.write(found[name], voice(1.0 + number), RATE)
    return found


def write_lines(path, rows):
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def lhotse_recording(name, path):
    return {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": RATE,
        "duration": soundfile.info(path).duration,
    }


def nemo(sounds, folder):
    rows = [
        {"audio_filepath": f"sounds/{name}.flac", "duration": 1.0 + number, "text": TEXTS[name]}
        for number, name in enumerate(sounds)
    ]
    return write_lines(folder / "manifest.jsonl", rows)


def recordings(sounds, folder):
    rows = [lhotse_recording(name, path) for name, path in sounds.items()]
    return write_lines(folder / "recordings.jsonl.gz", rows)


def array(sounds, folder):
    rows = [json.loads(line) for line in nemo(sounds, folder).read_text().splitlines()]
    (folder / "array.json").write_text(json.dumps(rows, indent=2))
    return folder / "array.json"


def cuts(sounds, folder):
    rows = [
        {
            "id": f"cut-{name}",
            "start": 0,
            "duration": soundfile.info(path).duration,
            "type": "MonoCut",
            "supervisions": [{"text": TEXTS[name], "start": 0}],
            "recording": lhotse_recording(name, path),
        }
        for name, path in sounds.items()
    ]
    return write_lines(folder / "cuts.jsonl.gz", rows)


def tsv(sounds, folder):
    lines = [f"sounds/{name}.flac\t{TEXTS[name]}\n" for name in sounds]
    (folder / "references.tsv").write_text("".join(["audio\ttext\n", *lines]))
    return folder / "references.tsv"


def common_voice(sounds, folder):
    (folder / "cv" / "clips").mkdir(parents=True)
    lines = ["client_id\tpath\tsentence\tup_votes\n"]
    for name, path in sounds.items():
        shutil.copy(path, folder / "cv" / "clips")
        lines.append(f"x\t{name}.flac\t{TEXTS[name]}\t2\n")
    (folder / "cv" / "validated.tsv").write_text("".join(lines))
    (folder / "cv" / "other.tsv").write_text(lines[0])
    return folder / "cv"


def librispeech(sounds, folder):
    chapter = folder / "ls" / "1" / "2"
    chapter.mkdir(parents=True)
    for path in sounds.values():
        shutil.copy(path, chapter)
    lines = [f"{name} {TEXTS[name]}\n" for name in sounds]
    (chapter / "1-2.trans.txt").write_text("".join(lines))
    return folder / "ls"


def parquet(sounds, folder):
    rows = [
        {"audio": {"bytes": path.read_bytes(), "path": path.name}, "text": TEXTS[name], "n": 3}
        for name, path in sounds.items()
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


def webdataset(sounds, folder):
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, path in sounds.items():
            tar.add(path, f"{name}.flac")
            text = TEXTS[name].encode()
            member = tarfile.TarInfo(f"{name}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return folder / "shard.tar"


def audio_folder(sounds, folder):
    return folder / "sounds"


def audio_glob(sounds, folder):
    return folder / "sounds" / "*.flac"


WITH_TEXTS = [nemo, array, cuts, tsv, common_voice, librispeech, parquet, webdataset]


@pytest.mark.parametrize("make", [*WITH_TEXTS, recordings, audio_folder, audio_glob])
def test_every_kind(make, sounds, tmp_path):
    items = list(read_manifest(str(make(sounds, tmp_path))))
    wanted = [examine(Source(str(path))) for path in sounds.values()]
    found = [examine(Source(i.audio, i.start, i.size, i.row)) for i in items]
    assert [facts.digest for facts in found] == [facts.digest for facts in wanted]
    assert [facts.seconds for facts in found] == [1.0, 2.0, 3.0]
    assert len({item.id for item in items}) == 3
    assert all(item.offset is None for item in items)
    if make in WITH_TEXTS:
        assert [item.reference for item in items] == list(TEXTS.values())


def test_cuts_of_nemo(sounds, tmp_path):
    row = {"audio_filepath": str(sounds["c"]), "offset": 0.5, "duration": 1.25, "text": "x", "k": 1}
    (item,) = read_manifest(str(write_lines(tmp_path / "m.json", [row])))
    assert (item.offset, item.seconds, item.stated_seconds) == (0.5, 1.25, 1.25)
    assert item.id == f"{sounds['c']}@0.5+1.25"
    assert json.loads(item.fields) == row


def test_cuts_that_begin_close_together_have_ids_of_their_own(tmp_path):
    rows = [{"audio_filepath": "a", "offset": at, "duration": 1} for at in (12345.67, 12345.68)]
    found = [item.id for item in read_manifest(str(write_lines(tmp_path / "m.json", rows)))]
    assert found == ["a@12345.67+1", "a@12345.68+1"]


@pytest.mark.parametrize("offset", ["0.5", " 5e-1 "])
def test_numbers_as_text(sounds, tmp_path, offset):
    row = {"audio_filepath": str(sounds["c"]), "offset": offset, "duration": "1.25"}
    (item,) = read_manifest(str(write_lines(tmp_path / "m.json", [row])))
    assert (item.offset, item.seconds, item.stated_seconds) == (0.5, 1.25, 1.25)
    assert item.id == f"{sounds['c']}@0.5+1.25"
    recording = lhotse_recording("c", sounds["c"]) | {"duration": "3.0"}
    cut = {"id": "x", "start": offset, "duration": "1.25", "recording": recording}
    (item,) = read_manifest(str(write_lines(tmp_path / "c.json", [cut])))
    assert (item.offset, item.seconds, item.stated_seconds) == (0.5, 1.25, 1.25)
    (item,) = read_manifest(str(write_lines(tmp_path / "c.json", [cut | {"start": "0"}])))
    assert (item.offset, item.seconds) == (0.0, 1.25)


def test_null_is_no_number(tmp_path):
    row = {"audio_filepath": "a", "offset": None, "duration": None}
    (item,) = read_manifest(str(write_lines(tmp_path / "m.json", [row])))
    assert (item.id, item.offset, item.seconds, item.stated_seconds) == ("a", None, None, None)


NO_SECONDS = [
    *('"ten"', '""', '"1,5"', '"1_0"', '"nan"', '"-1"', "true", "[1]", "{}", "NaN", "-1"),
    *("1e999", "1" + 400 * "0"),
]


@pytest.mark.parametrize("value", NO_SECONDS)
@pytest.mark.parametrize(
    ("row", "field"),
    [
        ('{"audio_filepath": "a", "offset": %s, "duration": 1}', "offset"),
        ('{"audio_filepath": "a", "duration": %s}', "duration"),
        ('{"start": %s, "duration": 1, "recording": {"sources": [S], "duration": 9}}', "start"),
        ('{"start": 0, "duration": %s, "recording": {"sources": [S], "duration": 9}}', "duration"),
        ('{"start": 0, "duration": 1, "recording": {"sources": [S], "duration": %s}}', "duration"),
        ('{"sources": [S], "duration": %s}', "duration"),
    ],
)
def test_seconds_that_are_no_number(tmp_path, row, field, value):
    right, wrong = row.replace("%s", "1"), row.replace("%s", value)
    source = '{"type": "file", "source": "a"}'
    (tmp_path / "m.jsonl").write_text(f"{right}\n{wrong}\n".replace("S]", f"{source}]"))
    message = rf"m.jsonl: line 2: {field} is .*; give seconds as a number, 0 or more$"
    with pytest.raises(UsageError, match=message) as caught:
        list(read_manifest(str(tmp_path / "m.jsonl")))
    assert len(str(caught.value)) < len(str(tmp_path)) + 120


def test_names_with_the_characters_of_patterns(sounds, tmp_path):
    path = write_lines(tmp_path / "part[1].jsonl", [{"audio_filepath": str(sounds["a"])}])
    assert [item.audio for item in read_manifest(str(path))] == [str(sounds["a"])]
    folder = shutil.copytree(librispeech(sounds, tmp_path), tmp_path / "old [2019]")
    assert len([item for item in read_manifest(str(folder)) if item.reference]) == 3


def test_a_file_name_that_is_no_utf8(sounds, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    shutil.copy(sounds["a"], os.fsencode(folder) + b"/\xff.wav")
    with pytest.raises(UsageError, match=r"the id '\\udcff.wav' has a NUL or is no UTF-8; rename"):
        list(read_manifest(str(folder)))


def test_cuts_of_lhotse(sounds, tmp_path):
    row = {
        "id": "x-1",
        "start": 1.0,
        "duration": 0.5,
        "supervisions": [],
        "recording": lhotse_recording("c", sounds["c"]),
    }
    (item,) = read_manifest(str(write_lines(tmp_path / "cuts.jsonl.gz", [row])))
    assert (item.id, item.offset, item.seconds, item.reference) == ("x-1", 1.0, 0.5, None)


def test_urls(sounds):
    (item,) = read_manifest(f"file://{sounds['b']}")
    assert item.audio == str(sounds["b"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "", "is empty"),
        (
            "x.jsonl",
            '{\n  "a": 1\n}',
            "line 1 is no JSON: [^:]* at column 2; give one object a line, or an array",
        ),
        ("x.jsonl", "3\n", "line 1 is no JSON object"),
        ("x.json", "[1]\n", "entry 1 is no JSON object"),
        ("x.json", "[\n{},", "the array is no JSON: .*; give one object a line, or an array"),
        ("x.json", "\n[\n\n{},\n x]", "the array is no JSON: [^:]* at line 5, column 2; give"),
        ("x.json", '[{"audio_filepath": "a"}, {}]', "entry 2 has no audio_filepath"),
        ("x.json", "[]", "is empty"),
        ("x.json", '{"audio": "a"}', "line 1 has neither audio_filepath .NeMo. nor a recording"),
        ("x.jsonl", '{"audio_filepath": "a"}\n{"text": 3}\n', "line 2 has no audio_filepath"),
        ("x.jsonl", '{"type": "MixedCut"}\n', r"line 1 \(MixedCut\) names no recording"),
        ("x.jsonl", "[" * 100_000, "the array is no JSON"),
        ("x.jsonl", '{"audio_filepath": "\\ud800"}', r"the id '\\ud800' has a NUL or is no UTF-8"),
        ("x.jsonl", '{"audio_filepath": "a", "id": "\\u0000"}', r"the id '\\x00' has a NUL"),
        ("x.jsonl", '{"sources": ["a"]}', "recording None is no single file or URL"),
        ("x.jsonl", '{"sources": 5}', "names no recording with sources"),
        (
            "x.jsonl",
            '{"sources": [{"type": "file", "source": "a"}], "supervisions": ["b"]}',
            "line 1: supervisions are no list of objects",
        ),
        ("x.tar", "no tar", "cannot be read"),
        ("x.parquet", "no parquet", "cannot be read"),
        ("x.doc", "", "is of no known kind; give --format: nemo"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        list(read_manifest(str(tmp_path / name)))


def test_a_missing_manifest(tmp_path):
    for kind in (None, *KINDS):
        with pytest.raises(UsageError, match="no such file or folder"):
            list(read_manifest(str(tmp_path / "missing.jsonl"), kind))


def test_parquet_without_audio(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="has no column of audio"):
        list(read_manifest(str(tmp_path / "x.parquet")))


def test_every_kind_that_has_a_name_is_read():
    assert set(KINDS) == set(manifests._READERS)
