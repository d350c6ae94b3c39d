#!/usr/bin/env python3
"""Records tests/data/incident.jsonl.zst: an incident in a small shop, with real sockets.

    cargo build --release && sudo python3 tests/data/incident.py

Each service is a process with its own address, and all are in a new network namespace. For the tracer, which is outside of
it, they are the pods of tests/data/shop.json. The storefront calls the checkout, which calls payments and the database. Then
the database stops, and the checkout retries and gets slow. Payments resets some of its connections, and the stock service
accepts no connections.
"""

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The pods and Services, as kubectl prints them.
PODS = os.path.join(ROOT, "tests/data/shop.json")
CAPTURE = os.path.join(ROOT, "tests/data/incident.jsonl.zst")
TRACER = os.environ.get("KMESH_TRACE_BIN", os.path.join(ROOT, "target/release/kmesh-trace"))

STOREFRONT, CHECKOUT, PAYMENTS, DATABASE, STOCK = (f"10.244.0.{last}" for last in (10, 20, 30, 40, 50))
SUBNET = "10.244.0.0/24"
CLONE_NEWNET = 0x40000000


def child(name, body):
    """Starts a process with this name."""
    pid = os.fork()
    if pid == 0:
        with open("/proc/self/comm", "w") as comm:
            comm.write(name)
        try:
            body()
        finally:
            os._exit(0)
    return pid


def listener(address, port, backlog=64):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.listen(backlog)
    return server


def call(source, address, port, request, timeout=5.0):
    """Sends a request and reads the response. Returns its length, or None if there was none."""
    with socket.socket() as client:
        client.settimeout(timeout)
        client.bind((source, 0))
        try:
            client.connect((address, port))
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            length = 0
            while part := client.recv(65536):
                length += len(part)
            return length
        except OSError:
            return None


def serve(server, answer, calls=None):
    """Answers each client in a separate thread, forever or for this number of calls."""

    def one(peer):
        with peer:
            try:
                request = b""
                while part := peer.recv(65536):
                    request += part
                answer(peer, request)
            except OSError:
                pass

    threads = []
    while calls is None or len(threads) < calls:
        peer, _ = server.accept()
        threads.append(threading.Thread(target=one, args=(peer,), daemon=True))
        threads[-1].start()
    server.close()
    for thread in threads:
        thread.join()


def database():
    def answer(peer, request):
        time.sleep(0.002)
        peer.sendall(b"row;" * 200)

    # After 40 calls it exits, and later connections are refused.
    serve(listener(DATABASE, 5432), answer, calls=40)


def payments():
    requests = [0]

    def answer(peer, request):
        requests[0] += 1
        if requests[0] % 10 == 0:
            # A linger time of 0 makes close() send a RST.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        peer.sendall(b'{"paid":true}')

    serve(listener(PAYMENTS, 8443), answer)


def checkout():
    def answer(peer, request):
        call(CHECKOUT, PAYMENTS, 8443, b"POST /charge " + bytes(100))
        if call(CHECKOUT, DATABASE, 5432, b"SELECT * FROM orders") is None:
            # The checkout retries while the storefront waits.
            time.sleep(0.15)
            call(CHECKOUT, DATABASE, 5432, b"SELECT * FROM orders")
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2000))

    serve(listener(CHECKOUT, 8080), answer)


def stock():
    # Never accepts. When its queue is full, the kernel drops SYNs.
    server = listener(STOCK, 9000, backlog=0)
    signal.pause()
    server.close()


def storefront():
    for number in range(60):
        call(STOREFRONT, CHECKOUT, 8080, b"GET /buy HTTP/1.1\r\n\r\n" + bytes(number))
        if number % 10 == 9:
            call(STOREFRONT, STOCK, 9000, b"GET /stock", timeout=0.25)
        time.sleep(0.03)


def main():
    if os.path.exists(CAPTURE):
        os.remove(CAPTURE)
    tracer = subprocess.Popen(
        [TRACER, "--ip", SUBNET, "--events", "open,update,close", "--interval", "1s"]
        + ["--pods-file", PODS, "-o", "none", "--write", CAPTURE],
        stderr=subprocess.PIPE,
        text=True,
    )
    for expected in ("tracing", "names come from"):
        if not (line := tracer.stderr.readline()).startswith(f"kmesh-trace: {expected}"):
            sys.exit(f"the tracer did not start: {line}")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        sys.exit(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (STOREFRONT, CHECKOUT, PAYMENTS, DATABASE, STOCK):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    servers = {"database": database, "payments": payments, "checkout": checkout, "stock": stock}
    pids = [child(name, body) for name, body in servers.items()]
    time.sleep(0.3)
    os.waitpid(child("storefront", storefront), 0)
    tracer.send_signal(signal.SIGINT)
    print(tracer.stderr.read(), end="")
    status = tracer.wait()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.chmod(CAPTURE, 0o644)
    print(f"{CAPTURE}: {os.path.getsize(CAPTURE)} bytes")
    sys.exit(status)


if __name__ == "__main__":
    main()
