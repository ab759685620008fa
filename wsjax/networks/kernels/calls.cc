// The kernels as XLA's programs call them; __init__.py compiles and registers them.

#include "convolution.h"
#include "normalisation.h"
#include "pooling.h"

namespace wsjax {
namespace {

Images images_of(const ffi::AnyBuffer& buffer) {
  const auto shape = buffer.dimensions();
  return {shape[0], shape[1], shape[2], shape[3]};
}

// Calls `function` with a zero of the buffer's type.
template <typename Function>
ffi::Error by_type(const ffi::AnyBuffer& buffer, const Function& function) {
  if (buffer.element_type() == ffi::F32) return function(float()), ffi::Error::Success();
  if (buffer.element_type() == ffi::F64) return function(double()), ffi::Error::Success();
  return ffi::Error::InvalidArgument("only float32 and float64");
}

// Calls function(pool, in, its shape, kernel, window, out, its shape).
template <typename Function>
ffi::Error with_kernel(ffi::ThreadPool& pool, const ffi::AnyBuffer& in, const ffi::AnyBuffer& kernel,
                       ffi::AnyBuffer& out, int64_t stride, int64_t padding, const Function& function) {
  const Window window = {kernel.dimensions()[0], stride, padding};
  return by_type(in, [&](auto zero) {
    using T = decltype(zero);
    function(pool, in.reinterpret_data<T>(), images_of(in), kernel.reinterpret_data<T>(), window,
             out.reinterpret_data<T>(), images_of(out));
  });
}

ffi::Error convolve_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> y,
                         int64_t stride, int64_t padding) {
  return with_kernel(pool, x, kernel, *y, stride, padding, [](auto&&... arguments) { convolve(arguments...); });
}

ffi::Error images_gradient_call(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer kernel,
                                ffi::Result<ffi::AnyBuffer> dx, int64_t stride, int64_t padding) {
  return with_kernel(pool, dy, kernel, *dx, stride, padding,
                     [](auto&&... arguments) { images_gradient(arguments...); });
}

ffi::Error kernel_gradient_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy,
                                ffi::Result<ffi::AnyBuffer> dkernel, int64_t stride, int64_t padding) {
  const Window window = {dkernel->dimensions()[0], stride, padding};
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    kernel_gradient(pool, x.reinterpret_data<T>(), images_of(x), dy.reinterpret_data<T>(), images_of(dy), window,
                    dkernel->reinterpret_data<T>());
  });
}

ffi::Error moments_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer weights,
                        ffi::Result<ffi::AnyBuffer> mean, ffi::Result<ffi::AnyBuffer> squares) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    moments(pool, x.reinterpret_data<T>(), images_of(x), weights.reinterpret_data<T>(), mean->reinterpret_data<T>(),
            squares->reinterpret_data<T>());
  });
}

// The shortcut may be empty.
ffi::Error normalise_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer mean, ffi::AnyBuffer factor,
                          ffi::AnyBuffer bias, ffi::AnyBuffer shortcut, ffi::Result<ffi::AnyBuffer> y, int64_t relu) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const bool has_shortcut = shortcut.element_count() > 0;
    const auto run = has_shortcut ? (relu ? normalise<T, true, true> : normalise<T, true, false>)
                                  : (relu ? normalise<T, false, true> : normalise<T, false, false>);
    run(pool, x.reinterpret_data<T>(), images_of(x), mean.reinterpret_data<T>(), factor.reinterpret_data<T>(),
        bias.reinterpret_data<T>(), shortcut.reinterpret_data<T>(), y->reinterpret_data<T>());
  });
}

// Without ReLU there is neither z nor dy: both are empty.
ffi::Error normalise_gradient_call(ffi::ThreadPool pool, ffi::AnyBuffer dz, ffi::AnyBuffer z, ffi::AnyBuffer x,
                                   ffi::AnyBuffer mean, ffi::Result<ffi::AnyBuffer> dy,
                                   ffi::Result<ffi::AnyBuffer> sums, ffi::Result<ffi::AnyBuffer> products) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const auto run = z.element_count() > 0 ? normalise_gradient<T, true> : normalise_gradient<T, false>;
    run(pool, dz.reinterpret_data<T>(), z.reinterpret_data<T>(), x.reinterpret_data<T>(), images_of(x),
        mean.reinterpret_data<T>(), dy->reinterpret_data<T>(), sums->reinterpret_data<T>(),
        products->reinterpret_data<T>());
  });
}

// Whether channels are a whole number of vectors.
template <typename T>
bool is_whole(const ffi::AnyBuffer& images) {
  return images_of(images).channels % LANES<T> == 0;
}

ffi::Error max_pool_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const auto run = is_whole<T>(x) ? max_pool<T, true> : max_pool<T, false>;
    run(pool, x.reinterpret_data<T>(), images_of(x), y->reinterpret_data<T>(), images_of(*y));
  });
}

ffi::Error max_pool_gradient_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy,
                                  ffi::Result<ffi::AnyBuffer> dx) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const auto run = is_whole<T>(x) ? max_pool_gradient<T, true> : max_pool_gradient<T, false>;
    run(pool, x.reinterpret_data<T>(), dy.reinterpret_data<T>(), images_of(dy), dx->reinterpret_data<T>(),
        images_of(*dx));
  });
}

// A handler's arguments and results, of which there is one at least.
template <int ARGUMENTS, int RESULTS, typename Binding>
auto buffers(Binding&& binding) {
  if constexpr (ARGUMENTS > 0) {
    return buffers<ARGUMENTS - 1, RESULTS>(std::move(binding).template Arg<ffi::AnyBuffer>());
  } else if constexpr (RESULTS > 1) {
    return buffers<0, RESULTS - 1>(std::move(binding).template Ret<ffi::AnyBuffer>());
  } else {
    return std::move(binding).template Ret<ffi::AnyBuffer>();
  }
}

template <int ARGUMENTS, int RESULTS>
auto call() {
  return buffers<ARGUMENTS, RESULTS>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>());
}

auto convolution() { return call<2, 1>().Attr<int64_t>("stride").Attr<int64_t>("padding"); }
auto of_moments() { return call<2, 2>(); }
auto normalisation() { return call<5, 1>().Attr<int64_t>("relu"); }
auto normalisation_gradient() { return call<4, 3>(); }
auto pooling() { return call<1, 1>(); }
auto pooling_gradient() { return call<2, 1>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_convolve, convolve_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_images_gradient, images_gradient_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_kernel_gradient, kernel_gradient_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_moments, moments_call, of_moments());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_normalise, normalise_call, normalisation());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_normalise_gradient, normalise_gradient_call, normalisation_gradient());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_max_pool, max_pool_call, pooling());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_max_pool_gradient, max_pool_gradient_call, pooling_gradient());

}  // namespace wsjax
