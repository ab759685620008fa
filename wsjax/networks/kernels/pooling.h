// Max pooling of images [N, H, W, C] over 3x3 windows at stride 2, padded by one, and its gradient.
//
// Window (a, b) has pixel (2a, 2b) in its middle, so that a pixel of odd row or column lies in several windows.

#pragma once

#include <limits>

#include "cpu.h"

namespace wsjax {

constexpr int TAPS = 9;  // of a window, in row-major order

// Where the taps of a window begin in an image; null outside, where all is minus infinity.
template <typename T>
std::array<const T*, TAPS> taps_of(const T* image, const Images& shape, int64_t a, int64_t b) {
  std::array<const T*, TAPS> taps;
  for (int tap = 0; tap < TAPS; ++tap) {
    const int64_t row = 2 * a - 1 + tap / 3, column = 2 * b - 1 + tap % 3;
    const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
    taps[tap] = inside ? image + (row * shape.width + column) * shape.channels : nullptr;
  }
  return taps;
}

template <typename T>
Vector<T> load_tap(const T* tap, int64_t c, int64_t used) {
  return tap ? load_some(tap + c, used) : -std::numeric_limits<T>::infinity() - Vector<T>{};
}

// y = the maximum of every window; a NaN is the greatest. WHOLE where channels are a whole number of vectors: the
// compiler then knows how many lanes are used.
template <typename T, bool WHOLE>
void max_pool(ffi::ThreadPool& pool, const T* x, const Images& shape, T* y, const Images& y_shape) {
  for_images(pool, shape.count, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      T* to = y + n * y_shape.size();
      for (int64_t a = 0; a < y_shape.height; ++a) {
        for (int64_t b = 0; b < y_shape.width; ++b, to += shape.channels) {
          const auto taps = taps_of(x + n * shape.size(), shape, a, b);
          for (int64_t c = 0; c < shape.channels; c += LANES<T>) {
            const int64_t used = WHOLE ? LANES<T> : shape.channels - c;
            Vector<T> most = load_tap(taps[0], c, used);
            for (int tap = 1; tap < TAPS; ++tap) {
              const Vector<T> value = load_tap(taps[tap], c, used);
              most = (value > most) | (value != value) ? value : most;
            }
            store_some(to + c, most, used);
          }
        }
      }
    }
  });
}

// dx = the gradient for the images: a window's goes to its first pixel that is the maximum.
template <typename T, bool WHOLE>
void max_pool_gradient(ffi::ThreadPool& pool, const T* x, const T* dy, const Images& dy_shape, T* dx,
                       const Images& shape) {
  const int64_t channels = shape.channels, padded = ceil_div(channels, LANES<T>) * LANES<T>;
  for_images(pool, shape.count, [&](int64_t, int64_t first, int64_t last) {
    Scratch<T> winners(dy_shape.pixels() * padded);  // the tap that wins each window
    for (int64_t n = first; n < last; ++n) {
      const T* gradients = dy + n * dy_shape.size();
      T* winner = winners.get();
      for (int64_t a = 0; a < dy_shape.height; ++a) {
        for (int64_t b = 0; b < dy_shape.width; ++b, winner += padded) {
          const auto taps = taps_of(x + n * shape.size(), shape, a, b);
          for (int64_t c = 0; c < channels; c += LANES<T>) {
            const int64_t used = WHOLE ? LANES<T> : channels - c;
            Vector<T> most = load_tap(taps[0], c, used), place = {};
            for (int tap = 1; tap < TAPS; ++tap) {
              const Vector<T> value = load_tap(taps[tap], c, used);
              place = value > most ? T(tap) - Vector<T>{} : place;
              most = value > most ? value : most;
            }
            store(winner + c, place);
          }
        }
      }
      // What window (a, b) sends to its pixel at a tap; nothing where there is no such window.
      const auto sent = [&](int tap, int64_t a, int64_t b, int64_t c) __attribute__((always_inline)) {
        if (a >= dy_shape.height || b >= dy_shape.width) return Vector<T>{};
        const int64_t window = a * dy_shape.width + b;
        const Vector<T> gradient = load_some(gradients + window * channels + c, WHOLE ? LANES<T> : channels - c);
        return load(winners.get() + window * padded + c) == T(tap) - Vector<T>{} ? gradient : Vector<T>{};
      };
      T* image = dx + n * shape.size();
      for (int64_t a = 0; a < dy_shape.height; ++a) {
        for (int64_t b = 0; b < dy_shape.width; ++b) {
          const bool right = 2 * b + 1 < shape.width, below = 2 * a + 1 < shape.height;
          T* to = image + (2 * a * shape.width + 2 * b) * channels;
          for (int64_t c = 0; c < channels; c += LANES<T>) {
            T *even = to + c, *odd = even + shape.width * channels;
            const int64_t used = WHOLE ? LANES<T> : channels - c;
            store_some(even, sent(4, a, b, c), used);
            if (right) store_some(even + channels, sent(5, a, b, c) + sent(3, a, b + 1, c), used);
            if (below) store_some(odd, sent(7, a, b, c) + sent(1, a + 1, b, c), used);
            if (!right || !below) continue;
            const Vector<T> above = sent(8, a, b, c) + sent(6, a, b + 1, c);
            store_some(odd + channels, above + (sent(2, a + 1, b, c) + sent(0, a + 1, b + 1, c)), used);
          }
        }
      }
    }
  });
}

}  // namespace wsjax
