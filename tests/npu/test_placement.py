"""Which device runs what: an order is obeyed, AUTO measures, remembers, and says why."""

import numpy as np
import pytest

from whisper_npu import loading
from whisper_npu.errors import DeviceError, ModelError
from whisper_npu.loading import _allows
from whisper_npu.npu import placement
from whisper_npu.npu.placement import (
    Placement,
    candidates,
    choose,
    machine,
    probe,
)
from whisper_npu.runtime.model_folder.folder import read_model_folder

CPU, NPU, SPLIT = Placement("CPU", "CPU"), Placement("NPU", "NPU"), Placement("NPU", "CPU")


class Clock:
    """Goes on only when something takes its time."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(placement.time, "perf_counter", clock)
    return clock


class FakeBackend:
    """Takes as long as told, and counts what it is asked to do."""

    n_mels, n_audio_ctx, n_text_ctx, n_vocab = 80, 1500, 448, 100

    def __init__(self, seconds=0.0, fails=False):
        self.seconds = seconds
        self.fails = fails
        self.steps = 0

    def encode(self, features):
        if self.fails:
            raise DeviceError("device lost")
        placement.time.perf_counter.now += self.seconds
        return np.zeros((len(features), 1500, 8), np.float32)

    def start(self, audio, rows_per_window=1):
        return self

    def step(self, tokens):
        self.steps += 1

    def close(self):
        pass


class Loader:
    def __init__(self, seconds, refuse=(), fail=(), error=None):
        self.seconds = seconds
        self.refuse = refuse
        self.fail = fail  # load, but do not run
        self.error = error or DeviceError("no driver")
        self.loaded = []

    def __call__(self, placement):
        self.loaded.append(placement.name)
        if placement.name in self.refuse:
            raise self.error
        return FakeBackend(self.seconds[placement.name], placement.name in self.fail)


SECONDS = {"CPU": 0.05, "NPU": 0.2, "encoder=NPU,decoder=CPU": 0.0}


def test_the_fastest_is_chosen_remembered_and_explained(tmp_path, caplog):
    caplog.set_level("INFO", logger="whisper_npu")
    memory = tmp_path / "folder" / "placements.json"
    load = Loader(SECONDS)
    chosen, backend = choose([NPU, SPLIT, CPU], load, ["driver 1"], memory)
    assert chosen.name == "encoder=NPU,decoder=CPU"
    assert backend.seconds == 0.0
    assert "fastest for a window of speech (NPU 0." in caplog.text
    assert load.loaded == ["NPU", "encoder=NPU,decoder=CPU", "CPU"]

    again = Loader(SECONDS)
    assert choose([NPU, SPLIT, CPU], again, ["driver 1"], memory)[0] == chosen
    assert again.loaded == ["encoder=NPU,decoder=CPU"], "measured once"

    changed = Loader(SECONDS)
    choose([NPU, SPLIT, CPU], changed, ["driver 2"], memory)
    assert len(changed.loaded) == 3, "measured anew on another machine"


def test_a_device_that_refuses_is_out(tmp_path, caplog):
    caplog.set_level("INFO", logger="whisper_npu")
    load = Loader(SECONDS, refuse={"encoder=NPU,decoder=CPU"})
    chosen, _ = choose([NPU, SPLIT, CPU], load, [], tmp_path / "placements.json")
    assert chosen.name == "CPU"
    assert "encoder=NPU,decoder=CPU is out: no driver" in caplog.text
    with pytest.raises(DeviceError, match="no device runs this model: NPU: no driver"):
        choose([NPU, NPU], Loader(SECONDS, refuse={"NPU"}), [], tmp_path / "other.json")


def test_a_device_that_fails_its_probe_is_out(tmp_path, caplog):
    load = Loader(SECONDS, fail={"NPU", "encoder=NPU,decoder=CPU"})
    memory = tmp_path / "placements.json"
    assert choose([NPU, SPLIT, CPU], load, [], memory)[0].name == "CPU"
    assert "NPU is out: device lost" in caplog.text
    with pytest.raises(DeviceError, match="no device runs this model: NPU: device lost; CPU: no"):
        choose([NPU, CPU], Loader(SECONDS, {"CPU"}, {"NPU"}), ["other"], memory)


@pytest.mark.parametrize("kind", ["refuse", "fail"])
def test_a_remembered_device_that_fails_is_measured_anew(tmp_path, caplog, kind):
    memory = tmp_path / "placements.json"
    options = [NPU, SPLIT, CPU]
    assert choose(options, Loader(SECONDS), [], memory)[0].name == SPLIT.name
    broken = Loader(SECONDS, **{kind: {SPLIT.name}})
    assert choose(options, broken, [], memory)[0].name == "CPU"
    assert broken.loaded == [SPLIT.name, "NPU", "CPU"]
    assert f"AUTO: {SPLIT.name}, which was fastest, is out" in caplog.text
    again = Loader(SECONDS)
    assert choose(options, again, [], memory)[0].name == SPLIT.name
    assert len(again.loaded) == 3


def test_where_the_model_is_to_blame_its_error_says_so(tmp_path):
    load = Loader(SECONDS, {"NPU", "CPU"}, error=ModelError("damaged"))
    with pytest.raises(ModelError, match=r"^damaged$"):
        choose([NPU, CPU], load, [], tmp_path / "placements.json")


def test_drivers_are_among_what_a_decision_depends_on():
    class WithDriver(Machine):
        def get_property(self, device, name):
            return {
                "SUPPORTED_PROPERTIES": ["GPU_DRIVER_VERSION", "OTHER"],
                "FULL_DEVICE_NAME": f"a {device}",
                "GPU_DRIVER_VERSION": "25.1",
            }[name]

    facts = machine(WithDriver("GPU"))
    assert "GPU GPU_DRIVER_VERSION 25.1" in facts
    assert "GPU FULL_DEVICE_NAME a GPU" in facts


def test_a_damaged_memory_is_forgotten(tmp_path):
    memory = tmp_path / "placements.json"
    memory.write_text("{broken")
    assert choose([NPU, CPU], Loader(SECONDS), [], memory)[0].name == "CPU"
    assert choose([NPU, CPU], load := Loader(SECONDS), [], memory)[0].name == "CPU"
    assert load.loaded == ["CPU"]


def test_one_device_needs_no_measuring(tmp_path, caplog):
    caplog.set_level("INFO", logger="whisper_npu")
    _, backend = choose([CPU], Loader(SECONDS), [], tmp_path / "placements.json")
    assert backend.steps == 0
    assert "AUTO runs on CPU: the only device" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "onnxruntime"},
        {"kv_cache": "static"},
        {"precision": "f32"},
        {"threads": 2},
        {"weights": "f16"},
    ],
)
def test_each_way_to_run_is_measured_for_itself(tiny_folder, monkeypatch, options):
    found = []

    def note(_options, _load, facts):
        found.append(tuple(facts))
        return CPU, None

    monkeypatch.setattr(loading, "choose", note)
    folder = read_model_folder(tiny_folder)
    for each in ({}, options):
        loading.load_backend(folder, "AUTO", **each)
    assert found[0] != found[1]


def test_the_probe_is_two_windows_of_24_tokens():
    backend = FakeBackend(0.25)
    assert probe(backend) == 0.25
    assert backend.steps == 2 * 24


class Machine:
    """A core that finds these devices."""

    def __init__(self, *available):
        self.available_devices = list(available)

    def get_property(self, device, name):
        if (device, name) != ("NPU", "AVAILABLE_DEVICES"):
            raise RuntimeError(name)
        return ["4000"] if "NPU" in self.available_devices else []


def test_int8_is_for_processors():
    placements = candidates(Machine("CPU", "GPU", "NPU"))
    allowed = [item for item in placements if _allows(item, "auto", "int8")]
    assert allowed == [CPU]
    assert len([item for item in placements if _allows(item, "auto", "auto")]) > 1


def test_candidates_are_what_is_there():
    names = [placement.name for placement in candidates(Machine("CPU", "GPU", "NPU"))]
    assert names == ["NPU", "encoder=NPU,decoder=CPU", "GPU", "CPU"]
    assert candidates(Machine("CPU")) == [CPU]
    assert [item.name for item in candidates(Machine("CPU", "GPU.0", "GPU.1"))] == ["GPU", "CPU"]
