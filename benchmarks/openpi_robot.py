"""The real openpi client, in a virtual environment of its own: it needs another numpy than this project.

    python openpi_robot.py PORT

Its robot lives in the process that started it and speaks through standard input and output: a line of JSON
`{"prompt", "views": {view: [h, w]}, ...}` and the pictures' bytes in that order; back comes a line of JSON with the
shape of the actions and their bytes, or `{"error": text}`. Nothing of this project is imported.
"""

import json
import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def main() -> None:
    """Pass observations on until the robot hangs up."""
    policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
    inside, outside = sys.stdin.buffer, sys.stdout.buffer
    tell(outside, {"metadata": policy.get_server_metadata(), "numpy": np.__version__})
    while line := inside.readline():
        said = json.loads(line)
        for view, (height, width) in said.pop("views").items():
            data = inside.read(height * width * 3)
            said[view] = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        try:
            reply = policy.infer(said)
        except RuntimeError as error:  # the client's way of passing on a line from the server
            tell(outside, {"error": str(error)})
            continue
        actions = np.ascontiguousarray(reply["actions"], np.float32)
        told = {"shape": actions.shape, "held": reply["held"], "interventions": reply["interventions"]}
        tell(outside, told | {"bundle": reply["bundle"], "timing": reply["server_timing"]}, actions.tobytes())


def tell(outside, header, data=b"") -> None:  # noqa: ANN001
    """One answer."""
    outside.write(json.dumps(header).encode() + b"\n" + data)
    outside.flush()


if __name__ == "__main__":
    main()
