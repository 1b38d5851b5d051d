# SPDX-License-Identifier: Apache-2.0
"""Runs under DeepSparse's own Python: -I deepsparse_worker.py FOLDER CORES.

Reads w.npy [k, n] and x.npy [m, k], then answers a JSON line to each line on stdin:
`save` runs once and writes y.npy, `time` runs once and says how long it took.
"""

import json
import os
import resource
import sys
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# DeepSparse writes its banner to stdout: answers keep the pipe for themselves.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import deepsparse  # noqa: E402

folder, cores = sys.argv[1], int(sys.argv[2])
w, x = np.load(os.path.join(folder, "w.npy")), np.load(os.path.join(folder, "x.npy"))
model = os.path.join(folder, "matmul.onnx")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "matmul",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], w.shape[1]])],
    [numpy_helper.from_array(w, "w")],
)
proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
proto.ir_version = 8
onnx.save(proto, model)
engine = deepsparse.Engine(model=model, batch_size=x.shape[0], num_cores=cores)
answers.write(json.dumps({"version": deepsparse.__version__}) + "\n")

for line in sys.stdin:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.perf_counter()
    y = engine.run([x], val_inp=False)
    seconds = time.perf_counter() - start
    disturbed = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != before
    if line.strip() == "save":
        np.save(os.path.join(folder, "y.npy"), y[0])
    answers.write(json.dumps({"seconds": seconds, "disturbed": disturbed}) + "\n")
