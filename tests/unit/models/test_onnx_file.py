"""ONNX files are described as they are; damaged, hostile and incomplete ones are refused with a reason."""

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_onnx import small_model

from workbench.errors import LoadError
from workbench.models import onnx_file
from workbench.models.place import Place
from workbench.records import TensorSpec


def save_external(saved, **options):
    proto = small_model()
    return saved(proto, save_as_external_data=True, location="net.data", size_threshold=0, **options)


def redirect_weights(file, **entries):
    """Change the place that the first weight asks for."""
    proto = onnx.load(str(file), load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    file.write_bytes(proto.SerializeToString())


def test_a_file_is_described(saved):
    file = saved(small_model())
    model = onnx_file.read(file)
    assert (model.name, model.path, model.opset, model.parameters) == ("net", str(file), 17, 9)
    assert model.inputs == (TensorSpec("x", "float32", (None, 2)),)
    assert model.outputs == (TensorSpec("y", "float32", (None, 3)),)
    assert model.operators == {"Gemm": 1, "Relu": 1}
    assert model.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert model.size_bytes == file.stat().st_size
    assert (model.origin.kind, model.origin.reference, model.origin.notes) == ("onnx", "net.onnx", ())
    assert model.quantized_by is None


def test_weights_listed_among_the_inputs_are_not_inputs(saved):
    proto = small_model()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    assert [spec.name for spec in onnx_file.read(saved(proto)).inputs] == ["x"]


def test_minus_one_is_a_dynamic_axis(saved):
    proto = small_model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert onnx_file.read(saved(proto)).inputs[0].shape == (None, 2)


def test_an_axis_named_like_a_number_is_fixed(saved):
    proto = small_model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "4"
    assert onnx_file.read(saved(proto)).inputs[0].shape == (4, 2)


def test_external_weights_belong_to_the_hash_and_the_size(saved, tmp_path):
    file = save_external(saved)
    data = tmp_path / "net.data"
    model = onnx_file.read(file)
    assert model.size_bytes == file.stat().st_size + data.stat().st_size
    assert model.sha256 == hashlib.sha256(file.read_bytes() + data.read_bytes()).hexdigest()
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert onnx_file.read(file).sha256 != model.sha256


def test_missing_external_weights_are_named(saved, tmp_path):
    file = save_external(saved)
    (tmp_path / "net.data").unlink()
    with pytest.raises(LoadError, match=r"needs the weights file 'net\.data' \(tensor 'w'\)"):
        onnx_file.read(file)


def test_truncated_external_weights_are_refused(saved, tmp_path):
    file = save_external(saved)
    (tmp_path / "net.data").write_bytes(b"1234")
    with pytest.raises(LoadError, match="has 4 bytes, tensor 'w' asks for 24 from 0"):
        onnx_file.read(file)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "", "link"])
def test_weights_outside_the_folder_are_refused(saved, tmp_path, location):
    (tmp_path.parent / "secret").write_bytes(b"0" * 64)
    (tmp_path / "link").symlink_to(tmp_path.parent / "secret")
    file = save_external(saved)
    redirect_weights(file, location=location)
    with pytest.raises(LoadError, match="outside its folder"):
        onnx_file.read(file)


@pytest.mark.parametrize(("place", "words"), [("-8", "asks for"), ("x", "no readable place")])
def test_weights_at_an_impossible_place_are_refused(saved, place, words):
    file = save_external(saved)
    redirect_weights(file, offset=place, length="24")
    proto = onnx.load(str(file), load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="offset", value=place)
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match=words):
        onnx_file.read(file)


def test_weights_inside_a_constant_node_are_checked_too(saved):
    proto = small_model()
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    constant = helper.make_node("Constant", [], ["unused"], name="c")
    constant.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
    proto.graph.node.insert(0, constant)
    file = saved(small_model())
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match="outside its folder"):
        onnx_file.read(file)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
def test_truncated_files_are_refused(saved, share):
    file = saved(small_model())
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(LoadError, match=r"truncated|no valid ONNX model"):
        onnx_file.read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 bytes"),
        (b"this is a text, not a model", "not ONNX, or is truncated"),
        (b"\x08\x07", "no nodes, or no opset"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_files_that_are_not_onnx_are_refused(tmp_path, content, words):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(LoadError, match=words):
        onnx_file.read(tmp_path / "net.onnx")


def test_a_file_too_large_for_protobuf_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "net.onnx").open("wb") as stream:
        stream.truncate(3 << 30)  # a hole: takes no space
    with pytest.raises(LoadError, match="larger weights lie beside it"):
        onnx_file.read(tmp_path / "net.onnx")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"There is no file .*gone\.onnx"):
        onnx_file.read(tmp_path / "gone.onnx")


def test_an_unreadable_file_is_named(saved, monkeypatch):
    file = saved(small_model())

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file), "read_bytes", refuse)
    with pytest.raises(LoadError, match="Permission denied"):
        onnx_file.read(file)


def broken(change):
    proto = small_model()
    change(proto)
    return proto


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda proto: proto.graph.node[0].input.__setitem__(0, "nowhere"), "no valid ONNX model"),
        (lambda proto: setattr(proto.graph.node[0], "op_type", "Nonsense"), "Nonsense"),
        (lambda proto: setattr(proto, "ir_version", 99), "IR 99"),
        (lambda proto: proto.graph.ClearField("output"), "1 inputs and 0 outputs"),
        (lambda proto: proto.graph.input[0].type.tensor_type.ClearField("shape"), "no number of axes"),
    ],
)
def test_invalid_models_are_refused(tmp_path, change, words):
    (tmp_path / "net.onnx").write_bytes(broken(change).SerializeToString())
    with pytest.raises(LoadError, match=words):
        onnx_file.read(tmp_path / "net.onnx")


def test_an_input_that_is_a_sequence_is_refused(saved):
    graph = helper.make_graph(
        [helper.make_node("SequenceAt", ["s", "i"], ["y"], name="at")],
        "g",
        [
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    file = saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(LoadError, match="'s' is a sequence_type"):
        onnx_file.read(file)


def test_output_shapes_that_are_not_stated_are_inferred_in_a_copy(tmp_path):
    proto = small_model()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    model = onnx_file.read(tmp_path / "net.onnx", place=Place(folder=tmp_path / "copies"))
    assert model.outputs[0].shape == (None, 3)
    assert model.origin.notes[0] == "The shape of output 'y' was not stated and was inferred."
    onnx.checker.check_model(model.path)


def test_output_shapes_are_inferred_with_external_weights_too(saved, tmp_path):
    file = save_external(saved)
    proto = onnx.load(str(file), load_external_data=False)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    file.write_bytes(proto.SerializeToString())
    model = onnx_file.read(file, place=Place(folder=tmp_path / "copies"))
    assert model.outputs[0].shape == (None, 3)
    assert model.parameters == 9


def test_an_output_shape_that_cannot_be_inferred_is_refused(tmp_path):
    proto = small_model()
    proto.graph.input.append(helper.make_tensor_value_info("target", TensorProto.INT64, ["rank"]))
    proto.graph.node[1].CopyFrom(helper.make_node("Reshape", ["h", "target"], ["y"], name="reshape"))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match="output 'y' states no number of axes"):
        onnx_file.read(tmp_path / "net.onnx")


def test_strings_and_half_floats_have_numpy_names(saved):
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["a"], ["c"], name="one"),
            helper.make_node("Identity", ["b"], ["d"], name="two"),
        ],
        "g",
        [
            helper.make_tensor_value_info("a", TensorProto.STRING, [1]),
            helper.make_tensor_value_info("b", TensorProto.BFLOAT16, [1]),
        ],
        [
            helper.make_tensor_value_info("c", TensorProto.STRING, [1]),
            helper.make_tensor_value_info("d", TensorProto.BFLOAT16, [1]),
        ],
    )
    model = onnx_file.read(saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    assert [spec.dtype for spec in model.inputs] == ["str", "bfloat16"]


def test_nodes_without_names_are_named_in_a_copy(saved, tmp_path):
    file = saved(small_model(names=("", "")))
    before = file.read_bytes()
    model = onnx_file.read(file, place=Place(folder=tmp_path / "copies"))
    assert model.path == str(tmp_path / "copies" / "net.onnx")
    assert [node.name for node in onnx.load(model.path).graph.node] == ["Gemm_0", "Relu_1"]
    assert "2 nodes without a name" in model.origin.notes[0]
    assert "in a copy" in model.origin.notes[1]
    assert file.read_bytes() == before
    assert model.sha256 == hashlib.sha256((tmp_path / "copies" / "net.onnx").read_bytes()).hexdigest()


def test_a_named_copy_keeps_external_weights(saved, tmp_path):
    proto = small_model(names=("twin", "twin"))
    file = saved(proto, save_as_external_data=True, location="net.data", size_threshold=0)
    model = onnx_file.read(file, place=Place(folder=tmp_path / "copies"))
    copied = onnx.load(model.path)
    assert [node.name for node in copied.graph.node] == ["twin", "twin_1"]
    assert numpy_helper.to_array(copied.graph.initializer[0]).tolist() == [[0, 1, 2], [3, 4, 5]]


def quantized(producer="", name="q", domain="", op_type="QuantizeLinear", metadata=()):
    scale = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
    node = helper.make_node(op_type, ["x", "s", "z"], ["y"], name=name, domain=domain)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [1])],
        scale,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("trt", 1), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, producer_name=producer, ir_version=8)
    helper.set_model_props(proto, dict(metadata))
    return proto


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"producer": "onnx.quantize"}, "onnxruntime"),
        ({"op_type": "QLinearSigmoid", "domain": "com.microsoft"}, "onnxruntime"),
        ({"name": "/conv/input_quantizer/QuantizeLinear", "producer": "pytorch"}, "modelopt"),
        ({"op_type": "TRT_FP8QuantizeLinear", "domain": "trt"}, "modelopt"),
        ({"metadata": {"quantizer": "ModelOpt 0.47"}}, "modelopt"),
        ({"producer": "somebody"}, "unknown"),
    ],
)
def test_quantized_files_tell_who_quantized_them(saved, options, expected):
    assert onnx_file.read(saved(quantized(**options))).quantized_by == expected


def test_a_file_quantized_by_onnx_runtime_is_told(saved, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    source = saved(small_model())
    quantize_dynamic(source, tmp_path / "int8.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    model = onnx_file.read(tmp_path / "int8.onnx", place=Place(folder=tmp_path / "copies"))
    assert model.quantized_by == "onnxruntime"
