"""What the soak measures, and a short one."""

import pytest

from whisper_npu.scripts import soak as command
from whisper_npu.scripts.benchmarks.soak import Growth, Sample, Tally, growth

MIB = 1 << 20


def samples(memory, handles=(5, 5, 5, 5), threads=(9, 9, 9, 9)):
    """Ten samples for each quarter's memory, handles and threads."""
    return [
        Sample(float(10 * quarter + i), value * MIB, handles[quarter], threads[quarter])
        for quarter, value in enumerate(memory)
        for i in range(10)
    ]


def test_the_first_quarter_warms_up():
    assert growth(samples((100, 400, 400, 400))) == Growth(0.0, 0, 0)


def test_what_grows_is_seen():
    found = growth(samples((400, 400, 405, 412), (5, 5, 6, 7), (9, 10, 12, 13)))
    assert found == Growth(pytest.approx(0.03), 2, 3)


def test_a_moment_of_more_is_no_growth():
    taken = samples((400, 400, 400, 400))
    taken[-1] = Sample(99.0, 900 * MIB, 50, 50)
    assert growth(taken) == Growth(0.0, 0, 0)


def test_another_text_is_a_fault():
    tally = Tally()
    tally.note("request", "a.wav", "one")
    tally.note("live", "a.wav", "One.")  # live speech may say it in another way
    tally.note("request", "a.wav", "one")
    assert tally.faults == []
    tally.note("request", "a.wav", "two")
    assert tally.faults == ["request: a.wav: 'two' instead of 'one'"]
    assert tally.done == {"request": 3, "live": 1}


@pytest.mark.real_weights
@pytest.mark.slow
def test_a_short_soak(tiny_en_folder, beckett, tmp_path, capfd):
    plot = tmp_path / "soak.png"
    options = ["--hours", "0.007", "--interval", "3", "--plot", str(plot)]
    # Its exit code depends on seconds of warming up.
    command.main([str(beckett), "--model", str(tiny_en_folder), *options])
    out, err = capfd.readouterr()
    assert "error" not in err
    assert "x request" in out
    assert "x live session" in out
    assert "x files together" in out
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    "options",
    [["--hours", "nan"], ["--hours", "0"], ["--interval", "nan"], ["--interval", "-1"]],
)
def test_no_time_is_refused(options, capsys):
    assert command.main(["a.wav", *options]) == 2
    assert "must be above 0" in capsys.readouterr().err


def test_too_few_samples_to_compare_are_refused(capsys):
    assert command.main(["a.wav", "--hours", "0.01", "--interval", "30"]) == 2
    assert "give --hours 0.033 or more" in capsys.readouterr().err


def test_recordings_are_needed(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([])
    assert "FILE" in capsys.readouterr().err
