"""Every node gets a name of its own, and tells its PyTorch module where it can."""

import onnx
import pytest
from onnx import TensorProto, helper

from workbench.graph.editing import graphs
from workbench.models import naming


def model(*nodes):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph(list(nodes), "g", [value], []))


def node(name, scopes=None, namespace=None, op_type="Relu", inputs=("x",)):
    made = helper.make_node(op_type, list(inputs), [f"{name}_out"], name=name)
    if scopes is not None:
        made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    if namespace is not None:
        made.metadata_props.add(key="namespace", value=namespace)
    return made


def test_missing_and_repeated_names_become_unique_and_others_stay():
    proto = model(node("a"), node(""), node("a"), node("Relu_1"), node("a_1"))
    assert naming.make_unique(proto) == 2
    assert [item.name for item in proto.graph.node] == ["a", "Relu_1_1", "a_2", "Relu_1", "a_1"]
    assert naming.make_unique(proto) == 0


def test_each_name_is_looked_for_once_however_many_nodes_share_one():
    looked_for = []

    class Taken(set):
        def __contains__(self, name):
            looked_for.append(name)
            return super().__contains__(name)

    taken, numbers = Taken({"a"}), naming.Counter()
    for index in range(50):
        taken.add(naming._free("a", taken, numbers))
        assert f"a_{index + 1}" in taken
    assert len(looked_for) == 50 * 3


def test_nodes_inside_branches_are_named_too():
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "branch", [], [])
    outer = helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner)
    proto = model(outer)
    assert naming.make_unique(proto) == 2
    names = [item.name for graph in graphs(proto.graph) for item in graph.node]
    assert len(set(names)) == 3 and all(names)


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (node("/conv1/Conv"), "conv1"),
        (node("/layer1/layer1.0/conv1/Conv"), "layer1.0.conv1"),
        (node("/blocks.0/mlp/mlp.2/Gemm_1"), "blocks.0.mlp.2"),
        (node("/0/0.1/Relu"), "0.1"),
        (node("/Relu"), None),
        (node("StatefulPartitionedCall/model/conv/Conv2D"), None),
        (node("n", scopes="['', 'layer1', 'layer1.0', 'relu']"), "layer1.0"),
        (node("n", scopes="['', 'relu']"), None),
        (node("n", scopes="['_empty_nn_module_stack_from_metadata_hook', 'size']"), None),
        (node("n", namespace=": M/enc: E/enc.fc: torch.nn.Linear/linear: aten.linear.default"), "enc.fc"),
        (node("n", scopes="['', 'bn', 'x']", op_type="Conv", inputs=("x", "conv.weight")), "conv"),
        (node("n", scopes="not a list"), None),
        (node("n", scopes="[" * 10_000), None),
        (node("n", scopes="{}"), None),
    ],
)
def test_module_paths_are_read_from_metadata_or_names(made, path):
    assert naming.modules(model(made)) == ({made.name: path} if path else {})


def test_traces_of_a_wrapper_are_taken_out():
    wrapper = naming.WRAPPER
    one = node(f"/{wrapper}/conv/Conv", inputs=("x", f"{wrapper}.conv.weight"))
    one.output[0] = f"/{wrapper}/conv/Conv_output_0"
    two = node(f"/{wrapper}/{wrapper}.0/Relu", inputs=(one.output[0],))
    three = node("n", scopes=f"['', '{wrapper}', '{wrapper}.{wrapper}.fc', 'linear']")
    three.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/me/secret.py")
    three.doc_string = "File /home/me/secret.py"
    proto = model(one, two, three)
    proto.graph.initializer.append(onnx.TensorProto(name=f"{wrapper}.conv.weight"))
    naming.unwrap(proto)
    assert [item.name for item in proto.graph.node] == ["/conv/Conv", "/0/Relu", "n"]
    assert proto.graph.node[0].input[1] == proto.graph.initializer[0].name == "conv.weight"
    assert proto.graph.node[1].input[0] == proto.graph.node[0].output[0] == "/conv/Conv_output_0"
    assert naming.modules(proto) == {"/conv/Conv": "conv", "/0/Relu": "0", "n": "fc"}
    assert b"secret" not in proto.SerializeToString()


def test_a_tensor_keeps_its_wrapped_name_where_the_plain_one_is_taken():
    proto = model(node("n", inputs=("x", f"{naming.WRAPPER}.x")))
    naming.unwrap(proto)
    assert list(proto.graph.node[0].input) == ["x", f"{naming.WRAPPER}.x"]
