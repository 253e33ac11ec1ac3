"""Build ONNX models node by node."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def node(op, inputs, outputs, **attributes):
    """A node; names are separated by spaces, and "-" is an optional input or output left out."""
    names = [["" if name == "-" else name for name in group.split()] for group in (inputs, outputs)]
    return helper.make_node(op, *names, **attributes)


class Maker:
    """Collects models; all draw from one seeded source."""

    def __init__(self):
        self.random = np.random.default_rng(23)
        self.made = []

    def f32(self, *shape):
        return (self.random.standard_normal(shape) * 0.5).astype(np.float32)

    def add(
        self,
        name,
        opset,
        nodes,
        inputs,
        outputs,
        constants=(),
        ir=None,
        initializers_are_inputs=False,
        functions=(),
        imports=None,
    ):
        """One model. `inputs`: name to array, its first dimension is the batch; `outputs`: name to (type, rank)."""
        constants = [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), key)
            for key, value in dict(constants).items()
        ]
        graph_inputs = [
            helper.make_tensor_value_info(
                key, helper.np_dtype_to_tensor_dtype(value.dtype), ["N", *value.shape[1:]] if value.ndim else []
            )
            for key, value in inputs.items()
        ]
        if initializers_are_inputs:
            graph_inputs += [helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in constants]
        graph_outputs = [helper.make_tensor_value_info(k, t, [None] * rank) for k, (t, rank) in outputs.items()]
        for index, item in enumerate(nodes):
            item.name = f"{item.op_type}_{index}"
        graph = helper.make_graph(nodes, name, graph_inputs, graph_outputs, constants)
        imports = imports or [helper.make_opsetid("", opset)]
        # IR version 3 lists initializers among the inputs; 10 is what opsets up to 22 need at most.
        version = ir or (8 if opset <= 17 else 10)
        model = helper.make_model(graph, opset_imports=imports, ir_version=version, producer_name="lowbit-fixtures")
        model.functions.extend(functions)
        self.made.append((f"{name}_{opset}", model, inputs))
