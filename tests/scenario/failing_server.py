"""A server whose calls on cold files fail as a test orders: `failing_server.py DATA_DIR PORT ORDERS`."""

import logging
import sys
from pathlib import Path

from upwell.app import run
from upwell.config import load_config
from upwell.logs import configure
from upwell.testing.faults import SteeredFiles

if __name__ == "__main__":
    data_dir, port, orders = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    configure("info")
    logging.captureWarnings(True)
    config = load_config(file=None, options={"data_dir": data_dir, "port": port})
    sys.exit(run(config, files=SteeredFiles(data_dir / "storage", orders)))
