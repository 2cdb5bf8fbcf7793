"""rlloss: do two policy-gradient losses train alike, to the last bit? A harness that settles it by experiment."""

__version__ = "0.1.0"
