"""Computation graphs of losses: traced, replayed, drawn."""

from typing import TYPE_CHECKING

from rlloss.lazy import lazily

if TYPE_CHECKING:
    from rlloss.graph.graph import Edge, Graph, Input, Node, Replay, replay, trace

__getattr__ = lazily(__name__, {"graph": "Edge Graph Input Node Replay replay trace"})
