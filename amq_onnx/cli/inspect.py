"""amq inspect: what can be quantized before anything runs."""

from __future__ import annotations

import argparse
from typing import Any

from amq_onnx.cli import console, options
from amq_onnx.cli.summary import write_json
from amq_onnx.executor.interpreter import unsupported_operators
from amq_onnx.model.file import file_bytes, read_model
from amq_onnx.model.heads import find_heads
from amq_onnx.model.inputs import input_specs
from amq_onnx.rewriting import oldest_runtime, opset_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    options.add_graph(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "json")
    model = read_model(arguments.model)
    lacking = unsupported_operators(model)
    prepared = options.prepared(arguments, model)
    heads, left_out = find_heads(prepared.model)
    target = prepared.target
    activations = {site.name for site in prepared.sites.activations}
    integer = {site.name: site.is_integer(activations) for site in prepared.sites.weights}
    found: dict[str, Any] = {
        "target": target.name,
        "model": str(arguments.model),
        "bytes": file_bytes(arguments.model),
        "opset": opset_of(model),
        "written_opset": opset_of(prepared.model),
        "oldest_onnxruntime": oldest_runtime(prepared.model),
        "inputs": {spec.name: [str(spec.dtype), list(spec.shape)] for spec in input_specs(model)},
        "loss": {head.source: head.story for head in heads}
        | {name: f"left out: {reason}" for name, reason in left_out.items()},
        "unsupported_operators": [
            {"operator": entry.op_type, "domain": entry.domain, "opset": entry.opset, "node": entry.node}
            for entry in lacking
        ],
        "weights": {
            site.name: {
                "shape": list(site.shape),
                "operators": list(site.operators),
                "kernel": "integer" if integer[site.name] else "float",
                "bytes": {
                    bits: target.weight(prepared.keys[site.name], site.shape, bits, integer[site.name]).file_bytes()
                    for bits in target.weight_widths
                },
            }
            for site in prepared.sites.weights
        },
        "activations": {site.name: list(site.readers) for site in prepared.sites.activations},
        "left_float": prepared.sites.left_float,
        "speed": list(target.speed),
    }
    write_json(arguments.json, found)
    _print(found)


def _print(found: dict[str, Any]) -> None:
    console.line(
        f"{found['model']}: {console.count(found['bytes'])} bytes, opset {found['opset']}; quantized files have opset "
        f"{found['written_opset']} and run on onnxruntime {found['oldest_onnxruntime']} and newer"
    )
    for name, (dtype, shape) in found["inputs"].items():
        console.line(f"input '{name}': {dtype} {['?' if size is None else size for size in shape]}")
    for tensor, loss in found["loss"].items():
        console.line(f"loss on '{tensor}': {loss}")
    console.table(
        f"{len(found['weights'])} weights that can be quantized",
        ["weight", "read by", "kernel", "shape", "bytes at 8 bits", "4 bits", "2 bits"],
        [
            [
                name,
                ", ".join(site["operators"]),
                site["kernel"],
                "x".join(map(str, site["shape"])),
                *(console.count(site["bytes"][bits]) for bits in (8, 4, 2)),
            ]
            for name, site in found["weights"].items()
        ],
        text_columns=4,
    )
    for note in found["speed"]:
        console.note(note)
    console.table(
        f"{len(found['activations'])} activations that can be quantized",
        ["tensor", "read by"],
        [[name, ", ".join(readers)] for name, readers in found["activations"].items()],
        text_columns=2,
    )
    if found["left_float"]:
        rows = [[name, reason] for name, reason in found["left_float"].items()]
        console.table("left in float", ["tensor", "reason"], rows, text_columns=2)
    if found["unsupported_operators"]:
        rows = [
            [entry["operator"], entry["domain"] or "ai.onnx", str(entry["opset"]), entry["node"]]
            for entry in found["unsupported_operators"]
        ]
        console.table(
            "operators that amq can't run: sensitivity can't be measured",
            ["operator", "domain", "opset", "node"],
            rows,
            text_columns=4,
        )
