"""A teacher in a process of its own: answers POST requests on the loopback with logits.

    python -m examples.served_teacher.server --port 8765

Tensors travel as safetensors, which holds numbers alone: nothing that is received can run.
"""

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from safetensors.torch import load, save
from torch import nn

from lightning_kd.data.networks.digits import DigitsConvNet
from lightning_kd.teachers import from_checkpoint

LARGEST = 2**28
"""Bytes of the largest request."""


def make_server(teacher: nn.Module, port: int) -> ThreadingHTTPServer:
    """Return a server of a teacher on the loopback; port 0 takes a free one."""
    teacher.eval().requires_grad_(False)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Answer the inputs ``x`` with ``logits``."""
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= LARGEST:
                self.send_error(413)
                return
            try:
                x = load(self.rfile.read(length))["x"]
                with torch.no_grad():
                    body = save({"logits": teacher(x).contiguous()})
            except Exception as error:  # whatever the network says of the request is the client's to read
                self.send_error(400, type(error).__name__, str(error))
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of each request."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Serve the teacher of the digits until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--weights", default="examples/digits/teacher.safetensors")
    options = parser.parse_args()
    teacher = from_checkpoint(DigitsConvNet(width=32, depth=2), options.weights)
    with make_server(teacher, options.port) as server:
        print(f"The teacher answers at http://127.0.0.1:{server.server_port}")
        server.serve_forever()


if __name__ == "__main__":
    main()
