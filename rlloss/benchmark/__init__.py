"""How fast: of training beside its peers, of checks, sweeps, graph pages, both numerics, and of watching."""
