"""An event-driven shop: Kafka to MongoDB with Faust, every event stored and counted exactly once."""

from .errors import Refused

try:
    from .app import app as app
except (
    Refused
) as refused:  # a program that was started with a bad configuration owes its user one line, not a traceback
    refused.show()
    raise SystemExit(refused.exit_code) from None

__all__ = ["app"]
