"""Draws the pictures of the pages: docs/figures/*.svg. Lines and text take the colour of the page around them.

python docs/site/figures.py
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "figures"
TEAL, ORANGE = "#0f9d8a", "#e0752d"
COLOURS = "<style>svg{color:#24292f}@media (prefers-color-scheme:dark){svg{color:#d7dde3}}</style>"


def svg(width: float, height: float, *parts: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="13">'
    )
    arrow = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    return "\n".join([head, COLOURS, arrow, *parts, "</svg>"]) + "\n"


def text(
    x: float, y: float, words: str, anchor: str = "middle", size: float = 13, opacity: float = 1, fill: str = "currentColor"
) -> str:
    look = f'text-anchor="{anchor}" font-size="{size:g}" opacity="{opacity:g}" fill="{fill}"'
    return f'<text x="{x:g}" y="{y:g}" {look}>{words}</text>'


def box(x: float, y: float, width: float, height: float, look: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {look}/>'


def line(x1: float, y1: float, x2: float, y2: float, opacity: float = 1, width: float = 1, more: str = "") -> str:
    return (
        f'<line x1="{x1:.5g}" y1="{y1:.5g}" x2="{x2:.5g}" y2="{y2:.5g}" stroke="currentColor" '
        f'stroke-width="{width:g}" opacity="{opacity:g}" {more}/>'
    )


def dot(x: float, y: float, radius: float, fill: str, opacity: float = 1) -> str:
    return f'<circle cx="{x:.5g}" cy="{y:.5g}" r="{radius:g}" fill="{fill}" opacity="{opacity:g}"/>'


def cells(x: float, y: float, count: int, side: float, shade: dict[tuple[int, int], float] | None = None) -> list[str]:
    """A square lattice, with some cells shaded."""
    parts = [
        box(x + column * side, y + row * side, side, side, f'fill="{TEAL}" opacity="{value:.2f}"')
        for (row, column), value in (shade or {}).items()
        if value > 0.005
    ]
    for i in range(count + 1):
        parts.append(line(x, y + i * side, x + count * side, y + i * side, 0.35))
        parts.append(line(x + i * side, y, x + i * side, y + count * side, 0.35))
    return parts


TAPS = [(row, column) for row in (0, 3, 6) for column in (0, 3, 6)]
OFFSETS = [(0.6, 0.9), (1.2, -0.3), (0.4, -1.4), (-0.5, 1.3), (0.0, 0.0), (0.7, -0.8), (-1.3, 0.5), (-0.9, 0.4), (-0.4, -0.6)]
"""Where a 3x3 kernel of dilation 3 has its taps, and how far they have moved, in samples."""


def dcls() -> str:
    side, count, top, step = 24, 7, 44, 250
    parts: list[str] = []
    titles = ("dilated convolution", "DCLS layer, fine-tuned", "folded: a plain kernel")
    below = ("nine taps, on a fixed grid", "the same weights, at learned places", "four cells share a tap")
    landed: dict[tuple[int, int], float] = {}
    for (row, column), (down, right) in zip(TAPS, OFFSETS, strict=True):
        for r in range(count):
            for c in range(count):
                share = max(0.0, 1 - abs(r - row - down)) * max(0.0, 1 - abs(c - column - right))
                landed[r, c] = landed.get((r, c), 0) + 0.85 * share
    for panel, (title, words) in enumerate(zip(titles, below, strict=True)):
        left = 20 + panel * step
        parts.append(text(left + 84, 22, title, size=14))
        parts += cells(left, top, count, side, landed if panel == 2 else None)
        parts.append(text(left + 84, top + count * side + 24, words, size=11, opacity=0.8))
        if panel:
            parts.append(line(left - 68, top + 84, left - 16, top + 84, 0.8, 1.5, 'marker-end="url(#tip)"'))
        for (row, column), (down, right) in zip(TAPS, OFFSETS, strict=True):
            x, y = left + (column + 0.5) * side, top + (row + 0.5) * side
            if panel == 0:
                parts.append(dot(x, y, 6, TEAL))
            elif panel == 1:
                parts.append(dot(x, y, 3, "currentColor", 0.35))
                parts.append(line(x, y, x + right * side, y + down * side, 0.6))
                parts.append(dot(x + right * side, y + down * side, 6, ORANGE))
    return svg(710, 262, *parts)


def cubic(z: float) -> float:
    """Keys' interpolation kernel."""
    z = abs(z)
    if z < 1:
        return 1.5 * z**3 - 2.5 * z**2 + 1
    return -0.5 * z**3 + 2.5 * z**2 - 4 * z + 2 if z < 2 else 0.0


WEIGHTS = (0.35, 1.0, 0.8, -0.3)


def cc() -> str:
    unit, zero = 40, 110
    parts = [text(180, 22, "the kernel: four taps are nodes of a curve", size=14)]

    def there(z: float) -> float:
        return 60 + unit * (z + 1.5)

    points = [there(-2 + i / 16) for i in range(16 * 7 + 1)]
    heights = [sum(w * cubic(-2 + i / 16 - n) for n, w in enumerate(WEIGHTS)) for i in range(16 * 7 + 1)]
    path = " ".join(f"{x:.1f},{zero - 70 * h:.1f}" for x, h in zip(points, heights, strict=True))
    parts += [line(20, zero, 340, zero, 0.5), f'<polyline points="{path}" fill="none" stroke="{ORANGE}" stroke-width="2.5"/>']
    for n, weight in enumerate(WEIGHTS):
        parts.append(line(there(n), zero, there(n), zero - 70 * weight, 0.5))
        parts.append(dot(there(n), zero - 70 * weight, 5, TEAL))
    parts.append(text(180, 170, "between the nodes it is interpolated, and learned", size=11, opacity=0.8))

    parts.append(text(545, 22, "where the outputs look", size=14))
    left, right = 400, 690
    for row, (words, outputs) in enumerate(
        (("stride 2: six outputs", 6), ("the same layer asked for five", 5), ("or for eight", 8))
    ):
        y = 58 + row * 46
        parts.append(text(left, y - 12, words, "start", 11, 0.8))
        parts.append(line(left, y, right, y, 0.5))
        samples, step = 12, 12 / outputs
        for i in range(samples):
            parts.append(dot(left + (right - left) * (i + 0.5) / samples, y, 2.5, "currentColor", 0.6))
        for i in range(outputs):
            centre = left + (right - left) * (i + 0.5) * step / samples
            parts.append(f'<path d="M{centre:.1f} {y + 5}l5 10h-10z" fill="{TEAL if outputs == 6 else ORANGE}"/>')
    parts.append(text(545, 190, "dots: input samples; triangles: centres of the outputs", size=11, opacity=0.8))
    return svg(710, 204, *parts)


def way() -> str:
    parts: list[str] = []

    def step(x: float, y: float, width: float, words: str, small: str, fill: str = TEAL) -> None:
        look = f'rx="6" fill="{fill}" fill-opacity="0.14" stroke="{fill}" stroke-width="1.5"'
        parts.append(box(x, y, width, 48, look))
        parts.append(text(x + width / 2, y + 20, words))
        parts.append(text(x + width / 2, y + 37, small, size=10.5, opacity=0.8))

    def to(x1: float, y1: float, x2: float, y2: float) -> None:
        parts.append(line(x1, y1, x2, y2, 0.8, 1.5, 'marker-end="url(#tip)"'))

    first = (("capture", "every call of one run"), ("detect", "calls become sites"), ("decide", "a rule, or a reason"))
    second = (("substitute", "geometry put in place"), ("verify", "outputs, gradients"))
    parts.append(text(20, 20, "your model + example inputs", "start", 14))
    for i, (name, small) in enumerate((*first, *second)):
        step(20 + 140 * i, 34, 122, name, small)
        if i:
            to(20 + 140 * i - 17, 58, 20 + 140 * i - 2, 58)
    parts.append(text(432, 20, "plan stops here", "end", 11, 0.8))
    parts.append(line(431, 26, 431, 90, 0.5, 1, 'stroke-dasharray="4 3"'))
    parts.append(
        f'<path d="M641 84C641 110 501 110 501 88" fill="none" stroke="{ORANGE}" stroke-width="1.5" marker-end="url(#tip)"/>'
    )
    parts.append(text(571, 118, "what fails is put back", size=11, fill=ORANGE))
    parts.append(text(20, 124, "the same model, with geometry that can be learned", "start", size=14))
    to(355, 130, 355, 150)
    step(255, 154, 200, "training", "your loop, or ccrewrite.finetune", ORANGE)
    last = (
        ("fold", "plain layers again"),
        ("lower, aot", "compiled"),
        ("export_onnx", "a checked file"),
        ("save", "kilobytes or all"),
        ("revert", "as it was"),
    )
    for i, (name, small) in enumerate(last):
        step(20 + 140 * i, 240, 122, name, small)
        to(355 + (i - 2) * 30, 206, 81 + 140 * i, 236)
    return svg(720, 300, *parts)


PICTURES = {"dcls": dcls, "cc": cc, "way": way}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
