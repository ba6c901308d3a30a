import json
from types import SimpleNamespace

import numpy as np
import pytest

from whisper_npu.scripts import benchmark_kv_cache, main
from whisper_npu.scripts.benchmarks.kv_cache_figures import (
    Cell,
    Cost,
    Decode,
    Kind,
    find_difference,
)
from whisper_npu.scripts.benchmarks.kv_cache_report import cell_table, slower_lengths, verdict

KINDS = ("off", "concat", "static", "stateful")
PROMPT = 4  # <|sot|>, language, task and <|notimestamps|> of a multilingual model
N_AUDIO_CTX = 1500
LAYERS, HEADS, HEAD_DIM, N_TEXT_CTX = 2, 2, 32, 448  # of the tiny Whisper


def run(*arguments: object) -> int:
    return benchmark_kv_cache.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def measured(tiny_folder, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("kv")
    code = run(
        *("--model", tiny_folder, "--new-tokens", "5,50", "--repeats", "1"),
        *("--json", folder / "out.json", "--markdown", folder / "out.md", "--plots", folder),
    )
    found = json.loads((folder / "out.json").read_text())
    return SimpleNamespace(code=code, folder=folder, found=found)


def test_all_kinds_decode_the_same_tokens(measured) -> None:
    assert measured.code == 0
    assert measured.found["passed"] is True
    assert measured.found["verdict"].startswith(
        "PASS: tokens equal in off, concat, static, stateful; stateful against no cache "
    )
    kinds = measured.found["kinds"]
    assert {kind: figures["precision"] for kind, figures in kinds.items()} == dict.fromkeys(
        KINDS, "f32"
    )
    for n_tokens in ("5", "50"):
        tokens = [kinds[kind]["lengths"][n_tokens]["tokens"] for kind in KINDS]
        assert len(tokens[0]) == int(n_tokens)
        assert tokens.count(tokens[0]) == len(KINDS)
    assert len(set(kinds["off"]["lengths"]["50"]["tokens"])) > 5


@pytest.mark.parametrize("n", [5, 50])
def test_positions_are_counted(measured, n) -> None:
    """Without a cache each step computes the whole context anew; with one, only what is new."""
    for kind in KINDS:
        counted = measured.found["kinds"][kind]["lengths"][str(n)]["counted"]
        computed = (counted["self_positions"], counted["cross_positions"])
        if kind == "off":
            assert computed == (sum(range(PROMPT, PROMPT + n)), n * N_AUDIO_CTX)
        else:
            assert computed == (PROMPT + n - 1, N_AUDIO_CTX)


def test_bytes_of_the_cache_are_counted(measured) -> None:
    per_token = 2 * LAYERS * HEADS * HEAD_DIM * 4
    for kind, positions in (("concat", 53), ("static", N_TEXT_CTX), ("stateful", 53), ("off", 0)):
        counted = measured.found["kinds"][kind]["lengths"]["50"]["counted"]
        assert counted["self_bytes"] == positions * per_token
        assert counted["cross_bytes"] == (0 if kind == "off" else N_AUDIO_CTX * per_token)
        growth = per_token if kind in {"concat", "stateful"} else 0
        assert counted["bytes_per_token"] == pytest.approx(growth, abs=1e-6)


def test_figures_fit_together(measured) -> None:
    for kind in KINDS:
        figures = measured.found["kinds"][kind]
        for n, cell in figures["lengths"].items():
            assert cell["success_rate"] == 1
            median = cell["decode_seconds"]["median"]
            assert cell["tokens_per_second"] == pytest.approx(int(n) / median)
            assert cell["seconds_per_token"] == pytest.approx(median / int(n))
            assert len(cell["step_seconds"]) == int(n) - 1
        assert figures["lengths"]["5"]["decode_seconds"]["runs"] == 3
        assert figures["lengths"]["50"]["decode_seconds"]["runs"] == 1
        assert figures["variance_seconds_squared"] >= 0
    assert measured.found["kinds"]["off"]["lengths"]["5"]["speed_against_off"] is None


def test_results_are_written(measured) -> None:
    assert "| 50 | stateful |" in (measured.folder / "out.md").read_text()
    for name in ("kv_cache_time.png", "kv_cache_throughput.png"):
        assert (measured.folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_recording_and_some_kinds(tiny_folder, tiny_audio, capsys) -> None:
    arguments = ["--model", tiny_folder, "--kinds", "stateful,off", "--new-tokens", "6"]
    assert run(tiny_audio[2], *arguments, "--repeats", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "synthetic-30s.wav" in lines[0]
    assert lines[-1].startswith("PASS: tokens equal in stateful, off; stateful against no cache")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--new-tokens", "445"], "--new-tokens: 445 do not fit; the decoder's context holds 444"),
        (["--new-tokens", "none"], "--new-tokens takes numbers"),
        (["--kinds", "paged"], "--kinds takes some of off, concat, static, stateful"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--plots", "no/such/folder"], "no such folder"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, complaint, capsys, tiny_folder) -> None:
    assert run("--model", tiny_folder, *arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert complaint in error[-1]


def test_it_is_a_command(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["benchmark-kv-cache", "--help"])
    out = capsys.readouterr().out
    assert "--new-tokens" in out
    assert "--kv-cache" not in out  # all are measured: it would be accepted and ignored


def decoded(tokens, seconds, steps) -> Decode:
    marks = tuple(float(mark) for mark in np.cumsum([0.0, *steps]))
    return Decode(tuple(tokens), seconds, marks)


def kind(name, seconds, tokens=(1, 2, 3, 4, 5), attempts=1) -> Kind:
    cell = Cell(5, [decoded(tokens, seconds, [seconds / 5] * 4)], attempts)
    cell.cost = Cost(8, 1500, 0, 0, 0.0, None)
    return Kind(name, "f32", cells={5: cell})


def test_other_tokens_are_a_failure() -> None:
    kinds = [kind("off", 1.0), kind("static", 0.5), kind("stateful", 0.5, (1, 2, 9, 4, 5))]
    difference = find_difference(kinds)
    assert (difference.kind, difference.n_tokens, difference.position) == ("stateful", 5, 2)
    passed, line = verdict(kinds, "stateful")
    assert not passed
    assert line.startswith("FAIL: stateful decodes another token at position 2 of 5")


def test_the_runs_of_one_kind_must_agree_too() -> None:
    one = kind("static", 1.0)
    one.cells[5].decodes.append(decoded((7, 2, 3, 4, 5), 1.0, [0.2] * 4))
    assert find_difference([one]).position == 0


def test_a_kind_that_fails_is_a_failure() -> None:
    refused = Kind("stateful", error="the device refuses it")
    passed, line = verdict([kind("off", 1.0), refused], "stateful")
    assert (passed, line) == (False, "FAIL: stateful: the device refuses it")
    passed, line = verdict([kind("off", 1.0, attempts=2)], "off")
    assert (passed, line) == (False, "FAIL: off: not every decode gave its tokens")


def test_the_verdict_says_whether_auto_is_the_fastest() -> None:
    kinds = [kind("off", 1.0), kind("static", 0.25), kind("stateful", 0.5)]
    assert slower_lengths(kinds, "stateful") == {5: "static"}
    line = verdict(kinds, "stateful")[1]
    assert "stateful against no cache 2.0x at 5 tokens, never slower" in line
    assert line.endswith("auto (stateful) is not fastest at 5 (static is)")
    assert verdict(kinds, "static")[1].endswith("auto (static) is fastest at every length")
    assert "slower at 5" in verdict([kind("off", 1.0), kind("static", 2.0)], "static")[1]
    assert "2.00" in cell_table(kinds)


def test_growth_of_the_time_per_token() -> None:
    steps = [0.010 + 0.001 * i for i in range(100)]
    cell = Cell(101, [decoded(range(101), sum(steps), steps)], 1)
    grown = Kind("concat", cells={101: cell})
    slope, variance = grown.growth
    assert slope == pytest.approx(0.001)
    assert variance == pytest.approx(0, abs=1e-12)
    # Steps 24 to 39 take 41.5 ms in the middle, the last sixteen 101.5 ms.
    assert grown.late_to_early == pytest.approx(101.5 / 41.5)
    assert cell.peak_tokens_per_second == pytest.approx(1 / np.mean(steps[:8]))
