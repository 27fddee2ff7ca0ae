"""The token ledger: whose tokens are in flight, and which of them hold blocks. Pure; no I/O."""

from vllm_capacity.observe.ledger.reading import (
    LEDGER_STATES,
    LedgerReading,
    LedgerState,
    RequestsInFlight,
)
from vllm_capacity.observe.ledger.token_ledger import TokenLedger

__all__ = ["LEDGER_STATES", "LedgerReading", "LedgerState", "RequestsInFlight", "TokenLedger"]
