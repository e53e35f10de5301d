"""Settings: their types, how they are read, and the promotions among them."""
