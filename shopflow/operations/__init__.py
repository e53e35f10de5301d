"""An operator's tasks: verify, replay, dead letters, export."""
