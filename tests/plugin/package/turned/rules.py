"""Which convolutions are rewritten, and into what."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ccrewrite.families import Rule, Sampling, Site
from ccrewrite.nn import DclsSampling
from turned.sampling import TurnedSampling


@dataclass(frozen=True)
class PlainToDcls(Rule):
    """plain 3x3 convolution -> DCLS: its taps may move by up to ``reach`` samples."""

    name: ClassVar[str] = "plain-to-dcls"
    reach: int = 1

    def takes(self, site: Site) -> bool:
        return site.kinds == ("plain",) and site.geometry.kernel_size == (3, 3)

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        return DclsSampling.of(site.geometry, reach=self.reach, **factory)


@dataclass(frozen=True)
class LargeToTurned(Rule):
    """large 2-d convolution -> its kernel, turned by an angle that is learned."""

    name: ClassVar[str] = "large-to-turned"
    angles: Literal["one", "filter"] = "one"

    def takes(self, site: Site) -> bool:
        return "large" in site.kinds and "transposed" not in site.kinds and site.geometry.ndim == 2

    def refuses(self, site: Site) -> str | None:
        rows, columns = site.geometry.kernel_size
        return None if rows == columns else f"only square kernels are turned, this one is {rows}x{columns}"

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        return TurnedSampling.of(site.geometry, angles=self.angles, **factory)
