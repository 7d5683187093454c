"""PP-OCRv4's recogniser and detector on text that is rendered here.

`--data text_lines.py:lines` (and `:test_lines`) for the recogniser, `:pages` (and `:test_pages`) for the detector.
The text is made up, of syllables, numbers and punctuation, in Pillow's own font; lines are slanted, blurred, of low
contrast and noisy, so that the float model makes some mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from packages import package_file
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import find_objects, label

Batch = dict[str, NDArray[Any]]
Image8 = NDArray[np.uint8]
_FOLDER = "rapidocr_onnxruntime/models"
_HEIGHT, _WIDTH, _LONGEST = 48, 320, 40
_PAGE = (384, 384)
_MOST_LINES = 8
_SYLLABLES = ("ba", "cor", "den", "fil", "gra", "hum", "in", "jo", "kel", "lo", "men", "nar", "o", "pre", "qui",
              "ros", "sti", "tem", "un", "ver", "wit", "xa", "yen", "zu")  # fmt: skip


def recognizer() -> str:
    """The recogniser's file."""
    return str(package_file("rapidocr-onnxruntime", f"{_FOLDER}/ch_PP-OCRv4_rec_infer.onnx"))


def detector() -> str:
    """The detector's file."""
    return str(package_file("rapidocr-onnxruntime", f"{_FOLDER}/ch_PP-OCRv4_det_infer.onnx"))


def _text(random: np.random.Generator) -> str:
    words = []
    for _ in range(random.integers(1, 4)):
        if random.random() < 0.25:
            words.append(str(random.integers(10, 100_000)))
            continue
        word = "".join(random.choice(_SYLLABLES) for _ in range(random.integers(1, 4)))
        words.append(word.capitalize() if random.random() < 0.4 else word)
    return " ".join(words) + random.choice(["", ".", ",", "?", ":"])


def _draw(random: np.random.Generator, text: str, size: int) -> Image.Image:
    """Black on white, cropped to the text."""
    font = ImageFont.load_default(size)
    box = font.getbbox(text)
    image = Image.new("L", (int(box[2]) + 8, int(size * 1.5)), 255)
    ImageDraw.Draw(image).text((4, 2), text, fill=0, font=font)
    return image


def _worsen(random: np.random.Generator, image: Image.Image) -> NDArray[np.float32]:
    """A photograph of it: [height, width, 3] of 0 to 255."""
    paper, ink = random.uniform(140, 255, 3), random.uniform(0, 110, 3)
    blurred = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.3)))
    amount = np.asarray(blurred, np.float32)[:, :, None] / 255
    noise = random.normal(0, random.uniform(2, 18), (*amount.shape[:2], 3))
    return np.clip(amount * paper + (1 - amount) * ink + noise, 0, 255).astype(np.float32)


def _line(random: np.random.Generator) -> tuple[NDArray[np.float32], str]:
    """A line 48 pixels high and 320 wide, filled up with zeros (mid-grey) on the right, and its text."""
    while True:
        text = _text(random)
        drawn = _draw(random, text, int(random.integers(22, 34)))
        drawn = drawn.rotate(random.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=255)
        width = round(drawn.width * _HEIGHT / drawn.height)
        if width <= _WIDTH and len(text) <= _LONGEST:
            break
    pixels = _worsen(random, drawn.resize((width, _HEIGHT), Image.Resampling.BILINEAR))
    canvas = np.zeros((3, _HEIGHT, _WIDTH), np.float32)
    canvas[:, :, :width] = pixels[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    return canvas, text


def _characters() -> dict[str, int]:
    """Class of each character; 0 is the blank, the last one the space."""
    found = onnx.load(recognizer(), load_external_data=False).metadata_props
    listed = next(entry.value for entry in found if entry.key == "character").splitlines()
    return {character: number for number, character in enumerate([*listed, " "], 1)}


def _batches_of_lines(seed: int, count: int, labels: bool) -> Iterator[Batch]:
    random = np.random.default_rng(seed)
    classes = _characters() if labels else {}
    for start in range(0, count, 50):
        drawn = [_line(random) for _ in range(min(50, count - start))]
        batch: Batch = {"x": np.stack([line for line, _ in drawn])}
        if labels:
            batch["labels"] = np.full((len(drawn), _LONGEST), -1)
            for row, (_, text) in zip(batch["labels"], drawn, strict=True):
                row[: len(text)] = [classes[character] for character in text]
        yield batch


def lines() -> Iterator[Batch]:
    """200 lines without their text."""
    return _batches_of_lines(1, 200, labels=False)


def test_lines() -> Iterator[Batch]:
    """800 lines with their text."""
    return _batches_of_lines(2, 800, labels=True)


def _distance(one: list[int], other: list[int]) -> int:
    """Insertions, deletions and replacements from one to the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def character_accuracy(outputs: dict[str, Any], labels: NDArray[Any] | None) -> float:
    """1 - character error rate, the best class of each column taken, repeats and blanks dropped (CTC)."""
    assert labels is not None
    (scores,) = outputs.values()
    wrong = total = 0
    for row, text in zip(scores.argmax(-1), labels, strict=True):
        read = [int(c) for c, before in zip(row, [0, *row[:-1]], strict=True) if c not in (0, before)]
        wanted = [int(c) for c in text if c >= 0]
        wrong += _distance(read, wanted)
        total += len(wanted)
    return 1 - wrong / total


def _page(random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A page with a few lines, normalised, and the box of each: left, top, right, bottom."""
    image = Image.new("L", _PAGE, 255)
    boxes = np.full((_MOST_LINES, 4), -1, np.int64)
    top = int(random.integers(10, 40))
    for row in boxes:
        drawn = _draw(random, _text(random), int(random.integers(16, 40)))
        if top + drawn.height > _PAGE[1]:
            break
        if drawn.width < _PAGE[0]:
            left = int(random.integers(0, _PAGE[0] - drawn.width))
            image.paste(drawn, (left, top))
            ink = np.argwhere(np.asarray(drawn) < 128)
            (upper, first), (lower, last) = ink.min(0), ink.max(0)
            row[:] = left + first, top + upper, left + last + 1, top + lower + 1
        top += drawn.height + int(random.integers(6, 40))
    pixels = _worsen(random, image)[:, :, ::-1].transpose(2, 0, 1) / 255
    mean, deviation = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean) / deviation, boxes


def _batches_of_pages(seed: int, count: int, labels: bool) -> Iterator[Batch]:
    random = np.random.default_rng(seed)
    for start in range(0, count, 10):
        drawn = [_page(random) for _ in range(min(10, count - start))]
        batch: Batch = {"x": np.stack([page for page, _ in drawn]).astype(np.float32)}
        if labels:
            batch["labels"] = np.stack([boxes for _, boxes in drawn])
        yield batch


def pages() -> Iterator[Batch]:
    """40 pages without their boxes."""
    return _batches_of_pages(3, 40, labels=False)


def test_pages() -> Iterator[Batch]:
    """100 pages with the boxes of their lines."""
    return _batches_of_pages(4, 100, labels=True)


def line_f1(outputs: dict[str, Any], labels: NDArray[Any] | None) -> float:
    """F1 of the lines found: regions above .3, grown as DB's shrunk regions are, that overlap a box by half or more."""
    assert labels is not None
    (maps,) = outputs.values()
    found = true = hits = 0
    for chances, boxes in zip(maps[:, 0], labels, strict=True):
        wanted = [box for box in boxes if box[0] >= 0]
        regions = find_objects(label(chances > 0.3)[0])
        read = [_grown(rows, columns) for rows, columns in regions if (columns.stop - columns.start) > 3]
        found, true = found + len(read), true + len(wanted)
        hits += sum(any(_overlap(box, other) >= 0.5 for other in read) for box in wanted)
    return 2 * hits / max(1, found + true)


def _grown(rows: slice, columns: slice) -> NDArray[np.float64]:
    """DB shrinks regions by area x .5 / perimeter or so and grows them by area x 1.5 / perimeter (Liao et al. 2020)."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    margin = 1.5 * height * width / (2 * (height + width))
    return np.array([columns.start - margin, rows.start - margin, columns.stop + margin, rows.stop + margin])


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(both / (sum(areas) - both))
