"""Another application on the shop's events: it prints purchases of many units of one product.

    faust -A examples.basket_alarm worker

It is not part of shopflow's worker. It has its own consumer group, so it reads every purchase, and can be changed,
stopped and started while the shop runs. It gets each purchase at least once, and a customer's purchases in order. So
`alarm` must finish all work for a batch before it returns, and the work must be safe to repeat. Two processes share the
partitions.
"""

from __future__ import annotations

from faust_batches import App, Batch
from shopflow.config.loading import load
from shopflow.kafka import security as credentials
from shopflow.models import Purchase
from shopflow.servers.servers import locate
from shopflow.shop.decoding import Decoder

MANY = 5
config = load()  # shopflow's configuration: Kafka's address, the names of topics
app = App(
    f"{config.app_id}-basket-alarm",  # also its consumer group
    broker=f"kafka://{locate(config, mongodb=False).kafka}",
    broker_credentials=credentials.load(config).faust,
    broker_session_timeout=config.batching.session_timeout_seconds,
    web_enabled=False,
)
purchases = Decoder(Purchase, key="customer_id", max_bytes=config.batching.max_event_bytes)


@app.batch_agent(f"{config.topics.prefix}purchases")
async def alarm(batch: Batch) -> None:
    """Print the purchases of many units."""
    for bought in purchases.events(batch.records):
        if bought.quantity >= MANY:
            print(f"{bought.purchase_id}: {bought.quantity} x {bought.product_id} for {bought.customer_id}")
