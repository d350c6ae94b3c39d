#!/usr/bin/env python3
"""Records tests/data/incident.jsonl.zst: some seconds of a small shop in trouble, from real sockets.

    cargo build --release && sudo python3 tests/data/incident.py

Each service is a process with an address of its own, in a network namespace of their own: pods, for a tracer outside of
it, which names them by tests/data/shop.json. The storefront asks the
checkout, which asks payments and the database. Then the database goes, the checkout retries and gets slow, payments
resets some of what it had accepted, and the stock service accepts nothing any more.
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
# Who they are: what kubectl would print of such a shop.
PODS = os.path.join(ROOT, "tests/data/shop.json")
CAPTURE = os.path.join(ROOT, "tests/data/incident.jsonl.zst")
TRACER = os.environ.get("KMESH_TRACE_BIN", os.path.join(ROOT, "target/release/kmesh-trace"))

STOREFRONT, CHECKOUT, PAYMENTS, DATABASE, STOCK = (f"10.244.0.{last}" for last in (10, 20, 30, 40, 50))
SUBNET = "10.244.0.0/24"
CLONE_NEWNET = 0x40000000


def child(name, body):
    """A process of that name."""
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


def call(source, address, port, request, patience=5.0):
    """Asks and reads all of the answer; how long it is, or None where there was no answer."""
    with socket.socket() as client:
        client.settimeout(patience)
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
    """Answers each client in a thread of its own, for good or so many times."""

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

    # After so many it is gone: what follows is refused.
    serve(listener(DATABASE, 5432), answer, calls=40)


def payments():
    asked = [0]

    def answer(peer, request):
        asked[0] += 1
        if asked[0] % 10 == 0:
            # Closed with a linger time of 0: a reset.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        peer.sendall(b'{"paid":true}')

    serve(listener(PAYMENTS, 8443), answer)


def checkout():
    def answer(peer, request):
        call(CHECKOUT, PAYMENTS, 8443, b"POST /charge " + bytes(100))
        if call(CHECKOUT, DATABASE, 5432, b"SELECT * FROM orders") is None:
            # It retries, and the storefront waits.
            time.sleep(0.15)
            call(CHECKOUT, DATABASE, 5432, b"SELECT * FROM orders")
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2000))

    serve(listener(CHECKOUT, 8080), answer)


def stock():
    # It accepts nothing; when its queue is full, SYNs are dropped.
    server = listener(STOCK, 9000, backlog=0)
    signal.pause()
    server.close()


def storefront():
    for number in range(60):
        call(STOREFRONT, CHECKOUT, 8080, b"GET /buy HTTP/1.1\r\n\r\n" + bytes(number))
        if number % 10 == 9:
            call(STOREFRONT, STOCK, 9000, b"GET /stock", patience=0.25)
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
    for awaited in ("tracing", "names come from"):
        if not (said := tracer.stderr.readline()).startswith(f"kmesh-trace: {awaited}"):
            sys.exit(f"the tracer did not start: {said}")
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
