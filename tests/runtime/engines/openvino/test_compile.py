"""Compiled graphs of a processor, kept on disk: the same results, or compiled anew."""

import json
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from decoding_checks import (
    HAS_BF16,
    HAS_VNNI,
    product_precisions,
    products_of_int8,
    stepwise_logits,
)
from model_surgery import copy_folder, edit_manifest, name_weights

from whisper_npu import load_model
from whisper_npu.runtime.engines import compile_cache, memory
from whisper_npu.runtime.engines.compile_cache import CompileCache
from whisper_npu.runtime.engines.memory import forget_mapped
from whisper_npu.runtime.engines.openvino import compile, graphs
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.openvino.int8_weights import GROUP, narrow_tables
from whisper_npu.runtime.model_folder.folder import DECODER_WITH_PAST, MANIFEST, read_model_folder

N_GRAPHS = 3
"""Of a model: encoder, cross-attention's projection, decoder."""


@pytest.fixture
def cache(tmp_path):
    return CompileCache(tmp_path / "compiled", 1 << 30)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return copy_folder(tiny_folder, tmp_path / "tiny")


@pytest.fixture
def reads(monkeypatch):
    """A list that gains an entry whenever the three graphs are read."""
    found = []
    read = graphs.read_trio

    def count(core, folder):
        found.append(folder.name)
        return read(core, folder)

    monkeypatch.setattr(graphs, "read_trio", count)
    return found


def load(folder, cache, **options):
    return OpenVINOBackend(read_model_folder(folder), cache=cache, **options)


def outputs(backend, frames=400):
    """What the encoder and some steps of the decoder give."""
    rng = np.random.default_rng(1)
    audio = backend.encode(rng.standard_normal((2, backend.n_mels, frames)).astype(np.float32))
    tokens = rng.integers(0, backend.n_vocab, (2, 8), dtype=np.int64)
    return audio, stepwise_logits(backend, audio, tokens)


def assert_equal(first, second):
    for one, other in zip(outputs(first), outputs(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "int8", *(["bf16"] if HAS_BF16 else [])])
def test_the_second_start_reads_no_graph_and_computes_the_same(folder, cache, reads, precision):
    first = load(folder, cache, precision=precision)
    assert len(reads) == 1
    parts = ["decoder_model", "decoder_with_past_model", "encoder_model"]
    labels = {str(entry.contents) for entry in cache.entries()}
    assert labels == {f"tiny {part} ({first.precision})" for part in parts}
    second = load(folder, cache, precision=precision)
    assert len(reads) == 1
    assert second.precision == first.precision
    for name in ("n_mels", "n_audio_ctx", "n_text_ctx", "n_vocab", "window_frames", "device"):
        assert getattr(second, name) == getattr(first, name), name
    assert_equal(first, second)
    assert_equal(OpenVINOBackend(read_model_folder(folder), precision=precision), second)


@pytest.mark.skipif(not HAS_VNNI, reason="other processors do not multiply in 8 bits")
def test_real_graphs_stay_in_8_bits(tiny_en_folder, cache, reads):
    """A graph whose weights had become floating point would still work, slower."""
    first = load(tiny_en_folder, cache, precision="int8")
    second = load(tiny_en_folder, cache, precision="int8")
    assert len(reads) == 1
    for name, want in products_of_int8(second.precision.removeprefix("int8+")).items():
        compiled = second._pools[name].compiled
        assert product_precisions(compiled) == want, name
        if "i8" in want:
            assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == GROUP
    assert_equal(first, second)
    assert_equal(load(tiny_en_folder, None, precision="int8"), second)


@pytest.mark.skipif(not HAS_BF16, reason="other processors do not compute in bf16")
def test_a_table_in_bf16_changes_nothing(tiny_en_folder):
    """Looked up rows are rounded to it anyway."""
    core = ov.Core()
    path = tiny_en_folder / DECODER_WITH_PAST
    wide, narrow = core.read_model(path), core.read_model(path)
    narrow_tables(narrow)
    tables = [
        node.input_value(0).get_node()
        for node in narrow.get_ordered_ops()
        if node.get_type_name() == "Gather"
    ]
    sizes = {node.get_byte_size() for node in tables if node.get_element_type() == ov.Type.bf16}
    assert 2 * 51864 * 384 in sizes
    answers = []
    for model in (wide, narrow):
        request = core.compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}
        ).create_infer_request()
        for tensor in request.model_inputs:
            name = graphs.state_name(tensor)
            if name is None:
                request.set_tensor(tensor, ov.Tensor(np.array([[40000]])))
            else:
                request.set_tensor(tensor, ov.Tensor(np.zeros((1, 6, 4, 64), np.float32)))
        request.infer()
        answers.append(request.get_tensor("logits").data.copy())
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_matrices_are_stored_as_they_are_read(folder, monkeypatch, precision):
    """By their outputs; the plugin makes copies of others whenever a compiled graph is loaded."""
    seen = []
    compile_one = compile.GraphCompiler.compile_one

    def look(self, model, file, **options):
        for node in model.get_ordered_ops():
            if node.get_type_name() != "MatMul":
                continue
            sources = [node.input_value(1).get_node()]
            while sources[-1].get_type_name() in {"Multiply", "Convert", "Transpose"}:
                sources.append(sources[-1].input_value(0).get_node())
            if sources[-1].get_type_name() == "Constant":
                turns = sum(each.get_type_name() == "Transpose" for each in sources)
                seen.append(bool(node.get_attributes()["transpose_b"]) != bool(turns % 2))
        return compile_one(self, model, file, **options)

    monkeypatch.setattr(compile.GraphCompiler, "compile_one", look)
    load(folder, None, precision=precision)
    assert len(seen) > 20
    assert all(seen)


@pytest.mark.slow
def test_streams_are_kept_too(folder, cache, reads):
    load(folder, cache, threads=2).parallel()
    assert len(cache.entries()) == 2 * N_GRAPHS
    load(folder, cache, threads=2).parallel()
    assert len(reads) == 2


def test_a_large_model_has_one_copy_of_its_weights(folder, cache, reads, monkeypatch):
    """One stream, and weights that are mapped from the stored graphs, from the first load on."""
    monkeypatch.setattr(graphs, "_LARGE", 1)
    mapped = []
    load_stored = CompileCache.load

    def count(self, core, key, options):
        compiled = load_stored(self, core, key, options)
        mapped.append(compiled)
        return compiled

    monkeypatch.setattr(CompileCache, "load", count)
    first = load(folder, cache, precision="f32", threads=2)
    assert first.n_streams == 1
    assert first.parallel() is first
    used = [pool.compiled for pool in first._pools.values()]
    assert all(any(graph is each for each in mapped) for graph in used)
    again = load(folder, cache, precision="f32", threads=2)
    assert len(reads) == 1
    for got, before in zip(outputs(again), outputs(first), strict=True):
        np.testing.assert_array_equal(got, before)


@pytest.mark.skipif(not HAS_VNNI, reason="other processors do not multiply in 8 bits")
@pytest.mark.parametrize(("smallest", "rounded"), [(10**6, False), (1, True)])
def test_square_matrices_of_a_large_encoder_are_in_8_bits(folder, monkeypatch, smallest, rounded):
    """8 bits make them slower to load and less exact, and faster only if they are large."""
    monkeypatch.setattr(graphs, "_LARGE", smallest)
    monkeypatch.setattr("whisper_npu.runtime.engines.openvino.compile_config.is_faster_whole", no)
    backend = load(folder, None, precision="int8")
    found = product_precisions(backend._pools["encoder"].compiled)
    n_layers = json.loads((folder / "config.json").read_text())["encoder_layers"]
    of_mlp, of_attention = 2 * n_layers, 4 * n_layers
    assert found["i8"] == of_mlp + rounded * of_attention


def no(_):
    return False


def test_the_first_load_says_what_takes_time(folder, cache):
    lines = []
    load(folder, cache, progress=lines.append)
    assert [line.split()[1] for line in lines] == [
        "decoder_with_past_model.onnx",
        "encoder_model.onnx",
        "decoder_model.onnx",
    ]
    load(folder, cache, progress=lines.append)
    assert len(lines) == N_GRAPHS


@pytest.mark.slow
def test_the_whole_program_uses_it(folder, tiny_audio, reads, monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path))
    monkeypatch.delenv("WHISPER_NPU_CACHE_LIMIT", raising=False)
    texts = [
        load_model(folder, precision="f32").transcribe(tiny_audio[1]).result().text
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len(reads) == 1
    assert len(list((tmp_path / "compiled").glob("*.blob"))) == N_GRAPHS


def change_weights(folder, monkeypatch):
    """In place, as large as before, and with the times from before."""
    (path,) = folder.glob("*.onnx_data")
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    edit_manifest(folder)


def change_a_graph(folder, monkeypatch):
    path = folder / DECODER_WITH_PAST
    model = onnx.load(path, load_external_data=False)
    model.doc_string = "changed"
    onnx.save(model, path)
    edit_manifest(folder)


def change_the_recipe(folder, monkeypatch):
    monkeypatch.setattr(compile, "RECIPE_REVISION", compile.RECIPE_REVISION + 1)


def move_to_another_processor(folder, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


def state_no_contract(folder, monkeypatch):
    edit_manifest(folder, kv_contract=None)


def update_openvino(folder, monkeypatch):
    monkeypatch.setattr("openvino.get_version", lambda: "3000.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_a_graph,
        change_the_recipe,
        move_to_another_processor,
        state_no_contract,
        update_openvino,
    ],
)
def test_what_a_graph_depends_on_makes_it_another(folder, cache, reads, monkeypatch, change):
    load(folder, cache)
    change(folder, monkeypatch)
    load(folder, cache)
    assert len(reads) == 2
    assert len(cache.entries()) == 2 * N_GRAPHS


def copied(folder):
    """Another folder, other times."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    return copy


def written_again(folder):
    for path in folder.iterdir():
        os.utime(path, ns=(1, 1))
    return folder


def with_other_files(folder):
    (folder / "selftest_reference.json").write_text("{}")
    (folder / "notes.bin").write_bytes(b"no weights")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("change", [copied, written_again, with_other_files])
def test_what_a_graph_does_not_depend_on_changes_nothing(folder, cache, reads, change):
    load(folder, cache)
    load(change(folder), cache)
    assert len(reads) == 1
    assert len(cache.entries()) == N_GRAPHS


def test_files_that_are_replaced_meanwhile_are_not_answered_for(folder, cache, monkeypatch):
    (folder / MANIFEST).unlink()
    (path,) = folder.glob("*.onnx_data")
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    read = graphs.read_trio

    def read_and_replace(core, model):
        found = read(core, model)
        other.replace(path)
        return found

    monkeypatch.setattr(graphs, "read_trio", read_and_replace)
    load(folder, cache)
    assert cache.entries() == []


@pytest.mark.slow
def test_two_models_with_the_same_names_sizes_and_times(folder, cache):
    """As image layers and reproducible archives unpack them: each is answered for by itself."""
    name_weights(folder, "tensors")
    other = copied(folder)
    path = other / "tensors"
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    path.write_bytes(content)
    for file in (*folder.iterdir(), *other.iterdir()):
        os.utime(file, ns=(1, 1))
    wrong, right = load(other, cache), load(folder, cache)
    want = outputs(OpenVINOBackend(read_model_folder(folder)))
    for got, before in zip(outputs(right), want, strict=True):
        np.testing.assert_array_equal(got, before)
    assert not np.array_equal(outputs(wrong)[1], want[1])


@pytest.mark.slow
def test_options_make_it_another(folder, cache, reads):
    precise = {"precision": "f32"}
    for n, options in enumerate((precise, {"precision": "int8"}, {**precise, "threads": 1}), 1):
        load(folder, cache, **options)
        assert len(reads) == n


def damage(entry):
    content = bytearray(entry.path.read_bytes())
    content[-100] ^= 255
    entry.path.write_bytes(content)


def truncate(entry):
    entry.path.write_bytes(entry.path.read_bytes()[:-100])


def remove(entry):
    entry.path.unlink()


def edit_header(entry, edit):
    content = entry.path.read_bytes()
    header = json.loads(content.partition(b"\n")[0])
    begin = len(content) - header["bytes"]
    edit(header)
    entry.path.write_bytes(json.dumps(header).encode().ljust(begin - 1) + b"\n" + content[begin:])


def forget_facts(entry):
    edit_header(entry, lambda header: header.update(facts={"dimensions": {}}))


def spoil_facts(entry):
    edit_header(entry, lambda header: header["facts"]["dimensions"].update(n_audio_ctx=1400))


def spoil_header(entry):
    edit_header(entry, lambda header: header.update(bytes="many"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm", [damage, truncate, remove, forget_facts, spoil_facts, spoil_header]
)
@pytest.mark.parametrize("graph", ["encoder_model", "decoder_with_past_model", "decoder_model"])
def test_what_cannot_be_used_is_compiled_anew(folder, cache, reads, harm, graph):
    first = load(folder, cache)
    (entry,) = (each for each in cache.entries() if each.contents.graph == graph)
    harm(entry)
    second = load(folder, cache)
    assert len(reads) == 2
    assert second.window_frames[-1] == 3000
    assert_equal(first, second)
    load(folder, cache)
    assert len(cache.entries()) == N_GRAPHS


def test_graphs_run_on_when_their_files_are_gone(folder, cache):
    load(folder, cache)
    backend = load(folder, cache)
    want = outputs(backend)
    assert cache.clear() == N_GRAPHS
    forget_mapped()
    for got, before in zip(outputs(backend), want, strict=True):
        np.testing.assert_array_equal(got, before)


@pytest.mark.parametrize("options", [{"kv_cache": "concat"}, {"kv_cache": "off"}])
def test_other_ways_are_compiled_each_time(folder, cache, options):
    load(folder, cache, **options)
    assert cache.entries() == []


class TestNotKept:
    """Nothing is written, and the log says why."""

    def check(self, folder, cache, caplog, reason):
        with caplog.at_level("INFO", "whisper_npu"):
            load(folder, cache, precision="int8")
        assert reason in caplog.text
        assert not cache.folder.is_dir() or cache.entries() == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("limit", "said"), [(-1, ""), (0, ""), (100_000, "compiled graphs may not fit into 0 MB")]
    )
    def test_without_room(self, folder, tmp_path, caplog, limit, said):
        cache = CompileCache(tmp_path / "full", limit)
        self.check(folder, cache, caplog, said)
        assert ("graphs" in caplog.text) == bool(said), "who wants no cache need not be told"
        assert not cache.folder.exists()

    def test_without_memory(self, folder, cache, caplog, monkeypatch):
        monkeypatch.setattr(compile, "available_bytes", lambda: 1000)
        self.check(folder, cache, caplog, "tiny: too little memory to keep")

    def test_where_nothing_can_be_written(self, folder, tmp_path, caplog):
        (tmp_path / "file").touch()
        cache = CompileCache(tmp_path / "file" / "compiled", 1 << 30)
        self.check(folder, cache, caplog, f"{cache.folder} cannot be written to")


@pytest.mark.slow
def test_what_cannot_be_read_now_is_not_deleted(folder, cache, monkeypatch):
    load(folder, cache)

    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(compile_cache, "map_file", refuse)
        patched.setattr(compile, "available_bytes", lambda: 0)  # and nothing is kept anew
        load(folder, cache)
    assert len(cache.entries()) == N_GRAPHS


class _Kept(dict):
    """Files that are mapped, none of which is told of."""

    def values(self):
        return ()


_NEVER_FORGOTTEN = _Kept()  # graphs may go on reading them


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is held")
@pytest.mark.parametrize("options", [{"precision": "f32"}, {"precision": "int8", "streams": 2}])
def test_nobody_writes_to_what_is_mapped(tiny_en_folder, cache, monkeypatch, options):
    """It would be lost, page by page, when memory is given back; so nothing is, meanwhile."""
    monkeypatch.setattr(memory, "_mapped", _NEVER_FORGOTTEN)
    load(tiny_en_folder, cache, **options)
    outputs(load(tiny_en_folder, cache, **options))
    n_mapped, ours, written = 0, False, 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            ours = str(cache.folder) in line
            n_mapped += ours
        elif ours and first == "Anonymous:":  # dirty are those the disk has not got yet, too
            written += int(rest[0])
    assert n_mapped >= 3
    assert written == 0


@pytest.mark.slow
def test_pages_may_go_while_a_graph_runs(folder, cache):
    load(folder, cache)
    backend = load(folder, cache)
    want = outputs(backend)
    running = threading.Event()

    def forget():
        while not running.is_set():
            forget_mapped()

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        for _ in range(5):
            for got, before in zip(outputs(backend), want, strict=True):
                np.testing.assert_array_equal(got, before)
    finally:
        running.set()
        thread.join()


@pytest.mark.slow
def test_two_at_once(folder, cache, reads):
    """Both may compile, and both keep; what is there afterwards is whole."""
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda _: load(folder, cache), range(2)))
    assert_equal(*both)
    n_reads = len(reads)
    load(folder, cache)
    assert len(reads) == n_reads
    assert len(cache.entries()) == N_GRAPHS
