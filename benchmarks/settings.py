"""The settings of a contender, from shopflow's own variables, so that all contenders get the same environment."""

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

#: The contenders that are written here print this line before they fetch the first purchase.
STARTED = "CONSUMING"
