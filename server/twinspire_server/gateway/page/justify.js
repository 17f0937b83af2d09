// Rows of equal height that fill the width, from aspect ratios alone.

/** The aspect ratio of an item, width by height: of its metadata, and of a card for what is no picture. */
export function aspect(hit) {
  const { width, height } = hit.metadata ?? {};
  if (hit.kind !== "image") return 1.45;
  return width > 0 && height > 0 ? Math.min(3.5, Math.max(0.4, width / height)) : 1;
}

/**
 * Return a box {x, y, width, height, row} for each aspect ratio, and the height of all. Rows are as near to `target`
 * pixels high as fits; the last one is not stretched.
 */
export function justify(aspects, { width, target, gap }) {
  const boxes = [];
  let y = 0;
  let row = 0;
  let start = 0;
  while (start < aspects.length) {
    let sum = 0;
    let end = start;
    // A row ends where another picture would bring it further from the target.
    while (end < aspects.length) {
      const more = sum + aspects[end];
      if (end > start && off(rowHeight(sum, end - start), target) < off(rowHeight(more, end - start + 1), target)) break;
      sum = more;
      end += 1;
    }
    const full = rowHeight(sum, end - start);
    const height = end === aspects.length ? Math.min(full, target) : full;
    let x = 0;
    for (const ratio of aspects.slice(start, end)) {
      boxes.push({ x, y, width: ratio * height, height, row });
      x += ratio * height + gap;
    }
    y += height + gap;
    row += 1;
    start = end;
  }
  return { boxes, height: Math.max(0, y - gap) };

  function rowHeight(sum, count) {
    return (width - gap * (count - 1)) / sum;
  }
}

const off = (height, target) => Math.abs(Math.log(height / target));
