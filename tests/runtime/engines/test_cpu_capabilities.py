"""What devices compute in: never in another precision than the one that was asked for."""

import platform
from pathlib import Path

import openvino as ov
import pytest
from model_surgery import copy_folder

from whisper_npu import load_model
from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.npu.placement import Placement, choose
from whisper_npu.runtime.engines import cpu_capabilities
from whisper_npu.runtime.engines.cpu_capabilities import (
    computes_in,
    is_faster_whole,
    multiplies_bytes,
    processor,
    processor_flags,
    require_precision,
)
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend

CAPABILITIES = {"CPU": ["FP32", "INT8", "BIN"], "GPU.0": ["FP32", "BIN", "FP16", "INT8"]}


class FakeCore:
    """OpenVINO on a machine with a processor without half precision, and with a GPU."""

    def get_property(self, device, name):
        assert name == "OPTIMIZATION_CAPABILITIES"
        return CAPABILITIES[device]


@pytest.fixture
def forgets():
    processor_flags.cache_clear()
    yield
    processor_flags.cache_clear()


class TestPrecisions:
    @pytest.mark.parametrize(
        ("device", "precision", "fits"),
        [
            ("CPU", "f32", True),
            ("CPU", "bf16", False),
            ("CPU", "f16", False),
            ("CPU", "int8", True),
            ("GPU.0", "f16", True),
            ("GPU.0", "bf16", False),
        ],
    )
    def test_a_device_says_what_it_computes_in(self, device, precision, fits):
        assert computes_in(FakeCore(), device, precision) is fits

    def test_what_would_be_replaced_is_refused(self):
        with pytest.raises(UsageError, match=r"^this processor does not compute in bf16; give"):
            require_precision(FakeCore(), "CPU", "bf16")
        with pytest.raises(UsageError, match=r"^GPU.0 does not compute in bf16; give"):
            require_precision(FakeCore(), "GPU.0", "bf16")

    @pytest.mark.parametrize(
        "options", [{}, {"backend": "onnxruntime"}, {"device": "NPU_EMULATED"}], ids=str
    )
    @pytest.mark.parametrize("precision", ["bf16", "f16"])
    def test_whatever_runs_it(self, tiny_folder, monkeypatch, options, precision):
        monkeypatch.setattr(cpu_capabilities, "_CAPABILITIES", {"bf16": "NONE", "f16": "NONE"})
        with pytest.raises(UsageError, match=f"does not compute in {precision}"):
            load_model(tiny_folder, precision=precision, **options)

    @pytest.mark.slow
    def test_what_runs_is_what_was_asked_for(self, tiny_folder):
        """OpenVINO's own word for it, for whatever this machine does compute in."""
        for precision in ("f32", "bf16", "f16"):
            if computes_in(ov.Core(), "CPU", precision):
                backend = load_model(tiny_folder, precision=precision).backend
                for pool in backend._pools.values():
                    hint = pool.compiled.get_property("INFERENCE_PRECISION_HINT")
                    assert hint.get_type_name() == precision

    def test_auto_device_passes_over_one_without_the_precision(self, tmp_path):
        def load(placement):
            if placement.encoder == "GPU":
                require_precision(FakeCore(), "GPU.0", "bf16")
            raise DeviceError("broken")

        options = [Placement("GPU", "GPU"), Placement("CPU", "CPU")]
        with pytest.raises(DeviceError, match=r"GPU: .*not compute in bf16.*; CPU: broken"):
            choose(options, load, [], tmp_path / "memory.json")


@pytest.mark.usefixtures("forgets")
class TestEightBits:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("flags", "want"),
        [
            ((), False),
            (("avx2", "fma"), False),
            (("avx2", "avx_vnni"), True),
            (("avx512f", "avx512_vnni", "avx512_bf16"), True),
        ],
    )
    def test_they_are_chosen_where_the_processor_multiplies_them(
        self, tiny_folder, monkeypatch, flags, want
    ):
        """An OpenVINO that says nothing of bf16 says nothing of them either: Core Ultra."""
        monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: flags)
        monkeypatch.setattr(cpu_capabilities, "_CAPABILITIES", {"bf16": "NONE"})
        backend = OpenVINOBackend(load_model(tiny_folder).folder, precision="auto")
        assert backend.precision == ("int8+f32" if want else "f32")

    def test_linux_is_read(self, monkeypatch, tmp_path):
        file = tmp_path / "cpuinfo"
        file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n", encoding="utf-8")
        monkeypatch.setattr(cpu_capabilities, "_CPUINFO", file)
        assert processor_flags() == ("fpu", "avx2", "avx_vnni")
        assert multiplies_bytes()

    def test_a_system_that_does_not_say_has_none(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cpu_capabilities, "_CPUINFO", tmp_path / "none")
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        assert not multiplies_bytes()

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="asks an x86 processor")
    def test_without_proc_the_processor_itself_is_asked(self, monkeypatch):
        """As on Windows, by its instruction for it; Linux says the same of what matters here."""
        said = set(processor_flags())
        processor_flags.cache_clear()
        monkeypatch.setattr(cpu_capabilities, "_CPUINFO", Path("none"))
        monkeypatch.setattr(platform, "system", lambda: "Windows")
        monkeypatch.setattr(platform, "machine", lambda: "AMD64")
        asked = set(processor_flags())
        names = {"sse2", "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16"}
        assert "sse2" in asked
        assert asked & names == said & names

    @pytest.mark.parametrize(
        ("flags", "limit", "precision", "want"),
        [
            (("avx512_vnni", "amx_bf16"), None, "bf16", True),
            (("avx512_vnni", "amx_bf16"), None, "f32", False),
            (("avx512_vnni",), None, "bf16", False),
            (("avx512_vnni", "amx_bf16"), "AVX2_VNNI", "bf16", False),
            (("avx512_vnni", "amx_bf16"), "AVX512_CORE_AMX", "bf16", True),
        ],
    )
    def test_tiles(self, monkeypatch, flags, limit, precision, want):
        """What waits for arithmetic is left as it is where they are multiplied."""
        monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: flags)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if limit is not None:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert is_faster_whole(precision) is want

    def test_kernels_depend_on_them(self, monkeypatch):
        before = processor()
        monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: ("avx2", "avx_vnni"))
        assert processor() != before


class TestExactness:
    def test_f32_by_name_is_exact(self, tiny_folder):
        assert load_model(tiny_folder, precision="f32").backend.is_exact

    def test_f32_because_it_is_fastest_is_not(self, tiny_folder, monkeypatch):
        """What is decoded how does not depend on the processor."""
        monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: ("avx2",))
        backend = load_model(tiny_folder).backend
        assert backend.precision == "f32"
        assert not backend.is_exact
        assert not backend.parallel().is_exact

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["concat", "static", "off"])
    def test_caches_to_compare_with_are_exact(self, tiny_folder, kind):
        assert load_model(tiny_folder, kv_cache=kind).backend.is_exact

    def test_rounded_matrices_are_not(self, tiny_folder):
        assert not load_model(tiny_folder, precision="int8").backend.is_exact

    @pytest.mark.slow
    @pytest.mark.parametrize(("decoder", "want"), [("auto", False), ("f32", True)])
    def test_both_parts_have_to_be(self, tiny_folder, tmp_path, decoder, want, monkeypatch):
        monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: ())
        folder = copy_folder(tiny_folder, tmp_path / "tiny")  # static graphs are put into it
        device = "encoder=NPU_EMULATED,decoder=CPU"
        assert load_model(folder, device=device, precision=decoder).backend.is_exact is want
