// Batch normalisation and pooling as XLA's programs call them; __init__.py compiles and registers them.

#include "calls.h"
#include "normalisation.h"
#include "pooling.h"

namespace wsjax {
namespace {

ffi::Error moments_call(ffi::ThreadPool pool, Buffer x, Buffer weights, Result mean, Result squares) {
  moments(pool, x.typed_data(), images_of(x), weights.typed_data(), mean->typed_data(), squares->typed_data());
  return ffi::Error::Success();
}

// The shortcut may be empty.
ffi::Error normalise_call(ffi::ThreadPool pool, Buffer x, Buffer mean, Buffer factor, Buffer bias, Buffer shortcut,
                          Result y, int64_t relu) {
  const bool has_shortcut = shortcut.element_count() > 0;
  const auto run = has_shortcut ? (relu ? normalise<Value, true, true> : normalise<Value, true, false>)
                                : (relu ? normalise<Value, false, true> : normalise<Value, false, false>);
  run(pool, x.typed_data(), images_of(x), mean.typed_data(), factor.typed_data(), bias.typed_data(),
      shortcut.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

// Without ReLU there is neither z nor dy: both are empty.
ffi::Error normalise_gradient_call(ffi::ThreadPool pool, Buffer dz, Buffer z, Buffer x, Buffer mean, Result dy,
                                   Result sums, Result products) {
  const auto run = z.element_count() > 0 ? normalise_gradient<Value, true> : normalise_gradient<Value, false>;
  run(pool, dz.typed_data(), z.typed_data(), x.typed_data(), images_of(x), mean.typed_data(), dy->typed_data(),
      sums->typed_data(), products->typed_data());
  return ffi::Error::Success();
}

// Whether channels are a whole number of vectors.
bool is_whole(const Buffer& images) { return images_of(images).channels % LANES<Value> == 0; }

ffi::Error max_pool_call(ffi::ThreadPool pool, Buffer x, Result y) {
  const auto run = is_whole(x) ? max_pool<Value, true> : max_pool<Value, false>;
  run(pool, x.typed_data(), images_of(x), y->typed_data(), images_of(*y));
  return ffi::Error::Success();
}

ffi::Error max_pool_gradient_call(ffi::ThreadPool pool, Buffer x, Buffer dy, Result dx) {
  const auto run = is_whole(x) ? max_pool_gradient<Value, true> : max_pool_gradient<Value, false>;
  run(pool, x.typed_data(), dy.typed_data(), images_of(dy), dx->typed_data(), images_of(*dx));
  return ffi::Error::Success();
}

auto of_moments() { return call<2, 2>(); }
auto normalisation() { return call<5, 1>().Attr<int64_t>("relu"); }
auto normalisation_gradient() { return call<4, 3>(); }
auto pooling() { return call<1, 1>(); }
auto pooling_gradient() { return call<2, 1>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_moments, moments_call, of_moments());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_normalise, normalise_call, normalisation());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_normalise_gradient, normalise_gradient_call, normalisation_gradient());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_max_pool, max_pool_call, pooling());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_max_pool_gradient, max_pool_gradient_call, pooling_gradient());

}  // namespace wsjax
