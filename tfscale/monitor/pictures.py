"""Pictures of a run, drawn by Pillow in some milliseconds: inputs, mistakes, a confusion matrix.

Arrays come in and PNG files go out; where they are shown is the affair of others.
"""

import io

import numpy as np

_CELL = 72  # pixels of one image of a grid, at least
_COLUMNS = 8
_LINE = 13  # pixels of a line of text
_WHITE, _BLACK = (255, 255, 255), (20, 20, 20)
_MOST_CLASSES = 40  # of a confusion matrix with numbers in it


def are_images(batch):
    """Say whether an array is a batch of pictures: (examples, height, width, 1, 3 or 4)."""
    return getattr(batch, "ndim", 0) == 4 and batch.shape[-1] in (1, 3, 4)


def grid(images, captions):
    """Draw images in rows, each with words below it.

    Args:
        images: of shape (examples, height, width, 1, 3 or 4), in any range, which is stretched
            to that of all of them.
        captions: a line of text for each; "" for none.

    Returns:
        `(png, size)`: the file, as bytes, and its width and height.
    """
    from PIL import Image, ImageDraw

    values = np.asarray(images, np.float32)
    low, high = float(values.min()), float(values.max())
    values = ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    scale = max(1, -(-_CELL // max(values.shape[1:3])))
    height, width = (scale * pixels for pixels in values.shape[1:3])
    wide = max(width, 6 * max(map(len, captions))) + 8
    tall = height + (_LINE if any(captions) else 0) + 8
    columns = min(_COLUMNS, len(values))
    rows = -(-len(values) // columns)
    page = Image.new("RGB", (columns * wide, rows * tall), _WHITE)
    draw = ImageDraw.Draw(page)
    for i, (image, caption) in enumerate(zip(values, captions, strict=True)):
        left, top = i % columns * wide + 4, i // columns * tall + 4
        image = image[..., 0] if image.shape[-1] == 1 else image
        small = Image.fromarray(image).convert("RGB")
        page.paste(small.resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height), caption, fill=_BLACK)
    return _png(page)


def confusion(counts):
    """Draw a confusion matrix: a row a true class, a column a predicted one.

    The diagonal is blue and mistakes are red, as deep as their share of the row.

    Args:
        counts: whole numbers of shape (classes, classes).

    Returns:
        `(png, size)`, as `grid`.
    """
    from PIL import Image, ImageDraw

    counts = np.asarray(counts)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    numbered = classes <= _MOST_CLASSES
    cell = max(8 * len(str(counts.max())), 26) if numbered else max(2, 800 // classes)
    margin = 44
    size = margin + classes * cell
    page = Image.new("RGB", (size + 8, size + 8), _WHITE)
    draw = ImageDraw.Draw(page)
    draw.text((margin, 2), "predicted", fill=_BLACK)
    draw.text((2, margin - _LINE), "true", fill=_BLACK)
    for i in range(classes):
        if numbered:
            draw.text((margin + i * cell + 4, margin - _LINE - 4), str(i), fill=_BLACK)
            draw.text((margin - 24, margin + i * cell + 4), str(i), fill=_BLACK)
        for j in range(classes):
            left, top = margin + j * cell, margin + i * cell
            share = float(shares[i, j])
            # Mistakes are few, so that a twentieth of a row is seen already.
            strength = share if i == j else min(1.0, share) ** 0.5
            to = (40, 90, 180) if i == j else (200, 40, 40)
            fill = tuple(int(255 + (channel - 255) * strength) for channel in to)
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=fill)
            if numbered and counts[i, j]:
                colour = _WHITE if strength > 0.6 else _BLACK
                draw.text((left + 3, top + cell // 2 - 6), str(counts[i, j]), fill=colour)
    return _png(page)


def _png(page):
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue(), page.size
