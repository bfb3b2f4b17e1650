"""Paints a photo on NVIDIA Triton Inference Server; needs only Pillow and numpy.

    fastgen export triton-server -s great_wave --any-size -o models/
    tritonserver --model-repository=models/
    python examples/triton_client.py photo.jpg -o painting.png --model great_wave

Speaks the server's HTTP protocol with binary tensors (the KServe v2 inference protocol with
Triton's binary extension); `pip install tritonclient[http]` does the same.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request

import numpy as np
from PIL import Image


def infer(url: str, model: str, image: np.ndarray, timeout: float = 60.0) -> np.ndarray:
    """Sends a float32 batch (N,3,H,W) in [0,1] and returns the stylised one."""
    data = np.ascontiguousarray(image, np.float32).tobytes()
    request = {
        "inputs": [
            {
                "name": "image",
                "shape": list(image.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(data)},
            }
        ],
        "outputs": [{"name": "stylized", "parameters": {"binary_data": True}}],
    }
    header = json.dumps(request).encode()
    message = urllib.request.Request(
        f"{url.rstrip('/')}/v2/models/{model}/infer",
        data=header + data,
        headers={
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
    )
    try:
        with urllib.request.urlopen(message, timeout=timeout) as answer:
            size = int(answer.headers.get("Inference-Header-Content-Length", 0))
            body = answer.read()
    except urllib.error.HTTPError as error:
        raise SystemExit(
            f"error: the server says: {error.read().decode('utf-8', 'replace')}"
        ) from None
    except urllib.error.URLError as error:
        raise SystemExit(f"error: no server at {url}: {error.reason}") from None
    (output,) = json.loads(body[:size] if size else body)["outputs"]
    return np.frombuffer(body[size:], np.float32).reshape(output["shape"])


def main() -> None:
    """Reads a photo, asks the server, writes the painting."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photo")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--model", default="starry_night")
    parser.add_argument("--url", default="http://localhost:8000")
    args = parser.parse_args()
    with Image.open(args.photo) as photo:
        pixels = np.asarray(photo.convert("RGB"), np.float32) / 255
    result = infer(args.url, args.model, pixels.transpose(2, 0, 1)[None])[0]
    picture = np.rint(result.transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(picture).save(args.output)


if __name__ == "__main__":
    main()
