"""Step 9: the drill. 300 voters, two restarts of the database, and an orderly end."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from poll import BALLOTS, FILE, count_votes, new_poll
from poll_database import Database

from tasker_executor import ResourceExecutor
from tasker_executor.resources.http import Connections


def send(connection: http.client.HTTPConnection, ballot: int, choice: str) -> int:
    connection.request("PUT", f"/votes/{ballot}", body=choice)
    response = connection.getresponse()
    response.read()
    return response.status


new_poll()
with Database(FILE) as database, Path("service.log").open("w") as log:
    command = [sys.executable, str(Path(__file__).with_name("step8.py")), str(database.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as service:
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline().rpartition(" ")[2])

            with ResourceExecutor(8, resource=Connections("127.0.0.1", port), name="voters") as voters:
                futures = [voters.submit(send, ballot, choice) for ballot, choice in BALLOTS]
                for some in 50, 150:
                    futures[some].result()
                    database.kill()
                    time.sleep(1)
                    database.start()
                answers = Counter("counted" if future.result() in (200, 201) else future.result() for future in futures)
            print(f"{dict(answers)}; {count_votes()} votes in the database")
        finally:
            service.terminate()
        print(service.communicate()[0], end="")
        print("the service has ended with status", service.wait())
