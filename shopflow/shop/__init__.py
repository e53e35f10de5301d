"""What becomes of an event: decoded, priced, stored, counted."""
