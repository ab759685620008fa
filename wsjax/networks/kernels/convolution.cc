// Convolutions as XLA's programs call them; __init__.py compiles and registers them.

#include "calls.h"
#include "convolution.h"

namespace wsjax {
namespace {

ffi::Error convolve_call(ffi::ThreadPool pool, Buffer x, Buffer kernel, Result y, int64_t stride, int64_t padding) {
  const Window window = {kernel.dimensions()[0], stride, padding};
  convolve(pool, x.typed_data(), images_of(x), kernel.typed_data(), window, y->typed_data(), images_of(*y));
  return ffi::Error::Success();
}

ffi::Error images_gradient_call(ffi::ThreadPool pool, Buffer dy, Buffer kernel, Result dx, int64_t stride,
                                int64_t padding) {
  const Window window = {kernel.dimensions()[0], stride, padding};
  images_gradient(pool, dy.typed_data(), images_of(dy), kernel.typed_data(), window, dx->typed_data(), images_of(*dx));
  return ffi::Error::Success();
}

ffi::Error kernel_gradient_call(ffi::ThreadPool pool, Buffer x, Buffer dy, Result dkernel, int64_t stride,
                                int64_t padding) {
  const Window window = {dkernel->dimensions()[0], stride, padding};
  kernel_gradient(pool, x.typed_data(), images_of(x), dy.typed_data(), images_of(dy), window, dkernel->typed_data());
  return ffi::Error::Success();
}

auto convolution() { return call<2, 1>().Attr<int64_t>("stride").Attr<int64_t>("padding"); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_convolve, convolve_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_images_gradient, images_gradient_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_kernel_gradient, kernel_gradient_call, convolution());

}  // namespace wsjax
