"""Kernels that learn to turn, and plain convolutions whose taps learn to move."""

from ccrewrite.families import Family
from turned.rules import LargeToTurned, PlainToDcls
from turned.sampling import TurnedSampling

FAMILY = Family(name="turned", title="Turned", samplings=(TurnedSampling,), rules=(LargeToTurned, PlainToDcls))
