"""What the driver tells a contender: shopflow's own variables, so that one environment serves them all."""

from __future__ import annotations

import os

__all__ = ["APP_ID", "BROKER", "DATABASE", "DATA_DIR", "MONGODB", "PREFIX", "STARTED", "TOPIC"]

APP_ID = os.environ.get("SHOPFLOW_APP_ID", "benchmark")
BROKER = os.environ.get("SHOPFLOW_BROKER", "kafka://127.0.0.1:19092").removeprefix("kafka://")
MONGODB = os.environ.get("SHOPFLOW_MONGODB_URI", "mongodb://127.0.0.1:27117/?directConnection=true")
DATABASE = os.environ.get("SHOPFLOW_MONGODB_DATABASE", "benchmark")
PREFIX = os.environ.get("SHOPFLOW_TOPICS_PREFIX", "shop.")
TOPIC = f"{PREFIX}purchases"
DATA_DIR = os.environ.get("SHOPFLOW_DATA_DIR", "./data")

#: A contender that we wrote prints this when it is about to fetch its first purchase.
STARTED = "CONSUMING"
