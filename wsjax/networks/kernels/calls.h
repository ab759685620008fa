// What the kernels' calls from XLA's programs have in common. A library is for values of one type, float or double: VALUE.

#pragma once

#include <type_traits>

#include "cpu.h"

namespace wsjax {
namespace {

using Value = VALUE;
constexpr ffi::DataType TYPE = std::is_same_v<Value, float> ? ffi::F32 : ffi::F64;
using Buffer = ffi::Buffer<TYPE>;
using Result = ffi::Result<Buffer>;

template <typename Array>
Images images_of(const Array& array) {
  const auto shape = array.dimensions();
  return {shape[0], shape[1], shape[2], shape[3]};
}

// A handler's arguments and results, of which there is one at least.
template <int ARGUMENTS, int RESULTS, typename Binding>
auto buffers(Binding&& binding) {
  if constexpr (ARGUMENTS > 0) {
    return buffers<ARGUMENTS - 1, RESULTS>(std::move(binding).template Arg<Buffer>());
  } else if constexpr (RESULTS > 1) {
    return buffers<0, RESULTS - 1>(std::move(binding).template Ret<Buffer>());
  } else {
    return std::move(binding).template Ret<Buffer>();
  }
}

template <int ARGUMENTS, int RESULTS>
auto call() {
  return buffers<ARGUMENTS, RESULTS>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>());
}

}  // namespace
}  // namespace wsjax
