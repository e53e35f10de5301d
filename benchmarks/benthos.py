"""Benthos 4.27 (Go): each purchase replaces its document by id. It keeps no counts.

`python -m benchmarks.benthos` becomes Benthos. `build` makes a program of the parts that are needed: all of Benthos,
with parts for a hundred other systems, takes minutes to compile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.settings import APP_ID, BROKER, DATABASE, MONGODB, TOPIC

VERSION = "v4.27.0"
FOLDER = Path(sys.prefix, f"benthos-{VERSION}")
PROGRAM = FOLDER / "benthos"

MAIN = """\
package main

import (
	"context"

	_ "github.com/benthosdev/benthos/v4/public/components/io"
	_ "github.com/benthosdev/benthos/v4/public/components/kafka"
	_ "github.com/benthosdev/benthos/v4/public/components/mongodb"
	_ "github.com/benthosdev/benthos/v4/public/components/pure"
	"github.com/benthosdev/benthos/v4/public/service"
)

func main() { service.RunCLI(context.Background()) }
"""
STEPS = (
    ("go", "mod", "init", "benthos"),
    ("go", "get", f"github.com/benthosdev/benthos/v4@{VERSION}"),
    ("go", "build", "-mod=mod", "-o", PROGRAM.name, "."),
)

DOCUMENT = """\
root._id = this.purchase_id
root.customer_id = this.customer_id
root.product_id = this.product_id
root.quantity = this.quantity
root.price = this.price
root.value = this.price * this.quantity
root.purchased_at = this.purchased_at.ts_parse("2006-01-02T15:04:05Z07:00")
root.source = {"origin": "kafka", "topic": @kafka_topic, "partition": @kafka_partition, "offset": @kafka_offset}
"""
#: JSON, which is YAML. Batches as large as shopflow's; one thread for each of two processors.
CONFIG = {
    "http": {"enabled": False},
    "input": {
        "kafka_franz": {
            "seed_brokers": [BROKER],
            "topics": [TOPIC],
            "consumer_group": APP_ID,
            "start_from_oldest": True,
            "checkpoint_limit": 16_000,
            "commit_period": "1s",
            "batching": {"count": 4_000, "period": "50ms"},
        }
    },
    "pipeline": {"threads": 2, "processors": [{"mapping": DOCUMENT}]},
    "output": {
        "mongodb": {
            "url": MONGODB,
            "database": DATABASE,
            "collection": "purchases",
            "operation": "replace-one",
            "upsert": True,
            "write_concern": {"w": "majority", "j": True, "w_timeout": "30s"},
            "document_map": "root = this",
            "filter_map": "root._id = this._id",
            "max_in_flight": 4,
        }
    },
}


def build() -> None:
    """Build Benthos, once for a virtual environment. A line says why if that fails: it is then left out."""
    if PROGRAM.exists():
        return
    print(f"Benthos {VERSION} is being built; it takes a minute or two ...", flush=True)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "go.mod").unlink(missing_ok=True)
    (FOLDER / "main.go").write_text(MAIN, encoding="utf-8")
    try:
        for step in STEPS:
            subprocess.run(step, cwd=FOLDER, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        print("Benthos can't be built: there is no Go (https://go.dev/dl/)", flush=True)
    except subprocess.CalledProcessError as error:
        print(f"Benthos can't be built: {' '.join(error.cmd)}: {error.stderr.strip()}", flush=True)


def main() -> None:
    """Replace this process by Benthos."""
    Path("benthos.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    os.execv(PROGRAM, [str(PROGRAM), "-c", "benthos.json"])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
