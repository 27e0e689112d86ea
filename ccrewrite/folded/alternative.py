"""What a layer can be folded to besides a dense kernel: ``Alternative``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.torch_private import ConvNd


@dataclass(frozen=True)
class Alternative:
    """A plain layer that computes what a convolution with a dense kernel would.

    ``name`` is what ``fold(forms=)`` calls it and the code of a site that becomes it. ``cost_of_dense``: estimated time of the
    dense kernel over this layer's. Where that is above ``pays_above``, it is taken if nothing is measured.
    """

    name: str
    cost_of_dense: float
    pays_above: float
    kernel: Ints
    """The dense kernel's size."""
    samples: int
    """How many of its cells aren't zero."""
    make_: Callable[[ConvNd], str] = field(repr=False, compare=False)
    """Makes such a layer of the torch layer that it is given, with the weight that the sampling takes. In place; returns the
    site's message."""

    @property
    def told(self) -> tuple[str, float, Ints, int]:
        """All that its time depends on, the layer's own sizes aside."""
        return self.name, self.cost_of_dense, self.kernel, self.samples

    @property
    def pays(self) -> bool:
        return self.cost_of_dense > self.pays_above
