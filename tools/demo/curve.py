"""The loss curve as an SVG picture, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence

from tools.demo.training import Progress

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 320, 52, 40, 18, 56


def loss_curve(log: Sequence[Progress]) -> str:
    """An SVG with the loss (left axis) and share of reply tokens predicted (right axis) over tokens read."""
    most = max(line.tokens for line in log)
    top = max(line.loss for line in log)
    across, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(tokens: float) -> float:
        return _LEFT + across * tokens / most

    def y(share: float) -> float:
        return _TOP + high * (1 - share)

    losses = " ".join(f"{x(line.tokens):.1f},{y(line.loss / top):.1f}" for line in log)
    rights = " ".join(f"{x(line.tokens):.1f},{y(line.reply_accuracy):.1f}" for line in log)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for i in range(6):
        level = y(i / 5)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{top * i / 5:.1f}</text>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 6}" y="{level + 4:.1f}">{20 * i} %</text>')
        millions = most * i / 5
        parts.append(
            f'<text x="{x(millions):.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{millions / 1e6:.1f} M</text>'
        )
    parts += [
        f'<polyline points="{losses}" fill="none" stroke="#c0392b" stroke-width="1.5"/>',
        f'<polyline points="{rights}" fill="none" stroke="#2471a3" stroke-width="1.5"/>',
        f'<text x="{_LEFT}" y="12" fill="#c0392b">training loss (nats a token, weighted)</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="12" fill="#2471a3" text-anchor="end">reply tokens predicted</text>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">tokens read</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
