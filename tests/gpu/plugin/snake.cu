// Snake, y = x + sin(alpha * x)^2 / alpha, as a TensorRT plugin (IPluginV2DynamicExt) in FP32 and FP16, any shape.
//
// An operator that TensorRT does not know. The ONNX parser finds it by the node's operator type and hands the node's
// attributes over as fields. Nothing of libnvinfer is linked: TensorRT calls in, through the functions at the end.

#include <cstdint>
#include <cstring>
#include <string>

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "NvInfer.h"

namespace
{

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr char const* kNAME = "Snake";
constexpr char const* kVERSION = "1";

template <typename Value>
__global__ void snake(Value const* x, Value* y, int64_t count, float alpha)
{
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    {
        float const value = static_cast<float>(x[i]);
        float const sine = sinf(alpha * value);
        y[i] = static_cast<Value>(value + sine * sine / alpha);
    }
}

template <typename Value>
void launch(void const* x, void* y, int64_t count, float alpha, cudaStream_t stream)
{
    constexpr int64_t kTHREADS = 256, kMOST_BLOCKS = 65535;
    int64_t const wanted = (count + kTHREADS - 1) / kTHREADS;
    int const blocks = static_cast<int>(wanted < kMOST_BLOCKS ? wanted : kMOST_BLOCKS);
    snake<Value><<<blocks, kTHREADS, 0, stream>>>(static_cast<Value const*>(x), static_cast<Value*>(y), count, alpha);
}

class Snake : public nvinfer1::IPluginV2DynamicExt
{
public:
    explicit Snake(float alpha)
        : mAlpha(alpha)
    {
    }

    // What it is

    char const* getPluginType() const noexcept override { return kNAME; }
    char const* getPluginVersion() const noexcept override { return kVERSION; }
    int32_t getNbOutputs() const noexcept override { return 1; }
    void setPluginNamespace(char const* space) noexcept override { mNamespace = space; }
    char const* getPluginNamespace() const noexcept override { return mNamespace.c_str(); }

    // When the engine is built

    nvinfer1::DimsExprs getOutputDimensions(
        int32_t, nvinfer1::DimsExprs const* inputs, int32_t, nvinfer1::IExprBuilder&) noexcept override
    {
        return inputs[0];
    }

    DataType getOutputDataType(int32_t, DataType const* inputs, int32_t) const noexcept override { return inputs[0]; }

    bool supportsFormatCombination(int32_t at, PluginTensorDesc const* all, int32_t, int32_t) noexcept override
    {
        bool const known = all[at].type == DataType::kFLOAT || all[at].type == DataType::kHALF;
        return known && all[at].format == nvinfer1::TensorFormat::kLINEAR && all[at].type == all[0].type;
    }

    void configurePlugin(nvinfer1::DynamicPluginTensorDesc const*, int32_t, nvinfer1::DynamicPluginTensorDesc const*,
        int32_t) noexcept override
    {
    }

    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) const noexcept override
    {
        return 0;
    }

    // When it runs

    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
        void* const* outputs, void*, cudaStream_t stream) noexcept override
    {
        int64_t count = 1;
        for (int32_t axis = 0; axis < in[0].dims.nbDims; ++axis)
        {
            count *= in[0].dims.d[axis];
        }
        if (count > 0 && in[0].type == DataType::kFLOAT)
        {
            launch<float>(inputs[0], outputs[0], count, mAlpha, stream);
        }
        else if (count > 0)
        {
            launch<__half>(inputs[0], outputs[0], count, mAlpha, stream);
        }
        return cudaPeekAtLastError() == cudaSuccess ? 0 : 1;
    }

    // How it is kept in the plan

    size_t getSerializationSize() const noexcept override { return sizeof(mAlpha); }
    void serialize(void* buffer) const noexcept override { std::memcpy(buffer, &mAlpha, sizeof(mAlpha)); }
    void destroy() noexcept override { delete this; }

    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override
    {
        auto* made = new Snake(mAlpha);
        made->setPluginNamespace(mNamespace.c_str());
        return made;
    }

private:
    float mAlpha;
    std::string mNamespace;
};

class SnakeCreator : public nvinfer1::IPluginCreator
{
public:
    char const* getPluginName() const noexcept override { return kNAME; }
    char const* getPluginVersion() const noexcept override { return kVERSION; }
    void setPluginNamespace(char const* space) noexcept override { mNamespace = space; }
    char const* getPluginNamespace() const noexcept override { return mNamespace.c_str(); }
    PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }

    nvinfer1::IPluginV2* createPlugin(char const*, PluginFieldCollection const* given) noexcept override
    {
        float alpha = 1.0F;
        for (int32_t i = 0; i < given->nbFields; ++i)
        {
            PluginField const& field = given->fields[i];
            if (std::strcmp(field.name, "alpha") == 0 && field.type == PluginFieldType::kFLOAT32 && field.length == 1)
            {
                alpha = *static_cast<float const*>(field.data);
            }
        }
        return alpha == 0.0F ? nullptr : new Snake(alpha);
    }

    nvinfer1::IPluginV2* deserializePlugin(char const*, void const* data, size_t length) noexcept override
    {
        float alpha = 0.0F;
        if (length != sizeof(alpha))
        {
            return nullptr;
        }
        std::memcpy(&alpha, data, sizeof(alpha));
        return new Snake(alpha);
    }

private:
    PluginField mField{"alpha", nullptr, PluginFieldType::kFLOAT32, 1};
    PluginFieldCollection mFields{1, &mField};
    std::string mNamespace;
};

} // namespace

// What TensorRT asks a library for that it loads into its registry (IPluginRegistry::loadLibrary).

extern "C" nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count)
{
    static SnakeCreator creator;
    static nvinfer1::IPluginCreator* const creators[] = {&creator};
    count = 1;
    return creators;
}

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
