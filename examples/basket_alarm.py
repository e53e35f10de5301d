"""Another application on the shop's events: it says when somebody buys many of one thing.

    faust -A examples.basket_alarm worker

It is no part of shopflow's worker: in Kafka it has a group of its own, so it sees every purchase, and can be changed,
stopped and started while the shop goes on. It sees each purchase at least once, a customer's in their order. So what
`alarm` does for a batch must be done when it returns, and must bear to be done again. Two of it share the partitions.
"""

from __future__ import annotations

from faust_batches import App
from faust_batches.consumer import Batch
from shopflow.config.loading import load
from shopflow.kafka import security as credentials
from shopflow.models import Purchase
from shopflow.servers.servers import locate
from shopflow.shop.decoding import Decoder

MANY = 5
config = load()  # where Kafka is, and what the topics are called: as for shopflow itself
app = App(
    f"{config.app_id}-basket-alarm",  # also its group in Kafka
    broker=f"kafka://{locate(config, mongodb=False).kafka}",
    broker_credentials=credentials.load(config).faust,
    broker_session_timeout=config.batching.session_timeout_seconds,
    web_enabled=False,
)
purchases = Decoder(Purchase, key="customer_id", max_bytes=config.batching.max_event_bytes)


@app.batch_agent(f"{config.topics.prefix}purchases")
async def alarm(batch: Batch) -> None:
    """Say which of these purchases are of many pieces."""
    for bought in purchases.events(batch.records):
        if bought.quantity >= MANY:
            print(f"{bought.purchase_id}: {bought.quantity} x {bought.product_id} for {bought.customer_id}")
