// The activations of MLPs in one pass over memory each, forward and backward: the gate of SwiGLU, and
// GELU in its tanh approximation.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "border.h"
#include "device_ops.h"
#include "kernels.h"

namespace {

namespace device = rlhf::device;
using rlhf::each_vector;
using rlhf::put;
using rlhf::take;
using rlhf::with_type;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// y = silu(gate) up, with silu(z) = z sigmoid(z)  (Shazeer 2020); gate and up have `stride` numbers a row.

template <typename T>
struct Gate {
  const T* gate;
  const T* up;
  int64_t gate_stride, up_stride, d;
};

// sigmoid(z) and 1 - sigmoid(z), each to its own last place.
template <typename V>
struct Sigmoid {
  V s, rest;
};
template <typename V>
RLHF_INLINE Sigmoid<V> sigmoid(V z) {
  const V e = rlhf::exp_negative(z > 0 ? -z : z);
  const V one = V{} + 1, scale = one / (e + 1);
  return {(z > 0 ? one : e) * scale, (z > 0 ? e : one) * scale};
}

template <typename T>
RLHF_INLINE void gate_rows(const Gate<T>& it, T* y, int64_t begin, int64_t end) {
  using V = typename rlhf::Wide<T>::Vector;
  for (int64_t row = begin; row < end; ++row) {
    each_vector(it.d, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const V z = take(it.gate + row * it.gate_stride + i, count);
      const V up = take(it.up + row * it.up_stride + i, count);
      put(y + row * it.d + i, z * sigmoid(z).s * up, count);
    });
  }
}

template <typename T>
RLHF_INLINE void gate_back(const Gate<T>& it, const T* grad, T* grad_gate, T* grad_up, int64_t begin,
                           int64_t end) {
  using V = typename rlhf::Wide<T>::Vector;
  for (int64_t row = begin; row < end; ++row) {
    each_vector(it.d, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const V z = take(it.gate + row * it.gate_stride + i, count);
      const V up = take(it.up + row * it.up_stride + i, count);
      const V g = take(grad + row * it.d + i, count);
      const auto [s, rest] = sigmoid(z);
      put(grad_up + row * it.d + i, g * z * s, count);
      put(grad_gate + row * it.d + i, g * up * s * (1 + z * rest), count);
    });
  }
}

// GELU by tanh (Hendrycks and Gimpel 2016) is y = x sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3),
// since 1 + tanh(u) = 2 sigmoid(2 u).

constexpr double kTwice = 1.5957691216057308;  // 2 sqrt(2/pi)
constexpr double kCubic = 0.044715;

template <typename T>
RLHF_INLINE void gelu_numbers(const T* x, T* y, int64_t begin, int64_t end) {
  using A = typename rlhf::Wide<T>::Scalar;
  using V = typename rlhf::Wide<T>::Vector;
  each_vector(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const V z = take(x + begin + i, count);
    const V u = z * (z * z * A(kTwice * kCubic) + A(kTwice));
    put(y + begin + i, z * sigmoid(u).s, count);
  });
}

template <typename T>
RLHF_INLINE void gelu_back(const T* x, const T* grad, T* grad_x, int64_t begin, int64_t end) {
  using A = typename rlhf::Wide<T>::Scalar;
  using V = typename rlhf::Wide<T>::Vector;
  each_vector(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const V z = take(x + begin + i, count);
    const V g = take(grad + begin + i, count);
    const V u = z * (z * z * A(kTwice * kCubic) + A(kTwice));
    const V slope = z * z * A(3 * kTwice * kCubic) + A(kTwice);
    const auto [s, rest] = sigmoid(u);
    put(grad_x + begin + i, g * s * (1 + z * rest * slope), count);
  });
}

#define RLHF_KERNELS(T)                                                                             \
  RLHF_CLONES void gate_rows_of(const Gate<T>& gate, T* y, int64_t begin, int64_t end) {            \
    gate_rows(gate, y, begin, end);                                                                 \
  }                                                                                                 \
  RLHF_CLONES void gate_back_of(const Gate<T>& gate, const T* grad, T* grad_gate, T* grad_up,       \
                                int64_t begin, int64_t end) {                                       \
    gate_back(gate, grad, grad_gate, grad_up, begin, end);                                          \
  }                                                                                                 \
  RLHF_CLONES void gelu_numbers_of(const T* x, T* y, int64_t begin, int64_t end) {                  \
    gelu_numbers(x, y, begin, end);                                                                 \
  }                                                                                                 \
  RLHF_CLONES void gelu_back_of(const T* x, const T* grad, T* grad_x, int64_t begin, int64_t end) { \
    gelu_back(x, grad, grad_x, begin, end);                                                         \
  }

RLHF_KERNELS(float)
RLHF_KERNELS(double)
RLHF_KERNELS(c10::BFloat16)

// Rows of numbers that lie behind each other: gate and up may be halves of one product.
template <typename T>
Gate<T> gate_of(const at::Tensor& gate_nd, const at::Tensor& up_nd) {
  return {gate_nd.const_data_ptr<T>(), up_nd.const_data_ptr<T>(), gate_nd.stride(0),
          up_nd.stride(0), gate_nd.size(1)};
}

device::Gate device_gate(const at::Tensor& gate_nd, const at::Tensor& up_nd, const at::Tensor& y) {
  return {gate_nd.data_ptr(), up_nd.data_ptr(), gate_nd.stride(0),
          up_nd.stride(0),    gate_nd.size(0),  gate_nd.size(1),
          device::at_of(y)};
}

at::Tensor swiglu(const at::Tensor& gate_nd, const at::Tensor& up_nd) {
  at::Tensor y = at::empty(gate_nd.sizes(), gate_nd.options());
  if (device::kernels_for(y) != nullptr) {
    device::call(&device::Kernels::gate, y, device_gate(gate_nd, up_nd, y));
    return y;
  }
  with_type(y, "swiglu", [&](auto zero) {
    using T = decltype(zero);
    const Gate<T> gate = gate_of<T>(gate_nd, up_nd);
    T* out = y.mutable_data_ptr<T>();
    rlhf::for_each_stretch(y.size(0), gate.d, [&](int64_t begin, int64_t end) {
      gate_rows_of(gate, out, begin, end);
    });
  });
  return y;
}

struct SwiGlu : public torch::autograd::Function<SwiGlu> {
  static Variable forward(AutogradContext* context, const Variable& gate_nd, const Variable& up_nd) {
    context->save_for_backward({gate_nd, up_nd});
    return swiglu(gate_nd, up_nd);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor grad_gate = at::empty_like(grad), grad_up = at::empty_like(grad);
    if (device::kernels_for(grad) != nullptr) {
      device::call(&device::Kernels::gate_back, grad,
                   device::GateBack{device_gate(saved[0], saved[1], at::Tensor()), grad.data_ptr(),
                                    grad_gate.data_ptr(), grad_up.data_ptr()});
      return {grad_gate, grad_up};
    }
    with_type(grad, "swiglu", [&](auto zero) {
      using T = decltype(zero);
      const Gate<T> gate = gate_of<T>(saved[0], saved[1]);
      const T* from = grad.const_data_ptr<T>();
      T* to_gate = grad_gate.mutable_data_ptr<T>();
      T* to_up = grad_up.mutable_data_ptr<T>();
      rlhf::for_each_stretch(grad.size(0), gate.d, [&](int64_t begin, int64_t end) {
        gate_back_of(gate, from, to_gate, to_up, begin, end);
      });
    });
    return {grad_gate, grad_up};
  }
};

at::Tensor gelu_tanh(const at::Tensor& x) {
  at::Tensor y = at::empty_like(x);
  with_type(x, "gelu", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    rlhf::for_each_stretch(x.numel(), 1, [&](int64_t begin, int64_t end) {
      gelu_numbers_of(from, to, begin, end);
    });
  });
  return y;
}

// GELU of x + bias, on a device that has the kernels.
device::Gelu device_gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias_d,
                         const at::Tensor& y) {
  const int64_t d = x.size(-1);
  return {x.data_ptr(), device::at_of(bias_d.value_or(at::Tensor())), x.numel() / d, d,
          device::at_of(y)};
}

at::Tensor run_device_gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias_d) {
  at::Tensor y = at::empty_like(x);
  device::call(&device::Kernels::gelu, x, device_gelu(x, bias_d, y));
  return y;
}

struct DeviceGelu : public torch::autograd::Function<DeviceGelu> {
  static Variable forward(AutogradContext* context, const Variable& x,
                          const std::optional<Variable>& bias_d) {
    context->save_for_backward({x, bias_d.value_or(at::Tensor())});
    return run_device_gelu(x, bias_d);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor x = saved[0], grad = grads[0].contiguous();
    const auto bias_d = saved[1].defined() ? std::optional(saved[1]) : std::nullopt;
    const int64_t d = x.size(-1), parts = device::parts_of(x.numel() / d);
    at::Tensor grad_x = at::empty_like(x), of_bias;
    if (bias_d && context->needs_input_grad(1)) {
      of_bias = at::empty({parts, d}, rlhf::wide(x));
    }
    device::call(&device::Kernels::gelu_back, x,
                 device::GeluBack{device_gelu(x, bias_d, at::Tensor()), grad.data_ptr(),
                                  grad_x.data_ptr(), device::at_of(of_bias), parts});
    return {grad_x, of_bias.defined() ? of_bias.sum(0).to(x.scalar_type()) : at::Tensor()};
  }
};

struct Gelu : public torch::autograd::Function<Gelu> {
  static Variable forward(AutogradContext* context, const Variable& x) {
    context->save_for_backward({x});
    return gelu_tanh(x);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const at::Tensor x = context->get_saved_variables()[0];
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor grad_x = at::empty_like(x);
    with_type(x, "gelu", [&](auto zero) {
      using T = decltype(zero);
      const T* numbers = x.const_data_ptr<T>();
      const T* from = grad.const_data_ptr<T>();
      T* to = grad_x.mutable_data_ptr<T>();
      rlhf::for_each_stretch(x.numel(), 1, [&](int64_t begin, int64_t end) {
        gelu_back_of(numbers, from, to, begin, end);
      });
    });
    return {grad_x};
  }
};

}  // namespace

extern "C" {

char* rlhf_swiglu(at::Tensor* gate, at::Tensor* up, at::Tensor** out) {
  return rlhf::guarded([&] {
    // Of halves of one product this is a view.
    const int64_t d = gate->size(-1);
    const at::Tensor gate_nd = gate->reshape({-1, d}), up_nd = up->reshape({-1, d});
    const at::Tensor y =
        at::GradMode::is_enabled() ? SwiGlu::apply(gate_nd, up_nd) : swiglu(gate_nd, up_nd);
    *out = new at::Tensor(y.view(gate->sizes()));
  });
}

// `bias_d` may be null.
char* rlhf_gelu(at::Tensor* x, at::Tensor* bias_d, at::Tensor** out) {
  return rlhf::guarded([&] {
    const at::Tensor dense = x->contiguous();
    const bool trains = at::GradMode::is_enabled();
    if (device::kernels_for(dense) != nullptr) {
      const auto bias = bias_d == nullptr ? std::nullopt : std::optional(bias_d->contiguous());
      *out = new at::Tensor(trains ? DeviceGelu::apply(dense, bias) : run_device_gelu(dense, bias));
      return;
    }
    const at::Tensor shifted = bias_d == nullptr ? dense : at::add(dense, *bias_d);
    *out = new at::Tensor(trains ? Gelu::apply(shifted) : gelu_tanh(shifted));
  });
}

}  // extern "C"
