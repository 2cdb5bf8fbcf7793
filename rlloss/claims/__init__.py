"""Claims: sentences, the runs that test them, and the report on them."""

from rlloss.claims.claim import (
    PAPER_SEEDS,
    PAPER_STEPS,
    Claim,
    Finding,
    Overrides,
    load_claims,
    seeds_of,
    select,
    shared_budget,
)
