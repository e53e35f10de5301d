"""Quix Streams with its MongoDBSink, and a stateful count: the same documents, indexes and write concern."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pymongo.uri_parser import parse_uri
from quixstreams import Application, State
from quixstreams.sinks.community.mongodb import MongoDBSink

from benchmarks.settings import APP_ID, BROKER, DATA_DIR, DATABASE, MONGODB, TOPIC

#: As often as shopflow commits; 5 s is the default.
COMMIT_SECONDS = 1.0


def count(purchase: dict[str, Any], state: State[str, Any]) -> None:
    """Purchases, items, spent of the customer who is the record's key."""
    purchases, items, spent = state.get("count", (0, 0, 0))
    quantity = purchase["quantity"]
    state.set("count", (purchases + 1, items + quantity, spent + quantity * purchase["price"]))


def document(purchase: Any) -> Any:
    """As it stands in MongoDB; the sink has added where it came from."""
    return {
        "_id": purchase["purchase_id"],
        "customer_id": purchase["customer_id"],
        "product_id": purchase["product_id"],
        "quantity": purchase["quantity"],
        "price": purchase["price"],
        "value": purchase["quantity"] * purchase["price"],
        "purchased_at": datetime.fromisoformat(purchase["purchased_at"]),
        "source": {
            "origin": "kafka",
            "topic": purchase["__topic"],
            "partition": purchase["__partition"],
            "offset": purchase["__offset"],
        },
    }


def sink() -> MongoDBSink:
    """One replacement for each purchase, by its id."""
    uri = parse_uri(MONGODB)
    ((host, port),) = uri["nodelist"]
    return MongoDBSink(
        host=host,
        port=port,
        db=DATABASE,
        collection="purchases",
        document_matcher=lambda item: {"_id": item.value["purchase_id"]},
        update_method="ReplaceOne",
        add_topic_metadata=True,
        value_selector=document,
        **uri["options"],
    )


def main(*, stored: bool = True) -> None:
    """Take purchases until SIGTERM."""
    application = Application(
        broker_address=BROKER,
        consumer_group=APP_ID,
        auto_offset_reset="earliest",
        state_dir=DATA_DIR,
        commit_interval=COMMIT_SECONDS,
    )
    purchases = application.dataframe(application.topic(TOPIC, key_deserializer="str", value_deserializer="json"))
    purchases = purchases.update(count, stateful=True)
    if stored:
        purchases.sink(sink())
    application.run()


if __name__ == "__main__":
    main()
