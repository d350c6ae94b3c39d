"""The shop of the workshop: a server and a client that break in one way. Arguments: the fault and the port."""
import socket
import struct
import sys
import threading
import time

fault, port = sys.argv[1], int(sys.argv[2])
servers = ["127.0.0.1"]
if fault == "one_of_many":
    servers = ["10.99.0.11", "10.99.0.12", "10.99.0.13"]
address = (servers[0], port)
# The workshop kills the shop before that.
end = time.monotonic() + 60
held = []
# The threads of each server, and of its clients.
workers = 4 if fault == "slow_answers" else 1


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
        if fault == "held_back":
            # Reads far less than the client has.
            while connection.recv(1 << 10):
                time.sleep(0.05)
            connection.close()
            continue
        request = connection.recv(1 << 16)
        if fault == "resets":
            reset(connection)
            continue
        if fault == "slow_answers":
            time.sleep(0.6)
        if connection.getsockname()[0] == "10.99.0.13":
            time.sleep(0.2)
        connection.sendall(request * (200 if fault == "loss" else 1))
        connection.close()


def call(server):
    """Sends a request, and reads until the server closes."""
    source = ("10.99.0.1", 0) if fault == "one_of_many" else None
    with socket.create_connection((server, port), timeout=2, source_address=source) as client:
        client.sendall(b"x" * 1000)
        while client.recv(1 << 16):
            pass


def attempt(server):
    """Calls once. The fault may make the call fail."""
    try:
        call(server)
    except OSError:
        pass


def upload():
    """Sends as much as the server takes."""
    with socket.create_connection(address) as client:
        while time.monotonic() < end:
            client.send(b"x" * 10000)


def attempts(server):
    """Calls a server until the shop closes."""
    while time.monotonic() < end:
        attempt(server)
        time.sleep(pause)


def listen(server):
    """Listens, and answers unless the fault is a server that does not accept."""
    listener = socket.socket()
    if fault == "held_back":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((server, port))
    listener.listen(2 if fault == "accept_queue" else 128)
    held.append(listener)
    if fault != "accept_queue":
        for _ in range(workers):
            threading.Thread(target=serve, args=(listener,), daemon=True).start()


if fault != "refused":
    for server in servers:
        listen(server)
pause = {"churn": 0.01, "slow_connect": 0.05, "loss": 0.05}.get(fault, 0.2)
if fault == "accept_queue":
    for _ in range(8):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        held.append(client)
    time.sleep(end - time.monotonic())
elif fault == "not_closed":
    for _ in range(5):
        socket.create_connection(address).close()
    time.sleep(end - time.monotonic())
elif fault == "held_back":
    upload()
else:
    clients = [threading.Thread(target=attempts, args=(server,)) for server in servers * workers]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
