"""As root, give the folder to the user `mongodb` and go on as that user. The first start makes MongoDB's user."""

import os
import subprocess
import time
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError

DATA = Path("/data/db")
COMMAND = ["python", "-m", "secantus", "--standalone", "--port=27017", f"--storage-path={DATA}/data"]
COMMAND += ["--log-level=WARNING", "--cache-size=256M"]

os.chown(DATA, 999, 999)
password = Path(os.environ["MONGO_INITDB_ROOT_PASSWORD_FILE"]).read_text(encoding="utf-8").rstrip("\n")
os.setgroups([])
os.setgid(999)
os.setuid(999)
os.environ["HOME"] = str(DATA)
os.chdir(DATA)
if not Path("made").exists():
    first = subprocess.Popen([*COMMAND, "--host=127.0.0.1"])
    client: MongoClient = MongoClient("127.0.0.1", directConnection=True, serverSelectionTimeoutMS=500)
    for _ in range(60):
        try:
            client.admin.command("createUser", os.environ["MONGO_INITDB_ROOT_USERNAME"], pwd=password, roles=["root"])
            break
        except PyMongoError as error:
            print(f"not yet: {error}", flush=True)
            time.sleep(0.5)
    else:
        raise SystemExit("the user could not be made")
    first.terminate()
    first.wait()
    Path("made").touch()
os.execvp(COMMAND[0], [*COMMAND, "--host=0.0.0.0", "--auth"])  # noqa: S606
