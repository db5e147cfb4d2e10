"""A script that fails in the way its argument names."""

import json
import os
import socket
import sys
import time


def download():
    try:
        socket.getaddrinfo("data.example.org", 443)
    except OSError as error:
        raise RuntimeError("no data") from error


if sys.argv[1] == "exit":
    if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
        sys.exit(3)
    time.sleep(300)
download()
