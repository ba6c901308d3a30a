"""`whisper-npu compile` and `whisper-npu cache`: what they make, list and delete, and say."""

import io
import json
import os
import re
import sys
import time

import numpy as np
import pytest
from model_surgery import copy_folder

from whisper_npu.npu import devices
from whisper_npu.npu.bundle import bundle_path, read_bundle
from whisper_npu.runtime.engines.compile_cache import CompileCache, Contents
from whisper_npu.runtime.engines.compile_key import cache_key
from whisper_npu.scripts import cache, compile_model


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    return copy_folder(tiny_folder, tmp_path_factory.mktemp("compile") / "tiny")


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path))
    monkeypatch.delenv("WHISPER_NPU_CACHE_LIMIT", raising=False)
    return tmp_path / "compiled"


def test_graphs_alone(folder, cache_folder, capsys):
    assert compile_model.main([str(folder), "--device", "none", "--weights", "f16"]) == 0
    bundle = read_bundle(bundle_path(folder, "f16"))
    said = capsys.readouterr().err
    assert f"{len(bundle.graphs)} static graphs" in said
    assert "prompts up to 228 tokens at once, windows of 30 s, weights f16" in said
    assert not cache_folder.exists()


@pytest.mark.slow
def test_compiled_once_listed_and_cleared(folder, capsys):
    assert compile_model.main([str(folder), "--device", "CPU"]) == 0
    first = capsys.readouterr().err
    assert "compiling step_4 for CPU" in first
    assert "9 graphs are compiled for CPU" in first
    assert compile_model.main([str(folder), "--device", "CPU"]) == 0
    assert "compiling" not in capsys.readouterr().err

    assert cache.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed["entries"]) == 9
    contents = {"model": str(folder), "graph": "step_1", "precision": "f32, weights lossless"}
    assert contents in [entry["contents"] for entry in listed["entries"]]
    assert cache.main(["list"]) == 0
    assert "9 graphs, " in capsys.readouterr().out
    assert cache.main(["clear"]) == 0
    assert capsys.readouterr().out.startswith("9 files deleted")
    assert cache.main(["list"]) == 0
    assert capsys.readouterr().out.startswith("0 graphs")


def keep(cache_folder, model, graph, age=0.0, **options):
    """A file of the cache, whose graph nobody will load."""
    import openvino as ov
    from openvino import opset13 as ops

    core = ov.Core()
    value = ops.parameter([1], np.float32)
    compiled = core.compile_model(ov.Model([ops.relu(value)], [value], "m"), "CPU")
    key = cache_key(core, f"{model} {graph}", "CPU", options)
    kept = CompileCache(cache_folder, 1 << 30)
    kept.store(key, compiled, Contents(str(model), graph, "int8+bf16"))
    os.utime(kept.path(key), (time.time() - age,) * 2)


def test_entries_are_told_apart(cache_folder, tmp_path, capsys):
    keep(cache_folder, tmp_path / "models" / "one", "encoder_model")
    keep(cache_folder, tmp_path / "models" / "two", "encoder_model", age=3 * 3600)
    keep(cache_folder, "/elsewhere/\x1b[2Jtwo", "encoder_model", age=3 * 86400)
    (cache_folder / "nonsense.blob").write_bytes(b"nonsense")
    os.mkfifo(cache_folder / "fifo.blob")
    (cache_folder / "folder.blob").mkdir()
    assert cache.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    device = ov_device_name()
    graphs = [line for line in lines if line.startswith("  encoder_model ")]
    ages = [line.rpartition(" MB ")[2].strip() for line in graphs]
    assert re.fullmatch(r"\d+ s ago", ages[0])
    assert ages[1:] == ["3 h ago", "3 days ago"]
    assert all(" int8+bf16 " in line and device in line and " MB " in line for line in graphs)
    models = [line.partition("  (")[0] for line in lines if not line.startswith("  ")]
    assert models[:-1] == [
        "damaged, or of another version",
        *(str(tmp_path / "models" / name) for name in ("one", "two")),
        "/elsewhere/\\x1b[2Jtwo",
    ]
    assert lines[-1].startswith("4 graphs, ")


def test_entries_that_look_alike_say_in_what_they_differ(cache_folder, capsys):
    keep(cache_folder, "/m", "decoder_model")
    keep(cache_folder, "/m", "decoder_model", INFERENCE_NUM_THREADS=1)
    keep(cache_folder, "/m", "decoder_model", NUM_STREAMS=2)
    keep(cache_folder, "/m", "decoder_model", NUM_STREAMS=2, NEW_OPTION="x")
    keep(cache_folder, "/m", "step_4", NUM_STREAMS=2)
    assert cache.main([]) == 0
    _, header, *lines, _ = capsys.readouterr().out.splitlines()
    assert re.split(" +", header.strip())[:5] == [
        *("graph", "shapes", "precision", "device", "settings")
    ]
    place = header.index("settings")
    settings = {re.split("  +", line[place:])[0] for line in lines if "dynamic" in line}
    assert settings == {"default", "threads 1", "streams 2", "streams 2, NEW_OPTION x"}
    (static,) = (line for line in lines if "static" in line)
    assert static.split()[0] == "step_4"
    assert "streams 2" in static


def ov_device_name():
    import openvino as ov

    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME"))


def test_one_model_is_cleared(cache_folder, tmp_path, capsys, monkeypatch):
    def kept():
        return sorted(
            str(entry.contents) for entry in CompileCache(cache_folder, 1 << 30).entries()
        )

    for place in ("here", "there"):
        for name in ("one", "two"):
            keep(cache_folder, tmp_path / place / name, place)
    monkeypatch.chdir(tmp_path)
    assert cache.main(["list", "here/one"]) == 0
    assert "1 graphs, " in capsys.readouterr().out
    assert cache.main(["clear", "here/one"]) == 0
    assert "1 files deleted" in capsys.readouterr().out
    assert kept() == ["one there (int8+bf16)", "two here (int8+bf16)", "two there (int8+bf16)"]
    assert cache.main(["clear", "two"]) == 0, "by name, wherever it lies"
    assert kept() == ["one there (int8+bf16)"]
    assert cache.main(["clear", "three"]) == 2
    assert "holds no graphs of three; see `whisper-npu cache`" in capsys.readouterr().err
    assert len(kept()) == 1


def test_clearing_forgets_what_is_remembered_of_files(cache_folder):
    memory = cache_folder.parent / "content.json"
    memory.write_text("{}")
    assert cache.main(["clear"]) == 0
    assert not memory.exists()


def test_lines_of_threads_do_not_mix(monkeypatch):
    """A line is one write: threads that compile at the same time would mix its parts."""
    written = []

    class Stream(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Stream())
    compile_model._print("compiling step_1 for CPU")
    assert written == ["compiling step_1 for CPU\n"]


def test_without_an_npu_it_says_what_was_made(folder, capsys, monkeypatch):
    monkeypatch.setattr(devices, "npu_devices", lambda _: ())
    assert compile_model.main([str(folder)]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: no NPU is usable here; `whisper-npu doctor` says why")
    assert message.endswith("; --device none makes them alone")


def test_without_a_compiler_it_says_what_is_missing(folder, capsys):
    assert compile_model.main([str(folder), "--platform", "4000"]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: compiling for NPU 4000 needs OpenVINO's NPU compiler")
    assert "intel-driver-compiler-npu" in message


def test_without_an_npu(folder, capsys):
    assert compile_model.main([str(folder)]) == 3
    assert "whisper-npu doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--platform", "4000", "--device", "CPU"], ["--windows", "45"]]
)
def test_options_that_cannot_work(folder, arguments):
    assert compile_model.main([str(folder), *arguments]) == 2
