"""Writes the models of the `onnx` rows of `cargo xtask bench`.

    onnx_models.py FOLDER NAME..

For each NAME: `NAME.onnx`; `NAME.safetensors`, its inputs by name; and `NAME.expected`, its outputs
one after the other as little-endian f32, as ONNX Runtime computes them. Weights, batch-norm
statistics and inputs are random, from a fixed seed: times do not depend on them.
"""

import json
import math
import os
import pathlib
import struct
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

SEED = 7
OPSET = 18
DTYPES = {"float32": "F32", "int64": "I64", "uint8": "U8", "int8": "I8"}
# Images that the static quantization takes its ranges from.
CALIBRATION = 8


class Layer(nn.Module):
    """An encoder layer of BERT."""

    def __init__(self, width, heads, feedforward):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def split(self, x):
        batch, steps, width = x.shape
        return x.view(batch, steps, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x, mask):
        q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Bert(nn.Module):
    """BERT's encoder, with the attention mask that a tokenizer gives."""

    def __init__(self, vocabulary, positions, width, heads, feedforward, layers):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, feedforward) for _ in range(layers))

    def forward(self, input_ids, attention_mask):
        steps = torch.arange(input_ids.shape[1])
        x = self.words(input_ids) + self.positions(steps) + self.types.weight[0]
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return x


def randomise_statistics(model):
    """Batch norms as training leaves them: none is the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def export(model, inputs, outputs, path):
    torch.onnx.export(
        model.eval(),
        tuple(torch.from_numpy(x) for x in inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=outputs,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )


def image(seed):
    return np.random.default_rng(seed).standard_normal((1, 3, 224, 224), np.float32)


def vision(name, path):
    import torchvision

    torch.manual_seed(SEED)
    model = getattr(torchvision.models, name)(weights=None)
    randomise_statistics(model)
    inputs = {"image": image(SEED)}
    export(model, inputs, ["logits"], path)
    return inputs


def minilm(path):
    torch.manual_seed(SEED)
    model = Bert(30522, 512, 384, 12, 1536, 6)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 0.05)
    # A text of 100 tokens, padded to 128.
    mask = np.zeros((1, 128), np.int64)
    mask[:, :100] = 1
    ids = np.random.default_rng(SEED).integers(0, 30522, (1, 128)) * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    export(model, inputs, ["last_hidden_state"], path)
    return inputs


class Images(CalibrationDataReader):
    def __init__(self):
        self.left = iter(range(CALIBRATION))

    def get_next(self):
        seed = next(self.left, None)
        return None if seed is None else {"image": image(1000 + seed)}


def resnet50_int8(path):
    with tempfile.TemporaryDirectory() as folder:
        full, ready = f"{folder}/full.onnx", f"{folder}/ready.onnx"
        inputs = vision("resnet50", full)
        # Folds batch norms into convolutions, as ONNX Runtime's guide asks for.
        quant_pre_process(full, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return inputs


def minilm_int8(path):
    with tempfile.TemporaryDirectory() as folder:
        full, ready = f"{folder}/full.onnx", f"{folder}/ready.onnx"
        inputs = minilm(full)
        quant_pre_process(full, ready, skip_symbolic_shape=True)
        quantize_dynamic(ready, path, weight_type=QuantType.QInt8)
    return inputs


def matmul_int8(path, size=1024):
    random = np.random.default_rng(SEED)
    x = random.integers(0, 256, (size, size), dtype=np.uint8)
    w = random.integers(-128, 128, (size, size), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, x.shape)],
        [
            numpy_helper.from_array(w, "w"),
            numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        ],
    )
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return {"x": x}


MODELS = {
    "resnet50": lambda path: vision("resnet50", path),
    "squeezenet1_1": lambda path: vision("squeezenet1_1", path),
    "densenet121": lambda path: vision("densenet121", path),
    "mobilenet_v2": lambda path: vision("mobilenet_v2", path),
    "minilm": minilm,
    "resnet50-int8-static": resnet50_int8,
    "minilm-int8-dynamic": minilm_int8,
    "matmul1024-int8": matmul_int8,
}


def write_tensors(tensors, path):
    """A safetensors file."""
    header, start = {}, 0
    for name, x in tensors.items():
        offsets = [start, start + x.nbytes]
        header[name] = {"dtype": DTYPES[x.dtype.name], "shape": x.shape, "data_offsets": offsets}
        start += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            file.write(np.ascontiguousarray(x).tobytes())


def make(name, folder):
    """Writes a model's files; the model last, so that one that is there is complete."""
    partial = folder / f"{name}.partial"
    inputs = MODELS[name](partial)
    onnx.checker.check_model(onnx.load(partial))
    write_tensors(inputs, folder / f"{name}.safetensors")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(partial, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, inputs)
    flat = np.concatenate([x.astype("<f4").ravel() for x in outputs])
    if not np.isfinite(flat).all() or np.abs(flat).max() == 0:
        raise ValueError(f"{name} computes {flat}")
    flat.tofile(folder / f"{name}.expected")
    os.replace(partial, folder / f"{name}.onnx")


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        make(name, folder)
        print(f"wrote {folder / name}.onnx", flush=True)


if __name__ == "__main__":
    main()
