// The norm and the rotation of positions in one pass over memory each, forward and backward.
// Sums are in f32 (f64 for f64) and have one order, whatever the number of threads.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <tuple>

#include "border.h"
#include "device_ops.h"
#include "kernels.h"

namespace {

namespace device = rlhf::device;
using rlhf::each_vector;
using rlhf::put;
using rlhf::take;
using rlhf::wide;
using rlhf::with_type;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// y = x r w with r = 1 / sqrt(mean(x^2) + eps)  (Zhang and Sennrich 2019)

template <typename T>
struct Norm {
  using A = typename rlhf::Wide<T>::Scalar;
  const T* x;
  const T* weight;
  int64_t d;
  double eps;
};

template <typename T, typename A>
RLHF_INLINE void norm_rows(const Norm<T>& norm, T* y, A* scales, int64_t begin, int64_t end) {
  using V = typename rlhf::Wide<T>::Vector;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = norm.x + row * norm.d;
    V squares = {};
    each_vector(norm.d, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const V v = take(x + i, count);
      squares += v * v;
    });
    const A mean = rlhf::sum(squares) / A(norm.d);
    const A scale = A(1) / std::sqrt(mean + A(norm.eps));
    scales[row] = scale;
    each_vector(norm.d, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      put(y + row * norm.d + i, take(x + i, count) * scale * take(norm.weight + i, count), count);
    });
  }
}

// With h = g w:  dx = r (h - x r^2 mean(h x)),  dw = sum over rows of g x r, where the weight is trained.
template <bool kTrained, typename T, typename A>
RLHF_INLINE void norm_back(const Norm<T>& norm, const T* grad, const A* scales, T* grad_x,
                           A* grad_weight, int64_t begin, int64_t end) {
  using V = typename rlhf::Wide<T>::Vector;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = norm.x + row * norm.d;
    const T* g = grad + row * norm.d;
    const A scale = scales[row];
    V products = {};
    each_vector(norm.d, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const V gx = take(g + i, count) * take(x + i, count);
      products += gx * take(norm.weight + i, count);
      if constexpr (kTrained) {
        put(grad_weight + i, take(grad_weight + i, count) + gx * scale, count);
      }
    });
    const A shift = rlhf::sum(products) / A(norm.d) * scale * scale;
    each_vector(norm.d, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const V h = take(g + i, count) * take(norm.weight + i, count);
      put(grad_x + row * norm.d + i, (h - take(x + i, count) * shift) * scale, count);
    });
  }
}

// x cos + turned(x) sin of the first `rotated` numbers of each head  (Su et al. 2021)

template <typename T>
struct Rotation {
  const T* x;
  int64_t row_stride, head_stride, column_stride;  // of x: b, h, t
  const T* cos;
  const T* sin;
  int64_t table_stride;  // between rows of the tables, 0 where all rows share one
  int64_t heads, columns, width, rotated;
  bool interleaved;
};

// Positions `begin .. end` of all rows; `sign` is -1 for the way back.
template <typename T>
RLHF_INLINE void rotate_rows(const Rotation<T>& it, T* y, float sign, int64_t begin, int64_t end) {
  using A = typename rlhf::Wide<T>::Scalar;
  using V = typename rlhf::Wide<T>::Vector;
  const int64_t half = it.rotated / 2;
  for (int64_t place = begin; place < end; ++place) {
    const int64_t row = place / it.columns, column = place % it.columns;
    const T* cos = it.cos + row * it.table_stride + column * it.rotated;
    const T* sin = it.sin + row * it.table_stride + column * it.rotated;
    for (int64_t head = 0; head < it.heads; ++head) {
      const T* x = it.x + row * it.row_stride + head * it.head_stride + column * it.column_stride;
      T* out = y + (place * it.heads + head) * it.width;
      if (it.interleaved) {
        for (int64_t i = 0; i < it.rotated; i += 2) {
          const A a = x[i], b = x[i + 1], c = cos[i], s = A(sin[i]) * A(sign);
          out[i] = a * c - b * s;
          out[i + 1] = b * c + a * s;
        }
      } else {
        each_vector(half, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
          const V a = take(x + i, count), b = take(x + half + i, count);
          const V c = take(cos + i, count), s = take(sin + i, count) * A(sign);
          put(out + i, a * c - b * s, count);
          put(out + half + i, b * c + a * s, count);
        });
      }
      std::memcpy(out + it.rotated, x + it.rotated, (it.width - it.rotated) * sizeof(T));
    }
  }
}

#define RLHF_KERNELS(T)                                                                             \
  RLHF_CLONES void norm_rows_of(const Norm<T>& norm, T* y, rlhf::Wide<T>::Scalar* scales,           \
                                int64_t begin, int64_t end) {                                       \
    norm_rows(norm, y, scales, begin, end);                                                         \
  }                                                                                                 \
  RLHF_CLONES void norm_back_of(const Norm<T>& norm, const T* grad,                                 \
                                const rlhf::Wide<T>::Scalar* scales, T* grad_x,                     \
                                rlhf::Wide<T>::Scalar* grad_weight, int64_t begin, int64_t end) {   \
    if (grad_weight != nullptr) {                                                                   \
      norm_back<true>(norm, grad, scales, grad_x, grad_weight, begin, end);                         \
    } else {                                                                                        \
      norm_back<false>(norm, grad, scales, grad_x, grad_weight, begin, end);                        \
    }                                                                                               \
  }                                                                                                 \
  RLHF_CLONES void rotate_rows_of(const Rotation<T>& rotation, T* y, float sign, int64_t begin,     \
                                  int64_t end) {                                                    \
    rotate_rows(rotation, y, sign, begin, end);                                                     \
  }

RLHF_KERNELS(float)
RLHF_KERNELS(double)
RLHF_KERNELS(c10::BFloat16)

// The output and the scale of each row.
std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight_d,
                                            double eps) {
  const int64_t d = weight_d.numel(), rows = x.numel() / d;
  at::Tensor y = at::empty_like(x);
  at::Tensor scales = at::empty({rows}, wide(x));
  with_type(x, "rms_norm", [&](auto zero) {
    using T = decltype(zero);
    using A = typename rlhf::Wide<T>::Scalar;
    const Norm<T> norm{x.const_data_ptr<T>(), weight_d.const_data_ptr<T>(), d, eps};
    T* out = y.mutable_data_ptr<T>();
    A* of_rows = scales.mutable_data_ptr<A>();
    rlhf::for_each_stretch(rows, d, [&](int64_t begin, int64_t end) {
      norm_rows_of(norm, out, of_rows, begin, end);
    });
  });
  return {y, scales};
}

struct RmsNorm : public torch::autograd::Function<RmsNorm> {
  static Variable forward(AutogradContext* context, const Variable& x, const Variable& weight_d,
                          double eps) {
    auto [y, scales] = rms_norm(x, weight_d, eps);
    context->save_for_backward({x, weight_d, scales});
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    constexpr int64_t kParts = 32;  // sums of the weight's gradient, whatever the number of threads
    const auto saved = context->get_saved_variables();
    const at::Tensor x = saved[0], weight_d = saved[1], scales = saved[2];
    const at::Tensor grad = grads[0].contiguous();
    const int64_t d = weight_d.numel(), rows = x.numel() / d;
    at::Tensor grad_x = at::empty_like(x);
    const bool trained = context->needs_input_grad(1);
    at::Tensor parts;
    if (trained) {
      parts = at::zeros({kParts, d}, wide(x));
    }
    with_type(x, "rms_norm", [&](auto zero) {
      using T = decltype(zero);
      using A = typename rlhf::Wide<T>::Scalar;
      const Norm<T> norm{x.const_data_ptr<T>(), weight_d.const_data_ptr<T>(), d, 0};
      const T* from = grad.const_data_ptr<T>();
      const A* of_rows = scales.const_data_ptr<A>();
      T* to = grad_x.mutable_data_ptr<T>();
      A* sums = trained ? parts.mutable_data_ptr<A>() : nullptr;
      rlhf::for_each_task(kParts, [&](int64_t part) {
        norm_back_of(norm, from, of_rows, to, trained ? sums + part * d : nullptr,
                     rows * part / kParts, rows * (part + 1) / kParts);
      });
    });
    at::Tensor grad_weight;
    if (trained) {
      grad_weight = parts.sum(0).to(weight_d.scalar_type());
    }
    return {grad_x, grad_weight, Variable()};
  }
};

// What is normed, and how.
struct NormInput {
  at::Tensor x;
  std::optional<at::Tensor> added;
  at::Tensor weight_d;
  std::optional<at::Tensor> bias_d;
  double eps;
  bool centred;
};

// The sum and its norm.
std::tuple<at::Tensor, at::Tensor> cpu_norm(const NormInput& it) {
  const at::Tensor total = it.added ? at::add(it.x, *it.added) : it.x;
  if (it.centred) {
    return {total, at::layer_norm(total, it.weight_d.sizes(), it.weight_d, it.bias_d, it.eps)};
  }
  return {total, at::GradMode::is_enabled() ? RmsNorm::apply(total, it.weight_d, it.eps)
                                            : std::get<0>(rms_norm(total, it.weight_d, it.eps))};
}

// What the kernels made: the sum (that of x alone is x), the norm, and each row's mean and scale.
struct Normed {
  at::Tensor total, y, means, scales;
};

Normed run_device_norm(const NormInput& it) {
  const int64_t d = it.weight_d.numel(), rows = it.x.numel() / d;
  const at::Tensor added = it.added.value_or(at::Tensor());
  Normed made{it.added ? at::empty_like(it.x) : it.x, at::empty_like(it.x),
              it.centred ? at::empty({rows}, wide(it.x)) : at::Tensor(), at::empty({rows}, wide(it.x))};
  device::call(&device::Kernels::norm, it.x,
               device::Norm{it.x.data_ptr(), device::at_of(added), it.weight_d.data_ptr(),
                            device::at_of(it.bias_d.value_or(at::Tensor())),
                            it.added ? made.total.data_ptr() : nullptr, made.y.data_ptr(),
                            device::at_of(made.means), made.scales.data_ptr(), rows, d, it.eps});
  return made;
}

struct DeviceNorm : public torch::autograd::Function<DeviceNorm> {
  static variable_list forward(AutogradContext* context, const Variable& x, const Variable& weight_d,
                               const std::optional<Variable>& bias_d,
                               const std::optional<Variable>& added, double eps, bool centred) {
    const Normed made = run_device_norm({x, added, weight_d, bias_d, eps, centred});
    context->save_for_backward({made.total, weight_d, made.means, made.scales});
    context->saved_data["biased"] = bias_d.has_value();
    context->saved_data["added"] = added.has_value();
    context->set_materialize_grads(false);
    return added ? variable_list{made.y, made.total} : variable_list{made.y};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor total = saved[0], weight_d = saved[1], means = saved[2], scales = saved[3];
    const bool biased = context->saved_data["biased"].toBool();
    const bool added = context->saved_data["added"].toBool();
    const at::Tensor beside = added && grads[1].defined() ? grads[1].contiguous() : at::Tensor();
    if (!grads[0].defined()) {
      return {beside, Variable(), Variable(), beside, Variable(), Variable()};
    }
    const at::Tensor grad = grads[0].contiguous();
    const int64_t d = weight_d.numel(), rows = total.numel() / d, parts = device::parts_of(rows);
    at::Tensor grad_x = at::empty_like(total), of_weight, of_bias;
    if (context->needs_input_grad(1)) {
      of_weight = at::empty({parts, d}, wide(total));
    }
    if (biased && context->needs_input_grad(2)) {
      of_bias = at::empty({parts, d}, wide(total));
    }
    device::call(&device::Kernels::norm_back, total,
                 device::NormBack{total.data_ptr(), weight_d.data_ptr(), device::at_of(means),
                                  scales.data_ptr(), grad.data_ptr(), device::at_of(beside),
                                  grad_x.data_ptr(), device::at_of(of_weight), device::at_of(of_bias),
                                  rows, d, parts});
    const auto summed = [&](const at::Tensor& of_parts) {
      return of_parts.defined() ? of_parts.sum(0).to(weight_d.scalar_type()) : at::Tensor();
    };
    return {grad_x,     summed(of_weight), summed(of_bias), added ? grad_x : Variable(),
            Variable(), Variable()};
  }
};

std::tuple<at::Tensor, at::Tensor> device_norm(const NormInput& it) {
  if (!at::GradMode::is_enabled()) {
    const Normed made = run_device_norm(it);
    return {made.total, made.y};
  }
  const variable_list made =
      DeviceNorm::apply(it.x, it.weight_d, it.bias_d, it.added, it.eps, it.centred);
  return {it.added ? made[1] : it.x, made[0]};
}

// To the layout [b, t, h, e], seen as [b, h, t, e].
at::Tensor rotate(const at::Tensor& x_bhte, const at::Tensor& cos, const at::Tensor& sin,
                  bool interleaved, float sign) {
  const int64_t rows = x_bhte.size(0), heads = x_bhte.size(1);
  const int64_t columns = x_bhte.size(2), width = x_bhte.size(3);
  at::Tensor y = at::empty({rows, columns, heads, width}, x_bhte.options());
  const int64_t table_stride = cos.size(0) == 1 ? 0 : cos.stride(0);
  if (device::kernels_for(y) != nullptr) {
    device::call(&device::Kernels::rotate, y,
                 device::Rotation{x_bhte.data_ptr(), x_bhte.stride(0), x_bhte.stride(1),
                                  x_bhte.stride(2), cos.data_ptr(), sin.data_ptr(), table_stride, rows,
                                  heads, columns, width, cos.size(3), interleaved, sign < 0,
                                  y.data_ptr()});
    return y.transpose(1, 2);
  }
  with_type(y, "rotate", [&](auto zero) {
    using T = decltype(zero);
    const Rotation<T> rotation{x_bhte.const_data_ptr<T>(),
                               x_bhte.stride(0),
                               x_bhte.stride(1),
                               x_bhte.stride(2),
                               cos.const_data_ptr<T>(),
                               sin.const_data_ptr<T>(),
                               table_stride,
                               heads,
                               columns,
                               width,
                               cos.size(3),
                               interleaved};
    T* out = y.mutable_data_ptr<T>();
    rlhf::for_each_stretch(rows * columns, heads * width, [&](int64_t begin, int64_t end) {
      rotate_rows_of(rotation, out, sign, begin, end);
    });
  });
  return y.transpose(1, 2);
}

struct Rotate : public torch::autograd::Function<Rotate> {
  static Variable forward(AutogradContext* context, const Variable& x_bhte, const Variable& cos,
                          const Variable& sin, bool interleaved) {
    context->save_for_backward({cos, sin});
    context->saved_data["interleaved"] = interleaved;
    return rotate(x_bhte, cos, sin, interleaved, 1);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    at::Tensor grad = grads[0];
    if (grad.stride(-1) != 1) {
      grad = grad.contiguous();
    }
    const bool interleaved = context->saved_data["interleaved"].toBool();
    return {rotate(grad, saved[0], saved[1], interleaved, -1), Variable(), Variable(), Variable()};
  }
};

}  // namespace

extern "C" {

// `added` and `bias_d` may be null; `total` is x + added.
char* rlhf_norm(at::Tensor* x, at::Tensor* added, at::Tensor* weight_d, at::Tensor* bias_d, double eps,
                bool centred, at::Tensor** total, at::Tensor** out) {
  return rlhf::guarded([&] {
    const auto optional = [](const at::Tensor* tensor) {
      return tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(tensor->contiguous());
    };
    const NormInput input{x->contiguous(), optional(added), *weight_d, optional(bias_d), eps, centred};
    auto [sum, y] = device::kernels_for(*x) != nullptr ? device_norm(input) : cpu_norm(input);
    *total = new at::Tensor(sum);
    *out = new at::Tensor(y);
  });
}

char* rlhf_rotate(at::Tensor* x_bhte, at::Tensor* cos_b1te, at::Tensor* sin_b1te, bool interleaved,
                  at::Tensor** out) {
  return rlhf::guarded([&] {
    *out = new at::Tensor(at::GradMode::is_enabled()
                              ? Rotate::apply(*x_bhte, *cos_b1te, *sin_b1te, interleaved)
                              : rotate(*x_bhte, *cos_b1te, *sin_b1te, interleaved, 1));
  });
}

}  // extern "C"
