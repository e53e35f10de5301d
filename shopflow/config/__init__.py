"""Settings: their types and limits, their loading, and the rules of promotions."""
