"""How each runtime wants a plan written and what that costs in bytes. Data only; touches no graph."""
