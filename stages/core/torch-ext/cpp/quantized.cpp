// The product with a matrix of 8 or 4 bits a weight: y = x W^T. W is made of its codes a block of rows
// at a time, in both passes, so that a whole copy of it never exists; the gradient goes to x alone.
//
// Codes of 8 bits: int8 [outputs, inputs], a scale [outputs, 1]; w = scale q.
// Codes of 4 bits: uint8 [outputs, groups, n], 2 n weights a group along the inputs: the low halves of
// its bytes, then the high ones; scale and minimum [outputs, groups]; w = scale q + minimum. A last group
// that the inputs do not fill holds weights that are left out.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "border.h"

// One body, compiled for wider vectors too; the processor chooses when the program starts.
#if defined(__x86_64__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define RLHF_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef RLHF_WIDE
#define RLHF_WIDE
#endif

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Weights of a block in f32: 256 KiB stay in the cache of the thread that makes and uses them; 4 MiB
// are made by all threads together; 64 MiB keep a GPU busy.
constexpr int64_t kBlockOfThread = 1 << 16;
constexpr int64_t kBlockOfAll = 1 << 20;
constexpr int64_t kBlockGpu = 1 << 24;

RLHF_WIDE void bytes_to_floats(const int8_t* codes, int64_t count, float scale, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = scale * static_cast<float>(codes[i]);
  }
}

RLHF_WIDE void low_halves_to_floats(const uint8_t* codes, int64_t count, float scale, float minimum,
                                    float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = scale * static_cast<float>(codes[i] & 15) + minimum;
  }
}

RLHF_WIDE void high_halves_to_floats(const uint8_t* codes, int64_t count, float scale, float minimum,
                                     float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = scale * static_cast<float>(codes[i] >> 4) + minimum;
  }
}

struct Matrix {
  at::Tensor codes, scales, minima;
  int64_t inputs;

  int64_t outputs() const { return codes.size(0); }

  // Rows of a block of `weights` on the CPU.
  int64_t block_rows(int64_t weights) const {
    return std::max<int64_t>(1, (codes.is_cpu() ? weights : kBlockGpu) / inputs);
  }

  // Rows `start` to `start + count` of W, `[count, inputs]`, computed in f32.
  at::Tensor rows(int64_t start, int64_t count, at::ScalarType type) const {
    const Matrix part{codes.narrow(0, start, count), scales.narrow(0, start, count),
                      minima.defined() ? minima.narrow(0, start, count) : minima, inputs};
    return (codes.is_cpu() ? part.loop() : part.operators()).to(type);
  }

  at::Tensor loop() const {
    at::Tensor out = at::empty({outputs(), inputs}, scales.options());
    at::parallel_for(0, outputs(), std::max<int64_t>(1, 32768 / inputs),
                     [&](int64_t first, int64_t last) {
                       for (int64_t row = first; row < last; ++row) {
                         fill_row(row, out.data_ptr<float>() + row * inputs);
                       }
                     });
    return out;
  }

  void fill_row(int64_t row, float* out) const {
    const int64_t groups = scales.size(1);
    const float* scale = scales.const_data_ptr<float>() + row * groups;
    if (!minima.defined()) {
      bytes_to_floats(codes.const_data_ptr<int8_t>() + row * inputs, inputs, *scale, out);
      return;
    }
    const float* minimum = minima.const_data_ptr<float>() + row * groups;
    const int64_t half = codes.size(2);
    const uint8_t* packed = codes.const_data_ptr<uint8_t>() + row * groups * half;
    for (int64_t group = 0; group < groups; ++group, packed += half, out += 2 * half) {
      const int64_t left = inputs - group * 2 * half;
      low_halves_to_floats(packed, std::min(half, left), scale[group], minimum[group], out);
      high_halves_to_floats(packed, std::clamp<int64_t>(left - half, 0, half), scale[group],
                            minimum[group], out + half);
    }
  }

  // The same in libtorch's operators, for GPUs.
  at::Tensor operators() const {
    if (!minima.defined()) {
      return codes.to(at::kFloat).mul_(scales);
    }
    at::Tensor halves = at::cat({codes.bitwise_and(15), codes.bitwise_right_shift(4)}, 2);
    at::Tensor out = halves.to(at::kFloat).mul_(scales.unsqueeze(2)).add_(minima.unsqueeze(2));
    return out.flatten(1).narrow(1, 0, inputs);
  }
};

struct QuantizedLinear : public torch::autograd::Function<QuantizedLinear> {
  static Variable forward(AutogradContext* context, const Variable& x_ni, const Matrix& matrix) {
    context->saved_data["codes"] = matrix.codes;
    context->saved_data["scales"] = matrix.scales;
    context->saved_data["minima"] = matrix.minima;
    context->saved_data["inputs"] = matrix.inputs;
    at::Tensor y_no = at::empty({x_ni.size(0), matrix.outputs()}, x_ni.options());
    const int64_t block = matrix.block_rows(kBlockOfThread);
    const auto multiply = [&](int64_t first, int64_t last) {
      c10::NoGradGuard no_grad;  // Threads of a pool start with gradients on.
      for (int64_t start = first * block; start < std::min(last * block, matrix.outputs());
           start += block) {
        const int64_t count = std::min(block, matrix.outputs() - start);
        const at::Tensor weight_bi = matrix.rows(start, count, x_ni.scalar_type());
        y_no.narrow(1, start, count).copy_(at::mm(x_ni, weight_bi.t()));
      }
    };
    const int64_t blocks = (matrix.outputs() + block - 1) / block;
    if (x_ni.is_cpu()) {
      at::parallel_for(0, blocks, 1, multiply);
    } else {
      multiply(0, blocks);
    }
    return y_no;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Matrix matrix{context->saved_data["codes"].toTensor(),
                        context->saved_data["scales"].toTensor(),
                        context->saved_data["minima"].toTensor(),
                        context->saved_data["inputs"].toInt()};
    const at::Tensor grad_no = grads[0];
    const auto wide = grad_no.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    at::Tensor grad_ni =
        at::zeros({grad_no.size(0), matrix.inputs}, grad_no.options().dtype(wide));
    const int64_t block = matrix.block_rows(kBlockOfAll);
    for (int64_t start = 0; start < matrix.outputs(); start += block) {
      const int64_t count = std::min(block, matrix.outputs() - start);
      const at::Tensor weight_bi = matrix.rows(start, count, grad_no.scalar_type());
      grad_ni.add_(at::mm(grad_no.narrow(1, start, count), weight_bi));
    }
    return {grad_ni.to(grad_no.scalar_type()), Variable()};
  }
};

}  // namespace

extern "C" char* rlhf_quantized_linear(at::Tensor* x_ni, at::Tensor* codes, at::Tensor* scales,
                                       at::Tensor* minima, int64_t inputs, at::Tensor** out) {
  return rlhf::guarded([&] {
    const Matrix matrix{*codes, *scales, minima == nullptr ? at::Tensor() : *minima, inputs};
    *out = new at::Tensor(QuantizedLinear::apply(*x_ni, matrix));
  });
}
