"""Have two losses the same gradient? Settled without training."""

from typing import TYPE_CHECKING

from rlloss.lazy import lazily

if TYPE_CHECKING:
    from rlloss.check.comparison import assert_same_gradient, compare
    from rlloss.check.result import Comparison

__getattr__ = lazily(__name__, {"comparison": "assert_same_gradient compare", "result": "Comparison"})
