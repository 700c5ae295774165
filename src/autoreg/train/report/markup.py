"""Words and numbers of the report, as HTML."""

import math
from html import escape


def heading(level: str, title: str, words: str) -> str:
    """A heading, ``h2`` or ``h3``, and what there is to know about what follows."""
    return f"<{level}>{escape(title)}</{level}><p>{escape(words)}</p>"


def tile(identifier: str, title: str, value: float, text: str, words: str) -> str:
    """A figure, its value also for programs."""
    data = f'<data id="{identifier}" value="{value}">{escape(text)}</data>'
    return f"<div><dt>{escape(title)}</dt><dd>{data}<small>{escape(words)}</small></dd></div>"


def short(value: float) -> str:
    """Four digits, or all of those before the point; a dash for NaN."""
    if math.isnan(value):
        return "—"
    return whole(round(value)) if abs(value) >= 1000 else f"{value:.4g}"


def whole(value: int) -> str:
    """A number whose thousands are set apart."""
    return f"{value:,}".replace(",", "\u202f")


def counted(number: int, thing: str) -> str:
    """So many things, one thing."""
    return f"{whole(number)} {thing}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Hours and minutes, minutes or seconds."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 120 else f"{minutes} min"
