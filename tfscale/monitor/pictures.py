"""Pictures of a run, drawn by Pillow in some milliseconds: inputs, mistakes, a confusion matrix.

Arrays come in and PNG files go out; where they are shown is the affair of others.
"""

import io

import numpy as np

_CELL = 72  # pixels of one image of a grid, at least
_COLUMNS = 8
_LINE = 13  # pixels of a line of text
_WHITE, _BLACK = (255, 255, 255), (20, 20, 20)
_LETTER = 6  # pixels, about
_MOST_NUMBERED = 40  # classes of a confusion matrix with numbers in it
MOST_CHARACTERS = 24  # of a name or a caption
_MOST_PIXELS = 160  # of the longer side of an image of a grid


def are_images(batch):
    """Say whether an array is a batch of pictures: (examples, height, width, 1, 3 or 4)."""
    return getattr(batch, "ndim", 0) == 4 and batch.shape[-1] in (1, 3, 4)


def grid(images, captions):
    """Draw images in rows, each with words below it.

    Args:
        images: of shape (examples, height, width, 1, 3 or 4), in any range, which is stretched
            to that of all of them. Large ones are drawn smaller.
        captions: a line of text for each; "" for none.

    Returns:
        `(png, size)`: the file, as bytes, and its width and height.
    """
    from PIL import Image, ImageDraw

    values = np.asarray(images, np.float32)
    low, high = float(values.min()), float(values.max())
    values = ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    longer = max(values.shape[1:3])
    scale = min(max(1, -(-_CELL // longer)), _MOST_PIXELS / longer)
    height, width = (max(1, round(scale * pixels)) for pixels in values.shape[1:3])
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    captions = [caption[:MOST_CHARACTERS] for caption in captions]
    wide = max(width, _LETTER * max(map(len, captions))) + 8
    tall = height + (_LINE if any(captions) else 0) + 8
    columns = min(_COLUMNS, len(values))
    rows = -(-len(values) // columns)
    page = Image.new("RGB", (columns * wide, rows * tall), _WHITE)
    draw = ImageDraw.Draw(page)
    for i, (image, caption) in enumerate(zip(values, captions, strict=True)):
        left, top = i % columns * wide + 4, i // columns * tall + 4
        image = image[..., 0] if image.shape[-1] == 1 else image
        small = Image.fromarray(image).convert("RGB")
        page.paste(small.resize((width, height), way), (left, top))
        draw.text((left, top + height), caption, fill=_BLACK)
    return _png(page)


def confusion(counts, names=None, totals=None, title=""):
    """Draw a confusion matrix: a row a true class, a column a predicted one.

    The diagonal is blue and mistakes are red, as deep as their share of the row.

    Args:
        counts: whole numbers of shape (classes, classes).
        names: of the classes; by default their numbers.
        totals: examples of each true class, where the row does not hold all of them.
        title: what there is to say of the whole.

    Returns:
        `(png, size)`, as `grid`.
    """
    from PIL import Image, ImageDraw

    counts = np.asarray(counts)
    classes = len(counts)
    names = [name[:MOST_CHARACTERS] for name in names or map(str, range(classes))]
    totals = counts.sum(1) if totals is None else totals
    shares = np.minimum(counts / np.maximum(totals, 1)[:, None], 1)
    is_numbered = classes <= _MOST_NUMBERED
    cell = max(8 * len(str(counts.max())), 26) if is_numbered else max(2, 800 // classes)
    left = max(44, 20 + _LETTER * max(map(len, names))) if is_numbered else 44
    top, side = 44, classes * cell
    wide = max(left + side, left + _LETTER * (12 + len(title)) if title else 0) + 8
    page = Image.new("RGB", (wide, top + side + 8), _WHITE)
    draw = ImageDraw.Draw(page)
    # Mistakes are few, so that a twentieth of a row is seen already.
    is_right = np.eye(classes, dtype=bool)
    strength = np.where(is_right, shares, shares**0.5)[..., None]
    deepest = np.where(is_right[..., None], (40, 90, 180), (200, 40, 40))
    colours = (255 + (deepest - 255) * strength).astype(np.uint8)
    colours = colours.repeat(cell, 0).repeat(cell, 1)
    colours[cell - 1 :: cell] = colours[:, cell - 1 :: cell] = 255
    page.paste(Image.fromarray(colours), (left, top))
    draw.text((left, 2), f"predicted{title and ': '}{title}", fill=_BLACK)
    draw.text((2, top - _LINE), "true", fill=_BLACK)
    for i, name in enumerate(names if is_numbered else ()):
        above = name[: cell // _LETTER]
        draw.text((left + i * cell + 4, top - _LINE - 4), above, fill=_BLACK)
        draw.text((20, top + i * cell + 4), name, fill=_BLACK)
        for j in np.flatnonzero(counts[i]):
            colour = _WHITE if strength[i, j, 0] > 0.6 else _BLACK
            place = (left + j * cell + 3, top + i * cell + cell // 2 - 6)
            draw.text(place, str(counts[i, j]), fill=colour)
    return _png(page)


def _png(page):
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue(), page.size
