"""Proofs about traced graphs: in exact arithmetic, and of rounded results bit by bit."""
