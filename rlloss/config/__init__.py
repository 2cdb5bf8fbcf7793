"""Configs: keys and their checks (schema), metrics, and how overrides become a config (compose, with Hydra)."""

from typing import TYPE_CHECKING

from rlloss.lazy import lazily

if TYPE_CHECKING:
    from rlloss.config.compose import load
    from rlloss.config.metrics import METRICS
    from rlloss.config.schema import Config

__getattr__ = lazily(__name__, {"compose": "load", "metrics": "METRICS", "schema": "Config"})
