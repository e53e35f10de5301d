"""Quix Streams with its MongoDBSink and a stateful count: shopflow's documents, indexes and write concern."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pymongo.uri_parser import parse_uri
from quixstreams import Application, State
from quixstreams.sinks.community.mongodb import MongoDBSink

from benchmarks.settings import APP_ID, BROKER, DATA_DIR, DATABASE, MONGODB, TOPIC

#: About as often as shopflow commits. Quix Streams' default is 5 s.
COMMIT_SECONDS = 1.0


def count(purchase: dict[str, Any], state: State[str, Any]) -> None:
    """Update the purchases, items and spent of the customer, who is the record's key."""
    purchases, items, spent = state.get("count", (0, 0, 0))
    quantity = purchase["quantity"]
    state.set("count", (purchases + 1, items + quantity, spent + quantity * purchase["price"]))


def document(purchase: Any) -> Any:
    """The document of a purchase. The sink has added the record's topic, partition and offset."""
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
    """A sink that replaces the document of each purchase, by its id."""
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
    """Consume purchases until SIGTERM."""
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
