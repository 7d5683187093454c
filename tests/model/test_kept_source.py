"""Data in memory: read once where they are small, and never other than the source yields them."""

import itertools

import numpy as np
import pytest

from amq_onnx.model.kept_source import KeptSource


class Counted:
    """A source that counts its passes and fills one buffer again and again."""

    def __init__(self, rows=3):
        self.rows = rows
        self.passes = 0

    def __call__(self):
        self.passes += 1
        buffer = np.empty(4, np.float32)  # 16 bytes
        for row in range(self.rows):
            buffer[:] = row
            yield {"x": buffer}


def firsts(passed):
    return [float(batch["x"][0]) for batch in passed]


@pytest.mark.parametrize(("most", "passes"), [(48, 1), (47, 3)])
def test_what_is_small_enough_is_read_once(most, passes):
    source = Counted()
    kept = KeptSource(source, most)
    for _ in range(3):
        assert firsts(kept()) == [0, 1, 2]
    assert source.passes == passes


def test_what_passes_that_stop_early_have_read_is_not_read_again():
    source = Counted()
    kept = KeptSource(source)
    for count in (1, 2, 2, 1):
        assert firsts(itertools.islice(kept(), count)) == [0, 1, 2][:count]
    assert source.passes == 2
    assert firsts(kept()) == [0, 1, 2]
    assert firsts(kept()) == [0, 1, 2]
    assert source.passes == 3


def test_passes_in_turns():
    """Each is handed all of it, however far others have come; also what no longer fits in memory."""
    for most in (48, 20):
        kept = KeptSource(Counted(), most)
        passes = [kept() for _ in range(3)]
        found = [[] for _ in passes]
        for number in (0, 1, 0, 0, 1, 2, 1, 2, 2):
            found[number] += firsts([next(passes[number])])
        assert found == [[0, 1, 2]] * 3
        assert [next(each, None) for each in passes] == [None] * 3


def test_a_pass_that_fails_keeps_what_it_had_read():
    passes = []

    def source():
        passes.append(1)
        yield {"x": np.zeros(1)}
        if len(passes) == 1:
            raise OSError
        yield {"x": np.ones(1)}

    kept = KeptSource(source)
    with pytest.raises(OSError):
        list(kept())
    assert firsts(kept()) == [0, 1]
    assert firsts(kept()) == [0, 1]
    assert len(passes) == 2


@pytest.mark.parametrize("given", [3, {"x": [1.0]}, {"x": np.array([None])}], ids=["no dict", "a list", "objects"])
def test_anything_else_is_handed_on_as_it_is(given):
    passes = []

    def source():
        passes.append(1)
        return [given]

    kept = KeptSource(source)
    assert list(kept()) == [given]
    assert next(iter(kept())) is given
    assert len(passes) == 2
