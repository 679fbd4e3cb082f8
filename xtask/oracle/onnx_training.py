"""Models that PyTorch exports, and how PyTorch trains them from the exported weights.

Usage: onnx_training.py OUTPUT_FOLDER
Writes to OUTPUT_FOLDER/training, for each model of `MODELS`:

- NAME_torchscript.onnx and NAME_dynamo.onnx: the initial model in evaluation mode by both of
  torch's exporters, the batch axis symbolic, weights kept as the module has them;
- more exports of the same weights: cnn_torchscript_train.onnx, its batch norm in training mode;
  lstm_ and bert_dynamo_optimized.onnx, as the newer exporter writes them by default: weights
  transposed, reordered and gathered beforehand;
- NAME.npz: 320 samples, the input under the name of the graph's input, and `label` (int64);
- losses.json: {NAME: {"sgd", "adamw", "initial", "trained"}}. `sgd` and `adamw` are the
  cross-entropies of 20 batches, each before the update by it: batch k is the samples 16k..16k+16,
  in order, the model in training mode. `initial` and `trained` are the outputs for the first 16
  samples in evaluation mode, before the first step and after the 20 of `sgd`.

cnn_fresh is cnn as it is initialized, and has no samples of its own. The older exporter writes
equal tensors once, so all scales and variances of one length are `Identity` of the same
initializer, though PyTorch trains each by itself.

Training is in double precision from the exported single-precision weights, so that the numbers do
not depend on the processor, and all error in a comparison is that of the other side. PyTorch's
own single precision is within 2e-6 of these numbers.
"""

import copy
import json
import logging
import pathlib
import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

STEPS, BATCH, CLASSES = 20, 16, 5
SAMPLES = STEPS * BATCH
VOCABULARY, LENGTH, HIDDEN, HEADS = 40, 10, 32, 4


def mlp():
    return nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES)
    )


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm; a 1x1 convolution on the way past where the shape
    changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.past = None
        if stride != 1 or inputs != outputs:
            self.past = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.past is None else self.past(x)))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Layer(nn.Module):
    """An encoder layer as BERT has it: normalization after the residual sums."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.output = nn.Linear(HIDDEN, HIDDEN)
        self.norm1 = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN)
        self.norm2 = nn.LayerNorm(HIDDEN)

    def forward(self, x):
        def heads(t):
            return t.view(t.shape[0], t.shape[1], HEADS, HIDDEN // HEADS).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        )
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(LENGTH, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(positions))
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def trained(make):
    """The model with normalizations as if it had been trained: no two tensors are equal."""

    def make_trained():
        model = make()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model

    return make_trained


def floats(*shape):
    """Noise around a mean of the class, so that there is something to learn."""

    def samples():
        label = torch.randint(0, CLASSES, (SAMPLES,))
        mean = torch.randn(CLASSES, *shape)
        return mean[label] + torch.randn(SAMPLES, *shape), label

    return samples


def tokens():
    """Random tokens; the first says the class."""
    ids = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH))
    return ids, ids[:, 0] * CLASSES // VOCABULARY


# The model, the name of its input, and its samples.
MODELS = {
    "mlp": (mlp, "x", floats(20)),
    "cnn": (trained(Cnn), "x", floats(3, 12, 12)),
    "lstm": (Lstm, "x", floats(12, 8)),
    "bert": (trained(Bert), "ids", tokens),
}


def export_torchscript(model, example, name, path):
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=False,
        opset_version=17,
        input_names=[name],
        output_names=["logits"],
        dynamic_axes={name: {0: "batch"}, "logits": {0: "batch"}},
        training=mode.TRAINING if model.training else mode.PRESERVE,
        do_constant_folding=False,
    )


def export_dynamo(model, example, name, path, optimize=False):
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=18,
        input_names=[name],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        # Optimization merges batch norm into the convolution before it.
        optimize=optimize,
        verbose=False,
    )
    # Where a node comes from: long, and with the paths of the machine that exported.
    for node in program.model.graph:
        for key in ("stack_trace", "fx_node"):
            node.metadata_props.pop(f"pkg.torch.onnx.{key}", None)
    program.save(path, external_data=False)


def losses(model, optimizer, x, label):
    model.train()
    values = []
    for k in range(STEPS):
        batch = slice(k * BATCH, (k + 1) * BATCH)
        loss = F.cross_entropy(model(x[batch]), label[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def outputs(model, x):
    with torch.no_grad():
        return model.eval()(x[:BATCH]).tolist()


def results(model, x, label):
    x = x.double() if x.is_floating_point() else x
    sgd, adamw = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    # In order: each changes the model that the next one sees.
    return {
        "initial": outputs(sgd, x),
        "sgd": losses(sgd, torch.optim.SGD(sgd.parameters(), lr=0.05, momentum=0.9), x, label),
        "trained": outputs(sgd, x),
        "adamw": losses(
            adamw, torch.optim.AdamW(adamw.parameters(), lr=1e-3, weight_decay=0.01), x, label
        ),
    }


def case(folder, name):
    make, input_name, samples = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    x, label = samples()
    np.savez(folder / f"{name}.npz", **{input_name: x.numpy(), "label": label.numpy()})
    # Two samples: a size of one would be taken for a constant.
    what = (x[:2], input_name)
    export_torchscript(model, *what, folder / f"{name}_torchscript.onnx")
    export_dynamo(model, *what, folder / f"{name}_dynamo.onnx")
    out = {name: results(model, x, label)}
    if name in ("lstm", "bert"):
        export_dynamo(model, *what, folder / f"{name}_dynamo_optimized.onnx", optimize=True)
    if name == "cnn":
        training = copy.deepcopy(model).train()
        export_torchscript(training, *what, folder / "cnn_torchscript_train.onnx")
        fresh = Cnn().eval()
        export_torchscript(fresh, *what, folder / "cnn_fresh_torchscript.onnx")
        out["cnn_fresh"] = results(fresh, x, label)
    return out


def main(folder):
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    folder = pathlib.Path(folder) / "training"
    folder.mkdir(parents=True, exist_ok=True)
    out = {}
    for name in MODELS:
        out.update(case(folder, name))
    (folder / "losses.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
