"""An HTTP/1.1 server that thinks, and a client that keeps its connection. Arguments: the side, the address, the port.

The server prints a line when it listens, and for each request how long it thought, in seconds. The client reads a path
from standard input, makes the request, and prints a line when it has the response.
"""
import http.client
import http.server
import sys
import time

side, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


class Handler(http.server.BaseHTTPRequestHandler):
    """Sleeps for as many seconds as the path says."""

    protocol_version = "HTTP/1.1"
    # One write for the head and the body.
    wbufsize = -1

    def do_GET(self):
        began = time.monotonic()
        time.sleep(float(self.path[1:]))
        self.send_response(200)
        self.send_header("Content-Length", "300")
        self.end_headers()
        self.wfile.write(b"x" * 300)
        thought = time.monotonic() - began
        self.wfile.flush()
        print(thought, flush=True)

    def log_message(self, *args):
        pass


if side == "server":
    server = http.server.ThreadingHTTPServer((address, port), Handler)
    print("listening", flush=True)
    server.serve_forever()
connection = http.client.HTTPConnection(address, port)
for path in sys.stdin:
    connection.request("GET", path.strip())
    print(len(connection.getresponse().read()), flush=True)
