"""Runs exported files in one runtime, in a process that can't import ccrewrite: ``python run_files.py RUNTIME JOBS.json``.

``JOBS.json`` is a list of ``{"file", "inputs": {name: {"shape", "type", "data"}}}``; data are paths of raw numbers. The
answers, ``[{"shape", "data"}]`` or ``{"error"}`` for each job, go to ``JOBS.json.RUNTIME``. ``run_web.mjs`` does so in node.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, Any]
Run = Callable[[Feeds], list[Any]]


def onnxruntime(file: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)  # pyright: ignore[reportReturnType]


def openvino(file: str) -> Run:
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(file, "CPU", config)
    return lambda feeds: [model(feeds)[output] for output in model.outputs]


def pt2(file: str) -> Run:
    import torch

    module = torch.export.load(file).module()
    return lambda feeds: _tensors(module(*_torch(feeds)))


def aoti(file: str) -> Run:
    import torch

    package = torch._inductor.aoti_load_package(file)
    return lambda feeds: _tensors(package(*_torch(feeds)))


def executorch(file: str) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")
    return lambda feeds: _tensors(method.execute(_torch(feeds)))


def _torch(feeds: Feeds) -> list[Any]:
    import torch

    return [torch.from_numpy(v) for v in feeds.values()]


def _tensors(output: Any) -> list[Any]:
    return [t.detach().numpy() for t in (output if isinstance(output, (list, tuple)) else [output])]


RUNTIMES = {
    "onnxruntime": onnxruntime,
    "OpenVINO": openvino,
    "torch.export": pt2,
    "AOTInductor": aoti,
    "ExecuTorch": executorch,
    "ExecuTorch, XNNPACK": executorch,
}


def main(runtime: str, jobs: Path) -> None:
    sys.modules["ccrewrite"] = None  # type: ignore[assignment]  # importing it is an error from here on
    answers: list[Any] = []
    for n, job in enumerate(json.loads(jobs.read_text())):
        try:
            run = RUNTIMES[runtime](job["file"])
            outputs = run({name: _read(value) for name, value in job["inputs"].items()})
            answers.append([_write(o, jobs.with_name(f"{runtime}.{n}.{i}.raw")) for i, o in enumerate(outputs)])
        except Exception as error:  # a runtime's refusal is an answer
            answers.append({"error": f"{type(error).__name__}: {error}"})
    jobs.with_name(f"{jobs.name}.{runtime}").write_text(json.dumps(answers))


def _read(value: dict[str, Any]) -> Any:
    return np.fromfile(value["data"], dtype=value["type"]).reshape(value["shape"])


def _write(output: Any, path: Path) -> dict[str, Any]:
    assert output.dtype == np.float32, output.dtype
    output.tofile(path)
    assert path.stat().st_size == 4 * math.prod(output.shape)
    return {"shape": list(output.shape), "data": str(path)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
