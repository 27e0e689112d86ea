"""The one judge of forms, whether eager, folded or compiled: ``Choice``, the fastest of those that were timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Seconds = Mapping[str, float]
"""By form; the one that is taken where none is faster comes first."""
CLEARLY = 1.03
"""A form takes the place of one before it where it is so many times as fast: smaller differences are noise."""


class Choice(NamedTuple):
    """A form, how it was chosen ("measured", "estimated" and the like), and the times that it was chosen by."""

    form: str
    how: str
    seconds: Seconds

    @classmethod
    def fastest(cls, how: str, seconds: Seconds) -> Choice:
        """
        >>> Choice.fastest("measured", {"dense": 1.0, "sparse": 0.99}).form
        'dense'
        >>> Choice.fastest("measured", {"dense": 1.0, "sparse": 0.9, "gathered": 0.8}).form
        'gathered'
        """
        first, best = next(iter(seconds)), min(seconds, key=lambda form: seconds[form])
        return cls(best if seconds[first] > CLEARLY * seconds[best] else first, how, seconds)
