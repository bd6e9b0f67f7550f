#include "bench/onednn.h"

#include <unordered_map>
#include <vector>

#include <dnnl.hpp>

#include "core/tensor.h"

namespace mutilde::bench {

namespace {

using dnnl::memory;

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// oneDNN chooses the layout.
memory::desc any(const memory::dims& dims) {
  return {dims, memory::data_type::f32, memory::format_tag::any};
}
memory::desc vector(int64_t length) {
  return {{length}, memory::data_type::f32, memory::format_tag::a};
}

struct Argument {
  int name;
  memory::desc desc;
};

std::function<void()> call(const dnnl::primitive& primitive,
                           std::initializer_list<Argument> arguments) {
  std::vector<Tensor> tensors;
  std::unordered_map<int, memory> memories;
  for (const auto& [name, desc] : arguments) {
    const int64_t count = static_cast<int64_t>(desc.get_size() / sizeof(float));
    const Tensor& tensor = tensors.emplace_back(Tensor::empty({count}));
    for (int64_t i = 0; i < count; ++i) {
      tensor.data<float>()[i] = static_cast<float>(i % 1024) / 1024 - 0.5F;
    }
    memories.emplace(name, memory(desc, engine(), tensor.data<float>()));
  }
  return [primitive, tensors, memories, stream = dnnl::stream(engine())]() mutable {
    primitive.execute(stream, memories);
    stream.wait();
  };
}

template <class Primitive, class Description>
std::function<void()> forward(const Description& description) {
  return call(Primitive(description), {{DNNL_ARG_SRC, description.src_desc()},
                                       {DNNL_ARG_WEIGHTS, description.weights_desc()},
                                       {DNNL_ARG_BIAS, description.bias_desc()},
                                       {DNNL_ARG_DST, description.dst_desc()}});
}
template <class Primitive, class Description>
std::function<void()> backward_input(const Description& description) {
  return call(Primitive(description), {{DNNL_ARG_DIFF_DST, description.diff_dst_desc()},
                                       {DNNL_ARG_WEIGHTS, description.weights_desc()},
                                       {DNNL_ARG_DIFF_SRC, description.diff_src_desc()}});
}
template <class Primitive, class Description>
std::function<void()> backward_weight(const Description& description) {
  return call(Primitive(description), {{DNNL_ARG_DIFF_DST, description.diff_dst_desc()},
                                       {DNNL_ARG_SRC, description.src_desc()},
                                       {DNNL_ARG_DIFF_WEIGHTS, description.diff_weights_desc()}});
}

}  // namespace

std::function<void()> onednn_conv2d(Pass pass, int64_t N, int64_t size, int64_t C, int64_t C_out,
                                    int64_t kernel, int64_t stride) {
  const memory::desc x = any({N, C, size, size}), weight = any({C_out, C, kernel, kernel});
  const memory::desc out = any({N, C_out, size / stride, size / stride});
  const memory::dims strides = {stride, stride}, before = {kernel / 2, kernel / 2};
  // What is padded after the last pixel: as much as the last window needs.
  const int64_t last = (size / stride - 1) * stride + kernel - kernel / 2 - size;
  const memory::dims after = {last, last};
  const auto algorithm = dnnl::algorithm::convolution_auto;
  using Forward = dnnl::convolution_forward;
  const Forward::primitive_desc hint({dnnl::prop_kind::forward_training, algorithm, x, weight,
                                      vector(C_out), out, strides, before, after},
                                     engine());
  if (pass == Pass::kForward) return forward<Forward>(hint);
  if (pass == Pass::kBackwardInput) {
    using Backward = dnnl::convolution_backward_data;
    return backward_input<Backward>(Backward::primitive_desc(
        {algorithm, x, weight, out, strides, before, after}, engine(), hint));
  }
  using Backward = dnnl::convolution_backward_weights;
  return backward_weight<Backward>(Backward::primitive_desc(
      {algorithm, x, weight, out, strides, before, after}, engine(), hint));
}

std::function<void()> onednn_linear(Pass pass, int64_t M, int64_t K, int64_t columns) {
  const memory::desc x = any({M, K}), weight = any({columns, K}), out = any({M, columns});
  using Forward = dnnl::inner_product_forward;
  const Forward::primitive_desc hint(
      {dnnl::prop_kind::forward_training, x, weight, vector(columns), out}, engine());
  if (pass == Pass::kForward) return forward<Forward>(hint);
  if (pass == Pass::kBackwardInput) {
    using Backward = dnnl::inner_product_backward_data;
    return backward_input<Backward>(Backward::primitive_desc({x, weight, out}, engine(), hint));
  }
  using Backward = dnnl::inner_product_backward_weights;
  return backward_weight<Backward>(Backward::primitive_desc({x, weight, out}, engine(), hint));
}

}  // namespace mutilde::bench
