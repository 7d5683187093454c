import pytest

from amq_onnx.errors import UsageError
from amq_onnx.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.2", 200_000),
        (".25", 250_000),
        ("1.0", 1_000_000),
        (1.0, 1_000_000),
        (0.5, 500_000),
        (0.125, 125_000),
        ("20%", 200_000),
        ("12.5 %", 125_000),
        ("100%", 1_000_000),
        ("4MB", 4_000_000),
        ("4 mb", 4_000_000),
        ("0.5MB", 500_000),
        ("300KB", 300_000),
        ("1GB", 1_000_000_000),
        ("123456B", 123_456),
        (" 7b ", 7),
    ],
)
def test_sizes(text, wanted):
    assert parse_size(text).bytes(1_000_000) == wanted


def test_decimals_are_the_bytes_that_were_written():
    """4.1 MB are 4,100,000 bytes, though 4.1 * 1e6 is not in floating point."""
    for tenths in range(1, 2000):
        assert parse_size(f"{tenths / 10}KB").bytes(1) == tenths * 100
        assert parse_size(f"{tenths / 1000:.3f}MB").bytes(1) == tenths * 1000
    for share in range(1, 101):
        assert parse_size(f"{share}%").bytes(100) == share
        assert parse_size(f"{share / 100:.2f}").bytes(100) == share


def test_large_sizes_are_exact():
    assert parse_size("9007199254740993B").bytes(1) == 9007199254740993


def test_small_floats_are_fractions():
    assert parse_size(1e-5).bytes(1_000_000) == 10


@pytest.mark.parametrize("text", ["4", "0", "200000", 4, 1])
def test_a_bare_whole_number_could_be_either(text):
    with pytest.raises(UsageError, match=f"'{text}' could be bytes or a fraction: write {text}B"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1.5", "0.0", "101%", "0%", 2.0, 0.0])
def test_fractions_outside_0_to_1(text):
    with pytest.raises(UsageError, match="a fraction is between 0 and 1"):
        parse_size(text)


@pytest.mark.parametrize(
    "text",
    ["", "MB", "-1", "-0.5", "abc", "4TB", "4MiB", "1e3B", "nan", "inf", "4MB5", "4,5MB", -0.5, float("nan"), "٣MB"],
)
def test_no_sizes(text):
    with pytest.raises(UsageError, match=r"--size '.*' is not a size"):
        parse_size(text)
