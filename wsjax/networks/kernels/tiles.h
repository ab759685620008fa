// Correlations and their gradients, a tile at a time, and the bordered images that they read.
//
// Images are [N, H, W, C]: a pixel's channels, and the channels of neighbouring pixels in a row, lie side by side. So a
// correlation with K x K taps is, for every row of taps, a product of a run of K * C input values with a [K * C, D]
// matrix, and no patches are copied: a tile of PIXELS output pixels by a few vectors of output channels stays in
// registers while the runs stream by. The gradient for the taps holds a tile of RUN values of the run by a few vectors
// of channels, and streams the pixels.

#pragma once

#include "cpu.h"

namespace wsjax {

#if defined(__AVX512F__)
constexpr int PIXELS = 8, RUN = 12;  // of 32 registers
#elif defined(__AVX__)
constexpr int PIXELS = 6, RUN = 6;  // of 16
#else
constexpr int PIXELS = 8, RUN = 8;
#endif
constexpr int PANEL = 2;  // vectors of output channels in a tile
template <typename T>
constexpr int WIDTH = PANEL * LANES<T>;  // output channels in a panel

struct Border {
  int64_t before, after;  // pixels of zeros, on both axes
};

// The shape of an image in its border.
inline Images with_border(const Images& shape, Border border) {
  const int64_t more = border.before + border.after;
  return {1, shape.height + more, shape.width + more, shape.channels};
}

// Copies images into a border of zeros.
template <typename T>
void add_border(const T* from, const Images& shape, Border border, T* to) {
  const int64_t row = shape.width * shape.channels;
  const int64_t left = border.before * shape.channels, right = border.after * shape.channels;
  const int64_t wide = left + row + right;
  for (int64_t n = 0; n < shape.count; ++n) {
    to = std::fill_n(to, border.before * wide, T(0));
    for (int64_t y = 0; y < shape.height; ++y, from += row) {
      to = std::fill_n(to, left, T(0));
      to = std::copy_n(from, row, to);
      to = std::fill_n(to, right, T(0));
    }
    to = std::fill_n(to, border.after * wide, T(0));
  }
}

// How a call's images and panels are shared out among tasks.
struct Shares {
  int64_t panel_tasks, panels_each, images_each, image_tasks;
  // A task has `most` panels at most, and `least` images at least, where there are as many.
  Shares(int64_t images, int64_t panels, int64_t most, int64_t least = 1)
      : panel_tasks(ceil_div(panels, most)),
        panels_each(ceil_div(panels, panel_tasks)),
        images_each(std::min(std::max(ceil_div(images * panel_tasks, std::max(TASKS, panel_tasks)), least), images)),
        image_tasks(ceil_div(images, images_each)) {}
  int64_t tasks() const { return panel_tasks * image_tasks; }
};

// Where a pixel's window begins in the input, and where its output goes.
struct Place {
  int64_t in, out;
};

// out[p][...] = sum over rows i and values l of the run: in[p][i * pitch + l] * weights[i][l][...], VECTORS wide.
template <typename T, int VECTORS>
__attribute__((noinline)) void correlate_tile(const T* in, T* out, const Place (&places)[PIXELS], int64_t rows,
                                              int64_t pitch, int64_t run, const T* weights, int64_t channels) {
  constexpr int TURNS = PANEL / VECTORS;  // a single vector takes turns on several sums, lest each wait for the last
  Vector<T> sums[PIXELS][PANEL] = {};
  const T* at[PIXELS];
  for (int p = 0; p < PIXELS; ++p) at[p] = in + places[p].in;
  const auto add = [&](int64_t l, int turn) __attribute__((always_inline)) {
    Vector<T> w[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) w[v] = load(weights + l * WIDTH<T> + v * LANES<T>);
#pragma GCC unroll 16
    for (int p = 0; p < PIXELS; ++p) {
      const Vector<T> value = at[p][l] - Vector<T>{};
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[p][turn * VECTORS + v] += value * w[v];
    }
  };
  for (int64_t i = 0; i < rows; ++i) {
    int64_t l = 0;
    for (; l + TURNS <= run; l += TURNS) {
#pragma GCC unroll 8
      for (int turn = 0; turn < TURNS; ++turn) add(l + turn, turn);
    }
    for (; l < run; ++l) add(l, 0);
    weights += run * WIDTH<T>;
    for (int p = 0; p < PIXELS; ++p) at[p] += pitch;
  }
  for (int p = 0; p < PIXELS; ++p) {
    for (int turn = 1; turn < TURNS; ++turn) {
      for (int v = 0; v < VECTORS; ++v) sums[p][v] += sums[p][turn * VECTORS + v];
    }
    T* to = out + places[p].out;
    if (channels >= VECTORS * LANES<T>) {
      for (int v = 0; v < VECTORS; ++v) store(to + v * LANES<T>, sums[p][v]);
    } else {
      std::memcpy(to, sums[p], channels * sizeof(T));
    }
  }
}

// sums[m][...] += sum over pixels p: x[offsets[p] + m] * dy[p * step][...], VECTORS wide, for m < used; RUN * PANEL /
// VECTORS values are read of each x.
template <typename T, int VECTORS>
__attribute__((noinline)) void gradient_tile(const T* x, const int64_t* offsets, const T* dy, int64_t step,
                                             int64_t pixels, T* sums, int64_t used) {
  constexpr int VALUES = RUN * PANEL / VECTORS;
  Vector<T> tile[VALUES][VECTORS] = {};
  for (int64_t p = 0; p < pixels; ++p, dy += step) {
    const T* values = x + offsets[p];
    Vector<T> d[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) d[v] = load(dy + v * LANES<T>);
#pragma GCC unroll 32
    for (int m = 0; m < VALUES; ++m) {
      const Vector<T> value = values[m] - Vector<T>{};
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) tile[m][v] += value * d[v];
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < VALUES; ++m) {
    if (m < used) {
      for (int v = 0; v < VECTORS; ++v) {
        T* to = sums + m * WIDTH<T> + v * LANES<T>;
        store(to, load(to) + tile[m][v]);
      }
    }
  }
}

// How many values of the run a gradient's tile covers, for so many channels of a panel.
template <typename T>
int64_t gradient_values(int64_t channels) {
  return channels > LANES<T> ? RUN : RUN * PANEL;
}

}  // namespace wsjax
