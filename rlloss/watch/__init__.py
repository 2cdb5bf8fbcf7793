"""``rlloss.watch(model, optimizer, folder)``: a record of a PyTorch training, for ``rlloss verify``."""

from typing import TYPE_CHECKING

from rlloss.lazy import callable_as, lazily

if TYPE_CHECKING:
    from rlloss.watch.watching import Watch, watch

__all__ = ["Watch", "watch"]
__getattr__ = lazily(__name__, {"watching": "Watch watch"})
callable_as(__name__, "watch")
