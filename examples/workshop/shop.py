"""The shop of the workshop: a server and a client that break in one way. Arguments: the fault and the port."""
import socket
import struct
import sys
import threading
import time

fault, port = sys.argv[1], int(sys.argv[2])
address = ("127.0.0.1", port)
end = time.monotonic() + 22
held = []


def reset(connection):
    """Closes a connection with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def serve(listener):
    """Answers each request; the fault decides what happens then."""
    while True:
        connection, _ = listener.accept()
        if fault == "not_closed":
            held.append(connection)
            continue
        request = connection.recv(1 << 16)
        if fault == "resets":
            reset(connection)
            continue
        connection.sendall(request * (200 if fault == "loss" else 1))
        connection.close()


def call():
    """Sends a request, and reads until the server closes."""
    with socket.create_connection(address, timeout=2) as client:
        client.sendall(b"x" * 1000)
        while client.recv(1 << 16):
            pass


def attempt():
    """Calls once. The fault may make the call fail."""
    try:
        call()
    except OSError:
        pass


if fault != "refused":
    listener = socket.create_server(address, backlog=2 if fault == "accept_queue" else 128)
    if fault != "accept_queue":
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
if fault == "accept_queue":
    for _ in range(8):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        held.append(client)
elif fault == "not_closed":
    for _ in range(5):
        socket.create_connection(address).close()
pause = {"churn": 0.01, "slow_connect": 0.05, "loss": 0.05}.get(fault, 0.2)
while time.monotonic() < end:
    if fault not in ("accept_queue", "not_closed"):
        attempt()
    time.sleep(pause)
