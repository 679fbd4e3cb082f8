"""all-MiniLM-L6-v2 quantized by this library and by others: scores, bytes and seconds.

Usage: minilm_compare.py WHEEL_FOLDER MODEL_FOLDER QUANTIZED_FOLDER [PAGE]
WHEEL_FOLDER has the weights for PyTorch, MODEL_FOLDER what `../minilm.py` writes, QUANTIZED_FOLDER
what `--out` of the example `quantize_minilm` has written. The others quantize here. Every model runs
on the same sentences, none of which calibrated it, in padded batches: files in ONNX Runtime, those
of torchao in PyTorch. PAGE is written with the tables in Markdown.
"""

import contextlib
import datetime
import io
import json
import logging
import pathlib
import platform
import sys
import tempfile
import time
import types
import warnings
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    matmul_nbits_quantizer,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import minilm
from minilm_scores import alone, batches, onnx_embeddings, scores, sentences

# Imported by Neural Compressor for the configurations of models in Hugging Face's folders.
sys.modules.setdefault("transformers", types.ModuleType("transformers"))
from onnx_neural_compressor.quantization import config as inc
from onnx_neural_compressor.quantization import matmul_nbits_quantizer as inc_nbits
from onnx_neural_compressor.quantization import quantize as inc_quantize
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import MappingType

DYNAMIC = "8-bit weights and activations, ranges found in each run"
STATIC = "8-bit weights and activations, ranges from 128 calibration sentences"
WEIGHTS = "8-bit weights"
FOUR = "4-bit weights in groups of 32, embeddings in 8 bits or as the method says"
OURS = "this library"

# Rows of the example `quantize_minilm`, and how the table names them.
EXAMPLE = [
    (DYNAMIC, "int8 dynamic", "QuantizeDynamic::recommended"),
    (DYNAMIC, "int8 dynamic smoothed", "the same after SmoothQuant, calibrated"),
    (STATIC, "int8 static", "QuantizeStatic"),
    (STATIC, "int8 static smoothed", "the same after SmoothQuant, strengths searched"),
    (WEIGHTS, "int8 weights", "QuantizeWeights::int8"),
    (WEIGHTS, "int8 weights searched", "the same, ranges searched"),
    (WEIGHTS, "int8 weights group 32", "groups of 32, ranges searched"),
    (FOUR, "uint4 nearest", "nearest, zero points"),
    (FOUR, "uint4 awq", "AWQ, zero points"),
    (FOUR, "uint4 gptq act-order", "GPTQ, zero points, act-order"),
    (FOUR, "uint4 gptq embeddings too", "the same, embeddings in 4 bits, too"),
]


class Reader(CalibrationDataReader):
    """Calibration sentences without padding, so that none of it gets into ranges."""

    def __init__(self, data):
        self.data = data
        self.rewind()

    def rewind(self):
        self.rows = iter(alone(self.data))

    def get_next(self):
        return next(self.rows, None)


class Padded(Reader):
    """All of them padded to one length."""

    def rewind(self):
        self.rows = iter(batches(self.data))


class Files:
    """Peers that turn an ONNX file into another."""

    def __init__(self, model, calibration, folder):
        self.model, self.calibration, self.folder = str(model), calibration, folder
        self.count = 0

    def path(self):
        self.count += 1
        return str(self.folder / f"{self.count}.onnx")

    def dynamic(self):
        out = self.path()
        quantize_dynamic(self.model, out, per_channel=True, weight_type=QuantType.QInt8)
        return out

    def static(self, **more):
        prepared, out = self.path(), self.path()
        quant_pre_process(self.model, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            Reader(self.calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            **more,
        )
        return out

    def nbits(self, bits, **more):
        out = self.path()
        quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
            onnx.load(self.model), bits=bits, block_size=32, is_symmetric=False, **more
        )
        quantizer.process()
        quantizer.model.save_model_to_file(out, use_external_data_format=False)
        return out

    def inc_smooth(self, alpha):
        out = self.path()
        config = inc.SmoothQuantConfig(
            alpha=alpha,
            calibration_data_reader=Reader(self.calibration),
            per_channel=True,
            quant_format=QuantFormat.QDQ,
            calibration_sampling_size=len(self.calibration["input_ids"]),
        )
        inc_quantize(self.model, out, config)
        return out

    def inc_nbits(self, config):
        out = self.path()
        quantizer = inc_nbits.MatMulNBitsQuantizer(
            self.model, n_bits=4, block_size=32, is_symmetric=False, algo_config=config
        )
        quantizer.process()
        model = quantizer.model
        onnx.save(getattr(model, "model", model), out)
        return out


class Modules:
    """torchao, which turns a PyTorch module into another."""

    def __init__(self, wheel, folder):
        source = next(wheel.glob("**/model.safetensors")).parent
        self.source, self.folder = source, folder
        self.config = json.loads((source / "config.json").read_text())

    def quantized(self, config, embeddings=None):
        tensors = minilm.read_safetensors(self.source / "model.safetensors")
        model = minilm.Encoder(self.config, tensors).eval()
        if embeddings is not None:
            is_table = lambda module, name: isinstance(module, torch.nn.Embedding)
            # The model adds whole columns of the small tables, which have to stay tensors.
            words = lambda module, name: is_table(module, name) and "word" in name
            quantize_(model, embeddings, words)
        quantize_(model, config)
        return model

    def bytes(self, model):
        path = self.folder / "torchao.pt"
        torch.save(model.state_dict(), path)
        return path.stat().st_size

    def embeddings(self, model, data):
        with torch.no_grad():
            rows = [
                model(*(torch.from_numpy(array) for array in batch.values())).numpy()
                for batch in batches(data)
            ]
        return np.concatenate(rows)


def size(path):
    """Of the file and what it keeps beside it."""
    path = pathlib.Path(path)
    beside = [path.with_name(path.name + end) for end in ("_data", ".data")]
    return sum(p.stat().st_size for p in [path, *beside] if p.exists())


def peers(files, modules):
    nearest8 = lambda: IntxWeightOnlyConfig(torch.int8, PerAxis(0))
    group4 = lambda: IntxWeightOnlyConfig(
        torch.int4, PerGroup(32), mapping_type=MappingType.ASYMMETRIC
    )
    gptq = lambda: inc_nbits.GPTQWeightOnlyQuantConfig(Reader(files.calibration))
    awq = lambda: inc_nbits.AWQWeightOnlyQuantConfig(Padded(files.calibration))
    ort_name, inc_name, ao_name = "ONNX Runtime", "Neural Compressor", "torchao"
    tables = {"op_types_to_quantize": ("MatMul", "Gather")}
    return [
        (DYNAMIC, ort_name, "quantize_dynamic, per channel", files, files.dynamic),
        (
            DYNAMIC,
            ao_name,
            "Int8DynamicActivationInt8Weight (linear), Intx int8 (word embeddings)",
            modules,
            lambda: modules.quantized(Int8DynamicActivationInt8WeightConfig(), nearest8()),
        ),
        (STATIC, ort_name, "quantize_static, per channel", files, files.static),
        (
            STATIC,
            ort_name,
            "quantize_static, per channel, MatMul and Gather alone",
            files,
            lambda: files.static(op_types_to_quantize=["MatMul", "Gather"]),
        ),
        (STATIC, inc_name, "SmoothQuant, alpha 0.5", files, lambda: files.inc_smooth(0.5)),
        (STATIC, inc_name, "SmoothQuant, alpha searched", files, lambda: files.inc_smooth("auto")),
        (
            WEIGHTS,
            ao_name,
            "Int8WeightOnly (linear), Intx int8 (word embeddings)",
            modules,
            lambda: modules.quantized(Int8WeightOnlyConfig(), nearest8()),
        ),
        (
            WEIGHTS,
            ort_name,
            "MatMulNBits, groups of 32, embeddings in float",
            files,
            lambda: files.nbits(8),
        ),
        (
            FOUR,
            ao_name,
            "Intx int4 (linear), Intx int8 (word embeddings)",
            modules,
            lambda: modules.quantized(group4(), nearest8()),
        ),
        (
            FOUR,
            ort_name,
            "MatMulNBits, nearest, embeddings in float",
            files,
            lambda: files.nbits(4),
        ),
        (
            FOUR,
            ort_name,
            "MatMulNBits, nearest, embeddings in 4 bits, too",
            files,
            lambda: files.nbits(4, **tables),
        ),
        (FOUR, inc_name, "nearest, embeddings in float", files, lambda: files.inc_nbits(None)),
        (FOUR, inc_name, "AWQ, embeddings in float", files, lambda: files.inc_nbits(awq())),
        (FOUR, inc_name, "GPTQ, embeddings in float", files, lambda: files.inc_nbits(gptq())),
    ]


def quietly(make):
    """What `make` returns, and the seconds it took, without what it prints."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        made = make()
        return made, time.perf_counter() - start


def rows(wheel, model_folder, quantized):
    model = model_folder / "model.onnx"
    evaluation = sentences(model_folder / "evaluation.npz")
    calibration = sentences(model_folder / "calibration.npz")
    exact = onnx_embeddings(model, evaluation)
    seconds = json.loads((quantized / "seconds.json").read_text())
    failed = []
    yield "float", "", "", scores(exact, exact), model.stat().st_size, 0.0
    for kind, name, method in EXAMPLE:
        path = quantized / f"{name.replace(' ', '-')}.onnx"
        found = onnx_embeddings(path, evaluation)
        yield kind, OURS, method, scores(exact, found), size(path), seconds[name]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        files, modules = Files(model, calibration, folder), Modules(wheel, folder)
        for kind, tool, method, maker, make in peers(files, modules):
            try:
                made, taken = quietly(make)
                if maker is files:
                    found, length = onnx_embeddings(made, evaluation), size(made)
                else:
                    found, length = maker.embeddings(made, evaluation), maker.bytes(made)
            except Exception as error:  # A peer's failure is a row of the page.
                said = str(error).strip().splitlines() or [""]
                failed.append(f"{tool}, {method}: {type(error).__name__}: {said[0][:200]}")
                continue
            yield kind, tool, method, scores(exact, found), length, taken
    for line in failed:
        yield "failed", line, "", None, 0, 0.0


def page(found):
    names = ["onnxruntime", "torchao", "onnx-neural-compressor", "torch"]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        "# Quantization beside other tools",
        "",
        "This page is written by `cargo xtask minilm-compare --write`.",
        "",
        "The model is all-MiniLM-L6-v2, a sentence encoder of 22.7 million weights. 256 sentences, none",
        "of which calibrated anything, are embedded by the float model and by each quantized one:",
        "*cosine* is that of an embedding and its original, *neighbour kept* the share of sentences whose",
        "nearest other sentence is the same, *error* the mean square difference of entries. ONNX files of",
        "every tool run in ONNX Runtime, torchao's modules in PyTorch. *Bytes* is the size of the file",
        "(torchao: of the saved state). *Seconds* are from the float file to the quantized file (torchao:",
        "to the quantized module), calibration included, one run each, one after the other.",
        "",
        f"Measured on {datetime.date.today()}, {platform.machine()}, {versions}.",
    ]
    head = [
        "| tool | method | mean cosine | lowest | neighbour kept | error | bytes | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    kinds = [kind for kind in (DYNAMIC, STATIC, WEIGHTS, FOUR)]
    for kind in kinds:
        lines += ["", f"## {kind}", "", *head]
        for row_kind, tool, method, score, length, seconds in found:
            if row_kind == kind:
                lines.append(row(tool, method, score, length, seconds))
    failed = [tool for kind, tool, *_ in found if kind == "failed"]
    if failed:
        lines += ["", "## What did not run", "", *(f"- {line}" for line in failed)]
    return "\n".join(lines) + "\n"


def row(tool, method, score, length, seconds):
    mean, lowest, kept, error = score
    return (
        f"| {tool} | {method} | {mean:.5f} | {lowest:.5f} | {100 * kept:.1f} % | {error:.2e} | "
        f"{length:,} | {seconds:.1f} |"
    )


def main():
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    folders = [pathlib.Path(argument) for argument in sys.argv[1:4]]
    found = []
    for entry in rows(*folders):
        found.append(entry)
        kind, tool, method, score, length, seconds = entry
        if kind == "failed":
            print(f"failed: {tool}", flush=True)
        else:
            print(row(tool or kind, method, score, length, seconds), flush=True)
    if len(sys.argv) > 4:
        path = pathlib.Path(sys.argv[4])
        partial = path.with_name(path.name + ".partial")
        partial.write_text(page(found))
        partial.replace(path)
        print(f"{path} is written")


if __name__ == "__main__":
    main()
