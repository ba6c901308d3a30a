"""`whisper-npu compile` and `whisper-npu cache`: what they make, list and delete, and say."""

import json

import pytest
from model_surgery import copy_folder

from whisper_npu.npu.bundle import bundle_path, read_bundle
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
    assert "tiny step_1 (lossless)" in {entry["label"] for entry in listed["entries"]}
    assert cache.main(["list"]) == 0
    assert "9 graphs, " in capsys.readouterr().out
    assert cache.main(["clear"]) == 0
    assert capsys.readouterr().out.startswith("9 files deleted")
    assert cache.main(["list"]) == 0
    assert capsys.readouterr().out.startswith("0 graphs")


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
