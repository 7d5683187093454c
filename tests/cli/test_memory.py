"""What a command asks of the C library."""

import ctypes

from amq_onnx.cli import memory


def test_torch_is_asked_for_large_pages_unless_the_user_said_otherwise(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    memory.keep_freed_memory()
    assert memory.os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    memory.keep_freed_memory()
    assert memory.os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_other_c_libraries_are_left_alone(monkeypatch):
    for error in (AttributeError, OSError, TypeError):

        def missing(*_, error=error):
            raise error

        monkeypatch.setattr(ctypes, "CDLL", missing)
        memory.keep_freed_memory()
