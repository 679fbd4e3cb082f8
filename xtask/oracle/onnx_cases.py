"""The `onnx` package's own backend tests as files, for `cargo xtask onnx-conformance`.

Usage: onnx_cases.py OUTPUT_FOLDER
Writes OUTPUT_FOLDER/KIND/NAME/{model.onnx, test_data_set_N/{input_K,output_K}.pb}, the layout that
the package documents, and OUTPUT_FOLDER/cases.json. Kinds:

- node: one operator a case; those whose inputs and outputs are all tensors;
- pytorch-converted, pytorch-operator, simple: the folders of the package, as they are;
- light: the networks AlexNet to ZFNet-512. Their weights are made by `ConstantOfShape` nodes, so
  the files are small; input and tolerance are those of the package's runner, the expected output
  lies beside the model.

cases.json: {"KIND/NAME": {"rtol", "atol", "opset", "ops", "other_types"?}}. Two outputs are close
where |found - expected| <= atol + rtol * |expected|; for a bfloat16 output the package's runner
takes max(rtol, 2**-6). `ops` names what the graph, its subgraphs and its functions call;
`other_types` is there where an input or output is not a tensor.
"""

import json
import pathlib
import shutil
import sys
import warnings

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper
from onnx.backend.test.case.model import collect_testcases as collect_networks
from onnx.backend.test.case.node import collect_testcases as collect_nodes
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

DATA = pathlib.Path(onnx.backend.test.__file__).parent / "data"


def ops_of(nodes):
    for node in nodes:
        yield f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from ops_of(graph.node)


def entry(case, model):
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    out = {
        "rtol": case.rtol,
        "atol": case.atol,
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ops": sorted(set(ops_of(nodes))),
    }
    values = [*model.graph.input, *model.graph.output]
    others = {v.type.WhichOneof("value") or "none" for v in values} - {"tensor_type"}
    if others:
        out["other_types"] = sorted(others)
    return out


def write_tensors(folder, kind, values, names):
    folder.mkdir(parents=True, exist_ok=True)
    for k, (value, name) in enumerate(zip(values, names, strict=True)):
        if not isinstance(value, onnx.TensorProto):
            value = numpy_helper.from_array(np.asarray(value), name)
        (folder / f"{kind}_{k}.pb").write_bytes(value.SerializeToString())


def node_cases(folder):
    for case in collect_nodes():
        out = entry(case, case.model)
        if "other_types" in out:
            continue
        graph = case.model.graph
        target = folder / "node" / case.name
        for i, (inputs, outputs) in enumerate(case.data_sets):
            data = target / f"test_data_set_{i}"
            write_tensors(data, "input", inputs, [v.name for v in graph.input])
            write_tensors(data, "output", outputs, [v.name for v in graph.output])
        onnx.save(case.model, target / "model.onnx")
        yield f"node/{case.name}", out


def folder_cases(folder, kind):
    for case in load_model_tests(kind=kind):
        target = folder / kind / case.name
        shutil.copytree(case.model_dir, target)
        yield f"{kind}/{case.name}", entry(case, onnx.load(target / "model.onnx"))


def light_cases(folder):
    for case in collect_networks():
        if case.kind != "real":
            continue
        source = DATA / "light" / pathlib.Path(case.url).name
        target = folder / "light" / case.name
        data = target / "test_data_set_0"
        data.mkdir(parents=True)
        shutil.copy(source, target / "model.onnx")
        model = onnx.load(source)
        weights = {t.name for t in model.graph.initializer}
        inputs = [v for v in model.graph.input if v.name not in weights]
        values = [Runner.generate_dummy_data(v) for v in inputs]
        write_tensors(data, "input", values, [v.name for v in inputs])
        for k in range(len(model.graph.output)):
            name = f"output_{k}.pb"
            shutil.copy(source.with_name(f"{source.stem}_{name}"), data / name)
        yield f"light/{case.name}", entry(case, model)


def main(folder):
    # Cases divide by zero and overflow on purpose.
    warnings.simplefilter("ignore", RuntimeWarning)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder} is not empty")
    cases = dict(node_cases(folder))
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        cases.update(folder_cases(folder, kind))
    cases.update(light_cases(folder))
    text = json.dumps(dict(sorted(cases.items())), indent=1)
    (folder / "cases.json").write_text(text + "\n")
    kinds = [name.split("/")[0] for name in cases]
    print(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)))


if __name__ == "__main__":
    main(sys.argv[1])
