// Batch normalisation of images [N, H, W, C], with the shortcut and the ReLU that follow it, and its gradient.

#pragma once

#include "cpu.h"

namespace wsjax {

constexpr int64_t BLOCK_BYTES = 16 << 10;  // of pixels that are summed at a time: part of a core's first cache
constexpr int64_t FOLDED = 256;            // channels of neighbouring pixels that a loop runs over, at least

// Several pixels taken as one with many channels, so that loops over channels are long.
struct Fold {
  int64_t channels, pixels;
  explicit Fold(const Images& shape) : channels(shape.channels), pixels(1) {
    while (channels * pixels < FOLDED && shape.pixels() % (2 * pixels) == 0) pixels *= 2;
  }
  int64_t size() const { return channels * pixels; }
  template <typename T>
  void sum(T* values) const {  // over the pixels, into the first
    for (const T* from = values + channels; from < values + size(); from += channels) {
      for (int64_t c = 0; c < channels; ++c) values[c] += from[c];
    }
  }
  template <typename T>
  void spread(const T* from, T* to) const {  // `from` may be where `to` begins
    for (int64_t i = 0; i < size(); i += channels) {
      for (int64_t c = 0; c < channels; ++c) to[i + c] = from[c];
    }
  }
};

// Calls task(image, first value, end) for blocks of images [first, last), each of folded pixels.
template <typename T, typename Task>
void for_blocks(const Images& shape, const Fold& fold, int64_t first, int64_t last, const Task& task) {
  const int64_t block = std::max<int64_t>(BLOCK_BYTES / (fold.size() * sizeof(T)), 1) * fold.size();
  for (int64_t n = first; n < last; ++n) {
    const int64_t begin = n * shape.size(), end = begin + shape.size();
    for (int64_t i = begin; i < end; i += block) task(n, i, std::min(i + block, end));
  }
}

// The loops over values: their channels come round every `size`, and every channel's are added up in the order of the
// pixels.

// What lies at `from`, one value or a vector of them.
template <typename T>
T load_as(T, const T* from) { return *from; }
template <typename T>
Vector<T> load_as(Vector<T>, const T* from) { return load(from); }

// sums[c] += term(value, c) of all values, a few vectors of channels at a time, whose sums stay in registers.
template <typename T, typename Term>
void add_terms(const T* x, int64_t count, int64_t size, T* sums, const Term& term) {
  constexpr int STRIP = 4;
  int64_t c = 0;
  for (; c + STRIP * LANES<T> <= size; c += STRIP * LANES<T>) {
    Vector<T> own[STRIP];
    for (int v = 0; v < STRIP; ++v) own[v] = load(sums + c + v * LANES<T>);
    for (int64_t i = c; i < count; i += size) {
#pragma GCC unroll 4
      for (int v = 0; v < STRIP; ++v) term(own[v], load(x + i + v * LANES<T>), c + v * LANES<T>);
    }
    for (int v = 0; v < STRIP; ++v) store(sums + c + v * LANES<T>, own[v]);
  }
  for (; c < size; ++c) {
    for (int64_t i = c; i < count; i += size) term(sums[c], x[i], c);
  }
}

template <typename T>
void add_values(const T* x, int64_t count, int64_t size, T* sums) {
  add_terms(x, count, size, sums, [](auto& sum, auto value, int64_t) __attribute__((always_inline)) { sum += value; });
}

template <typename T>
void add_squares(const T* x, int64_t count, int64_t size, const T* means, T* sums) {
  add_terms(x, count, size, sums, [means](auto& sum, auto value, int64_t c) __attribute__((always_inline)) {
    const auto difference = value - load_as(value, means + c);
    sum += difference * difference;
  });
}

// A function of its own, for only there does __restrict count; so is the next.
template <typename T, bool SHORTCUT, bool RELU>
void normalise_values(const T* __restrict x, int64_t count, int64_t size, const T* __restrict means,
                      const T* __restrict factors, const T* __restrict biases, const T* __restrict shortcut,
                      T* __restrict y) {
  for (int64_t i = 0; i < count; i += size) {
    for (int64_t c = 0; c < size; ++c) {
      T value = (x[i + c] - means[c]) * factors[c] + biases[c];
      if (SHORTCUT) value += shortcut[i + c];
      y[i + c] = RELU && value < 0 ? T(0) : value;  // a NaN stays one
    }
  }
}

template <typename T, bool RELU>
void add_gradients(const T* __restrict dz, const T* __restrict z, const T* __restrict x, int64_t count, int64_t size,
                   const T* __restrict means, T* __restrict dy, T* __restrict sums, T* __restrict products) {
  for (int64_t i = 0; i < count; i += size) {
    for (int64_t c = 0; c < size; ++c) {
      T value = dz[i + c];
      if (RELU) dy[i + c] = value = z[i + c] > 0 ? value : T(0);
      sums[c] += value;
      products[c] += value * (x[i + c] - means[c]);
    }
  }
}

// The mean over all pixels and the sum of squared deviations from it, each channel apart, of images with weights.
//
// One pass through memory: the moments of blocks that stay in the cache are merged (Chan, Golub and LeVeque 1979).
template <typename T>
void moments(ffi::ThreadPool& pool, const T* x, const Images& shape, const T* weights, T* mean, T* squares) {
  const Fold fold(shape);
  struct Moments {
    T weight = 0;
    std::vector<T> mean, squares;
    void merge(T other_weight, const T* other_mean, const T* other_squares) {
      const T total = weight + other_weight, share = total > 0 ? other_weight / total : T(0);
      for (size_t c = 0; c < mean.size(); ++c) {
        const T difference = other_mean[c] - mean[c];
        mean[c] += difference * share;
        squares[c] += other_squares[c] + difference * difference * weight * share;
      }
      weight = total;
    }
  };
  const Moments none = {0, std::vector<T>(shape.channels), std::vector<T>(shape.channels)};
  std::vector<Moments> parts(TASKS, none);
  for_images(pool, shape.count, [&](int64_t task, int64_t first, int64_t last) {
    Scratch<T> scratch(2 * fold.size());
    T *sums = scratch.get(), *deviations = sums + fold.size();
    for_blocks<T>(shape, fold, first, last, [&](int64_t image, int64_t begin, int64_t end) {
      if (weights[image] == T(0)) return;
      std::fill_n(sums, 2 * fold.size(), T(0));
      add_values(x + begin, end - begin, fold.size(), sums);
      fold.sum(sums);
      const int64_t pixels = (end - begin) / shape.channels;
      for (int64_t c = 0; c < shape.channels; ++c) sums[c] /= pixels;
      fold.spread(sums, sums);
      add_squares(x + begin, end - begin, fold.size(), sums, deviations);
      fold.sum(deviations);
      for (int64_t c = 0; c < shape.channels; ++c) deviations[c] *= weights[image];
      parts[task].merge(weights[image] * pixels, sums, deviations);
    });
  });
  Moments whole = none;
  for (const Moments& part : parts) whole.merge(part.weight, part.mean.data(), part.squares.data());
  std::copy_n(whole.mean.data(), shape.channels, mean);
  std::copy_n(whole.squares.data(), shape.channels, squares);
}

// y = (x - mean) * factor + bias, + shortcut where there is one, and no less than 0 where RELU is asked for.
template <typename T, bool SHORTCUT, bool RELU>
void normalise(ffi::ThreadPool& pool, const T* x, const Images& shape, const T* mean, const T* factor, const T* bias,
               const T* shortcut, T* y) {
  const Fold fold(shape);
  for_images(pool, shape.count, [&](int64_t, int64_t first, int64_t last) {
    Scratch<T> scratch(3 * fold.size());
    T *means = scratch.get(), *factors = means + fold.size(), *biases = factors + fold.size();
    fold.spread(mean, means), fold.spread(factor, factors), fold.spread(bias, biases);
    const int64_t begin = first * shape.size(), count = (last - first) * shape.size();
    normalise_values<T, SHORTCUT, RELU>(x + begin, count, fold.size(), means, factors, biases,
                                        SHORTCUT ? shortcut + begin : nullptr, y + begin);
  });
}

// dy = dz where the ReLU's result z is above 0, or everywhere without RELU (then `dy` is not written); and the sums
// over all pixels of dy, and of dy * (x - mean), each channel apart.
template <typename T, bool RELU>
void normalise_gradient(ffi::ThreadPool& pool, const T* dz, const T* z, const T* x, const Images& shape, const T* mean,
                        T* dy, T* sums, T* products) {
  const Fold fold(shape);
  const int64_t channels = shape.channels;
  std::vector<T> parts(TASKS * 2 * channels, T(0));
  for_images(pool, shape.count, [&](int64_t task, int64_t first, int64_t last) {
    Scratch<T> scratch(3 * fold.size());
    T *means = scratch.get(), *block_sums = means + fold.size(), *block_products = block_sums + fold.size();
    T *own_sums = &parts[task * 2 * channels], *own_products = own_sums + channels;
    fold.spread(mean, means);
    for_blocks<T>(shape, fold, first, last, [&](int64_t, int64_t begin, int64_t end) {
      std::fill_n(block_sums, 2 * fold.size(), T(0));
      add_gradients<T, RELU>(dz + begin, RELU ? z + begin : nullptr, x + begin, end - begin, fold.size(), means,
                             RELU ? dy + begin : nullptr, block_sums, block_products);
      fold.sum(block_sums), fold.sum(block_products);
      for (int64_t c = 0; c < channels; ++c) own_sums[c] += block_sums[c], own_products[c] += block_products[c];
    });
  });
  std::fill_n(sums, channels, T(0));
  std::fill_n(products, channels, T(0));
  for (int64_t task = 0; task < TASKS; ++task) {
    for (int64_t c = 0; c < channels; ++c) {
      sums[c] += parts[task * 2 * channels + c];
      products[c] += parts[(task * 2 + 1) * channels + c];
    }
  }
}

}  // namespace wsjax
