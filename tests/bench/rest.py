"""A client of the controller with keep-alive connections. It returns the time at which a request's last byte was sent."""

import http.client
import json
import ssl
import time
from urllib.parse import urlsplit

API = "api-version=2024-05-01"


class Rest:
    def __init__(self, base, authority, token):
        url = urlsplit(base)
        self.host, self.port = url.hostname, url.port
        self.context = ssl.create_default_context(cafile=authority)
        with open(token) as file:
            self.headers = {"Authorization": f"Bearer {file.read().strip()}", "Content-Type": "application/json"}
        self.connection = None

    def call(self, method, path, body=None):
        """(status, answer, headers, when the request's last byte was sent)."""
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=60)
        if not path.startswith("/fabric/"):
            path += ("&" if "?" in path else "?") + API
        try:
            self.connection.request(method, path, json.dumps(body) if body is not None else None, self.headers)
            sent = time.perf_counter()
            answer = self.connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        return answer.status, json.loads(data) if data else None, answer.headers, sent

    def change(self, method, path, body=None):
        """A change that must be accepted: its revision, and when it was sent."""
        status, answer, headers, sent = self.call(method, path, body)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {answer}")
        return int(headers["x-tombolo-revision"]), sent

    def in_force(self, revision):
        status, answer, _, _ = self.call("GET", f"/fabric/v1/revisions/{revision}/wait?timeoutSeconds=30")
        if status != 200 or not answer["inForce"]:
            raise RuntimeError(f"revision {revision}: {status} {answer}")
