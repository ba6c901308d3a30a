"""The progress of a corpus, in one line."""

import io

from whisper_npu.scripts.common.corpus_progress import Meter, describe


def progress(**facts):
    from whisper_npu.corpus.run import Progress

    return Progress(**{"rows": 9, "items": 4, "seconds": 7200.0, "actors": 1, **facts})


def test_at_the_beginning():
    line = "9 rows in the manifest; 4 recordings, 2 h 0 min, to transcribe with 1 process"
    assert describe(progress(), None) == line
    assert describe(progress(items=0), None) == "9 rows in the manifest, and nothing to transcribe"


def test_under_way():
    done = progress(done=1, failed=1, seconds_done=1800.0, elapsed=90.0)
    assert describe(done, None) == (
        "30 min 0 s of 2 h 0 min, 1 of 4 recordings, 20 hours per hour, 4 min 30 s left, 1 failed"
    )
    assert "cost 0.05 of 0.20," in describe(done, 2.0)


def test_at_the_end_nothing_is_left():
    done = progress(done=4, seconds_done=7000.0, elapsed=350.0)
    assert describe(done, 2.0) == (
        "1 h 57 min of 2 h 0 min, 4 of 4 recordings, 20 hours per hour, cost 0.19 of 0.19"
    )


def test_a_line_a_minute():
    now, out = [0.0], io.StringIO()
    meter = Meter(None, out, clock=lambda: now[0])
    for now[0], done in ((0.0, 0), (10.0, 1), (59.0, 2), (61.0, 3), (62.0, 4)):
        meter.show(progress(done=done, seconds_done=60.0 * done, elapsed=1.0))
    counts = [line.split(" of 4 ")[0].split()[-1] for line in out.getvalue().splitlines()[1:]]
    assert counts == ["3", "4"]


def test_a_terminal_is_redrawn():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    meter = Meter(None, out)
    meter.show(progress(done=1, seconds_done=60.0, elapsed=1.0))
    meter.show(progress(done=4, seconds_done=60.0, elapsed=1.0))
    first, second = out.getvalue().split("\r\x1b[K")[1:]
    assert "1 of 4" in first
    assert not first.endswith("\n")
    assert second.endswith("\n")
