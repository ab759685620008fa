// What all kernels share: vectors of values, memory to work in, threads, shapes.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace wsjax {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int64_t ALIGNMENT = 64;
constexpr int64_t TASKS = 16;               // a call's tasks, about; not by the number of threads, which changes no bit
constexpr int64_t CACHE_BYTES = 512 << 10;  // of input that a task works on at a time: part of a core's cache

template <typename T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);
template <typename T>
struct Simd {
  typedef T Vector __attribute__((vector_size(VECTOR_BYTES)));
  typedef T Anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));  // in memory
};
template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T>
Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename Simd<T>::Anywhere*>(from);
}

template <typename T>
void store(T* to, const typename Simd<T>::Vector& values) {
  *reinterpret_cast<typename Simd<T>::Anywhere*>(to) = values;
}

// The same for the first `used` lanes, where there are not as many.
template <typename T>
Vector<T> load_some(const T* from, int64_t used) {
  if (used >= LANES<T>) return load(from);
  Vector<T> values = {};
  std::memcpy(&values, from, used * sizeof(T));
  return values;
}

template <typename T>
void store_some(T* to, const typename Simd<T>::Vector& values, int64_t used) {
  if (used >= LANES<T>) return store(to, values);
  std::memcpy(to, &values, used * sizeof(T));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that is not initialised. Threads keep what they used: fresh pages cost more than what is computed in them.
class Blocks {
 public:
  ~Blocks() {
    for (auto& blocks : free_) std::for_each(blocks.begin(), blocks.end(), std::free);
  }
  // A block of 2^power bytes.
  void* take(int power) {
    if (free_[power].empty()) {
      void* block = std::aligned_alloc(ALIGNMENT, size_t{1} << power);
      if (block == nullptr) throw std::bad_alloc();
      return block;
    }
    void* block = free_[power].back();
    free_[power].pop_back();
    return block;
  }
  void give(int power, void* block) { free_[power].push_back(block); }

 private:
  std::array<std::vector<void*>, 64> free_;  // by power
};

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size) {
    while ((int64_t{1} << power_) < size * static_cast<int64_t>(sizeof(T))) ++power_;
    data_ = static_cast<T*>(blocks_.take(power_));
  }
  ~Scratch() { blocks_.give(power_, data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  static inline thread_local Blocks blocks_;
  int power_ = 6;
  T* data_;
};

// Calls task(i) for every i below `count`, on XLA's threads and on this one, and returns when all are done.
template <typename Task>
void parallel_for(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  // A helper that comes too late finds nothing to do, and touches nothing but `progress`.
  auto work = [progress, count, &task] {
    for (int64_t i; (i = progress->next.fetch_add(1)) < count; progress->done.fetch_add(1)) task(i);
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  while (progress->done.load() < count) std::this_thread::yield();
}

// Calls task(number, first, last) for the parts that images are cut into, at most TASKS.
template <typename Task>
void for_images(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  const int64_t each = ceil_div(count, TASKS), tasks = ceil_div(count, each);
  parallel_for(pool, tasks, [&](int64_t i) { task(i, i * each, std::min((i + 1) * each, count)); });
}

struct Images {
  int64_t count, height, width, channels;
  int64_t size() const { return height * width * channels; }  // of one image
  int64_t pixels() const { return height * width; }           // of one image
};

}  // namespace wsjax
