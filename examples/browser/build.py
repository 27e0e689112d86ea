"""A page that runs a rewritten network in the browser, at internal sizes chosen by sliders.

    make page                                              # builds build/browser; then:
    python -m http.server --directory build/browser        # and open http://localhost:8000

One ONNX file with open internal sizes (``export_onnx(sizes="input")``) of the demo's digit segmenter, run by onnxruntime-web
(WebAssembly, one thread). Everything is in the directory; the page asks no other server for anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.demo.canvases import CLASSES, SIZE, canvases
from ccrewrite.demo.network import segmenter
from ccrewrite.export.defaults import require_sizes

HERE = Path(__file__).parent
RUNTIME = Path(sys.prefix) / "node_modules" / "onnxruntime-web" / "dist"
"""Where `make page` puts it; elsewhere: `npm install onnxruntime-web`, and --runtime node_modules/onnxruntime-web/dist."""
FILES = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
COUNT, SEED = 12, 7
"""Canvases to look at, from the test drawings."""


def network(images: Tensor) -> nn.Module:
    """The demo's network, rewritten."""
    torch.manual_seed(0)  # the residuals' inner layers are drawn at random
    return ccrewrite.rewrite(segmenter(), images[:2]).model


def build(target: Path, runtime: Path = RUNTIME) -> None:
    """Make the page's directory at ``target``, anew."""
    missing = [name for name in FILES if not (runtime / name).is_file()]
    if missing:
        sys.exit(f"{runtime} has no {', '.join(missing)}: npm install onnxruntime-web, then --runtime .../onnxruntime-web/dist")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(HERE / "page", target)
    for name in FILES:
        shutil.copy(runtime / name, target)
    images, labels = canvases(COUNT, SEED, "test")
    file = ccrewrite.export_onnx(network(images), target / "model.onnx", images[:2], dynamic={0: "batch"}, sizes="input")
    require_sizes(target / "model.onnx", target / "model.onnx")  # onnxruntime-web takes no input that has a default
    images.numpy().tofile(target / "images.f32")
    labels.to(torch.uint8).numpy().tofile(target / "labels.u8")
    check = file.check
    described = {
        "count": COUNT,
        "side": SIZE,
        "classes": CLASSES,
        "sizes": [{"name": s.name, "sites": s.sites, "native": s.native} for s in file.size_inputs],
        "bytes": file.size,
        "checked": f"{check.runtime}: within {check.max_rel_error:.0e} of eager at {len(check.runs)} shapes and sizes",
    }
    (target / "model.json").write_text(json.dumps(described, indent=1) + "\n")
    print(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=HERE.parents[1] / "build" / "browser")
    parser.add_argument("--runtime", type=Path, default=RUNTIME, help="the directory dist of the npm package onnxruntime-web")
    arguments = parser.parse_args()
    build(arguments.target, arguments.runtime)
    print(f"python -m http.server --directory {arguments.target}")


if __name__ == "__main__":
    main()
