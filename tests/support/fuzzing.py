"""How much the tests in `tests/fuzz` try: little in CI, more by `make fuzz FUZZ_EXAMPLES=2500`.

CI tries the same examples each time; more of them are random.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_WANTED = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def examples(in_ci: int) -> settings:
    """The settings of a test that tries `in_ci` examples in CI."""
    return settings(
        max_examples=_WANTED or in_ci,
        deadline=None,
        derandomize=not _WANTED,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def json_values(*, max_leaves: int = 8) -> st.SearchStrategy[Any]:
    """Any JSON, also what Python's reader takes beyond the standard: infinities and NaN."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(-3, 3)
        | st.sampled_from([2**31, 2**63, 10**30, -1, 51864, 51865])
        | st.floats()
        | st.text(max_size=20)
        | st.sampled_from(["", "../..", "/etc/passwd", "model.onnx", "\x00", "\x1b[2J", "nan"])
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.text(max_size=8) | st.integers(0, 60000).map(str), inner, max_size=4
            )
        ),
        max_leaves=max_leaves,
    )


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some bytes changed, put in, taken out or doubled, or its end cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        length = draw(st.integers(0, 64))
        kind = draw(st.sampled_from(["set", "insert", "remove", "double", "cut"]))
        if kind == "set":
            found[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "insert":
            found[place:place] = draw(st.binary(max_size=64))
        elif kind == "remove":
            del found[place : place + length]
        elif kind == "double":
            found[place:place] = found[place : place + length]
        else:
            del found[place:]
    return bytes(found)
