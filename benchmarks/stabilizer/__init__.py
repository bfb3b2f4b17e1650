"""How steady a stabilized clip is, what it costs, and what it must not cost."""
