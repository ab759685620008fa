// Winograd's F(M x M, 3x3): M x M pixels of a 3x3 correlation take (M + 2)^2 products in place of 9 M^2, 16 of 36 where
// M is 2, 36 of 144 where it is 4.
//
// A patch of M + 2 by M + 2 pixels and the window are transformed, multiplied value by value (summed over channels,
// which makes (M + 2)^2 matrix products), and transformed back (Lavin and Gray 2016, https://arxiv.org/abs/1509.09308).

#pragma once

#include "tiles.h"

namespace wsjax {

// Where the transforms pay; that of a large window, which does not stay in the cache, needs more patches.
constexpr int64_t WINOGRAD_MIN_CHANNELS = 32, WINOGRAD_MIN_PATCHES = 64;
constexpr int64_t LEAST_PATCHES = 32;           // that are transformed at a time
constexpr int64_t SUMS_BYTES = 5 * CACHE_BYTES;  // of a gradient's task, about
constexpr int64_t SUMMED_PATCHES = 64;           // of a gradient's task, at least: its sums go through memory
template <int M>
constexpr int PLANES = (M + 2) * (M + 2);

// The M x M pixels that images are cut into, numbered in row-major order.
template <int M>
struct Patches {
  int64_t rows, columns;  // of an image
  Patches(int64_t height, int64_t width) : rows(ceil_div(height, M)), columns(ceil_div(width, M)) {}
  int64_t count() const { return rows * columns; }
  // By how many pixels the last ones go beyond an image.
  int64_t beyond(const Images& out) const { return std::max(rows * M - out.height, columns * M - out.width); }
  int64_t image(int64_t index) const { return index / count(); }
  int64_t y(int64_t index) const { return index % count() / columns * M; }  // of the first pixel
  int64_t x(int64_t index) const { return index % columns * M; }
};

// How many patches are transformed at a time, and of how many images they are: as many as a part of the cache holds, or
// enough for a pass over the weights to pay.
struct Portion {
  int64_t patches, images;
  // Of images of so many patches of so many bytes each, no more than `most` images.
  Portion(int64_t each, int64_t bytes, int64_t most)
      : patches(std::max<int64_t>(CACHE_BYTES / bytes, LEAST_PATCHES)),
        images(std::clamp<int64_t>(ceil_div(patches, each), 1, most)) {
    patches = std::min(patches, images * each);
  }
};

// The M that costs least, of images to `out` channels and of the window; 0 where the transforms outweigh what they save.
inline int winograd_size(int64_t channels, const Images& out) {
  const int64_t narrow = std::min(channels, out.channels), least = std::max(WINOGRAD_MIN_PATCHES, narrow / 2);
  if (narrow < WINOGRAD_MIN_CHANNELS) return 0;
  const bool is_whole = out.height % 4 == 0 && out.width % 4 == 0;  // beyond the edge all is for nothing
  if (is_whole && out.count * Patches<4>(out.height, out.width).count() >= least) return 4;
  return out.count * Patches<2>(out.height, out.width).count() >= least ? 2 : 0;
}

// The transforms along one axis: polynomials' values at M + 1 points and at infinity.
template <typename T, int M>
struct Transform;

// At 0, 1, -1.
template <typename T>
struct Transform<T, 2> {
  using V = Vector<T>;
  static void patch(const V (&d)[4], V (&to)[4]) {
    to[0] = d[0] - d[2], to[1] = d[1] + d[2], to[2] = d[2] - d[1], to[3] = d[1] - d[3];
  }
  static void window(const V (&g)[3], V (&to)[4]) {
    to[0] = g[0], to[1] = (g[0] + g[1] + g[2]) / 2, to[2] = (g[0] - g[1] + g[2]) / 2, to[3] = g[2];
  }
  static void back(const V (&m)[4], V (&to)[2]) { to[0] = m[0] + m[1] + m[2], to[1] = m[1] - m[2] - m[3]; }
  static void pixels(const V (&y)[2], V (&to)[4]) {
    to[0] = y[0], to[1] = y[0] + y[1], to[2] = y[0] - y[1], to[3] = -y[1];
  }
  static void taps(const V (&m)[4], V (&to)[3]) {
    const V sum = (m[1] + m[2]) / 2;
    to[0] = m[0] + sum, to[1] = (m[1] - m[2]) / 2, to[2] = sum + m[3];
  }
};

// At 0, 1, -1, 2, -1/2: rounding costs about what it costs a plain sum, at 0, 1, -1, 2, -2 five times that.
template <typename T>
struct Transform<T, 4> {
  using V = Vector<T>;
  static constexpr T THIRD = T(1) / 3, FIFTEENTH = T(1) / 15;
  static void patch(const V (&d)[6], V (&to)[6]) {
    const V a = d[2] - d[0], b = d[3] - d[1], c = d[4] - d[2], e = d[5] - d[3];
    const V even = c - d[3] * T(1.5), odd = b - d[2] * T(1.5);
    to[0] = c - b * T(1.5) - a, to[1] = even + odd, to[2] = even - odd;
    to[3] = c + b * T(0.5), to[4] = c - b * T(2), to[5] = e - c * T(1.5) - b;
  }
  static void window(const V (&g)[3], V (&to)[6]) {
    const V even = (g[0] + g[2]) * THIRD, odd = g[1] * THIRD;
    to[0] = g[0], to[1] = -even - odd, to[2] = even - odd, to[5] = g[2];
    to[3] = (g[0] + g[1] * T(2) + g[2] * T(4)) * FIFTEENTH;
    to[4] = (g[1] * T(8) - g[0] * T(16) - g[2] * T(4)) * FIFTEENTH;
  }
  static void back(const V (&m)[6], V (&to)[4]) {
    const V sum = m[1] + m[2], difference = m[1] - m[2];
    to[0] = m[0] + sum + m[3] + m[4], to[1] = difference + m[3] * T(2) - m[4] * T(0.5);
    to[2] = sum + m[3] * T(4) + m[4] * T(0.25), to[3] = difference + m[3] * T(8) - m[4] * T(0.125) + m[5];
  }
  static void pixels(const V (&y)[4], V (&to)[6]) {
    const V even = y[0] + y[2], odd = y[1] + y[3];
    to[0] = y[0], to[1] = even + odd, to[2] = even - odd, to[5] = y[3];
    to[3] = y[0] + y[1] * T(2) + y[2] * T(4) + y[3] * T(8);
    to[4] = y[0] - y[1] * T(0.5) + y[2] * T(0.25) - y[3] * T(0.125);
  }
  static void taps(const V (&m)[6], V (&to)[3]) {
    const V difference = (m[2] - m[1]) * THIRD, sum = (m[1] + m[2]) * THIRD;
    to[0] = m[0] + difference + (m[3] - m[4] * T(16)) * FIFTEENTH;
    to[1] = (m[3] * T(2) + m[4] * T(8)) * FIFTEENTH - sum;
    to[2] = difference + (m[3] - m[4]) * (4 * FIFTEENTH) + m[5];
  }
};

// Applies the transform of one axis to both.
template <typename V, int FROM, int TO>
__attribute__((always_inline)) inline void on_both(void (*along)(const V (&)[FROM], V (&)[TO]),
                                                   const V (&from)[FROM][FROM], V (&to)[TO][TO]) {
  V half[TO][FROM];
#pragma GCC unroll 8
  for (int j = 0; j < FROM; ++j) {
    V column[FROM], done[TO];
#pragma GCC unroll 8
    for (int i = 0; i < FROM; ++i) column[i] = from[i][j];
    along(column, done);
#pragma GCC unroll 8
    for (int i = 0; i < TO; ++i) half[i][j] = done[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < TO; ++i) along(half[i], to[i]);
}

template <typename T, int N>
__attribute__((always_inline)) inline void load_square(const T* from, int64_t down, int64_t right,
                                                       Vector<T> (&to)[N][N]) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) to[i][j] = load(from + i * down + j * right);
  }
}

template <typename T, int N>
__attribute__((always_inline)) inline void store_square(const Vector<T> (&from)[N][N], T* to, int64_t down,
                                                        int64_t right) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(to + i * down + j * right, from[i][j]);
  }
}

// A vector of channels, of which `used` are there, of M x M pixels from (y, x) on; 0 where they lie beyond the image.
template <typename T, int M>
__attribute__((always_inline)) inline void load_pixels(const T* image, const Images& shape, int64_t y, int64_t x,
                                                       int64_t used, Vector<T> (&to)[M][M]) {
  const T* from = image + (y * shape.width + x) * shape.channels;
  if (y + M <= shape.height && x + M <= shape.width && used >= LANES<T>) {
    return load_square<T>(from, shape.width * shape.channels, shape.channels, to);
  }
  for (int64_t i = 0; i < M; ++i) {
    for (int64_t j = 0; j < M; ++j) {
      const bool is_there = y + i < shape.height && x + j < shape.width;
      to[i][j] = is_there ? load_some(from + (i * shape.width + j) * shape.channels, used) : Vector<T>{};
    }
  }
}

template <typename T, int M>
__attribute__((always_inline)) inline void store_pixels(const Vector<T> (&from)[M][M], T* image, const Images& shape,
                                                        int64_t y, int64_t x, int64_t used) {
  T* to = image + (y * shape.width + x) * shape.channels;
  if (y + M <= shape.height && x + M <= shape.width && used >= LANES<T>) {
    return store_square<T>(from, to, shape.width * shape.channels, shape.channels);
  }
  for (int64_t i = 0; i < std::min<int64_t>(M, shape.height - y); ++i) {
    for (int64_t j = 0; j < std::min<int64_t>(M, shape.width - x); ++j) {
      store_some(to + (i * shape.width + j) * shape.channels, from[i][j], used);
    }
  }
}

// planes[k][...] = the transform of the patch at `in`, all channels; a whole vector is read at the end.
template <typename T, int M>
void transform_patch(const T* in, int64_t pitch, int64_t channels, T* planes, int64_t plane) {
  for (int64_t c = 0; c < channels; c += LANES<T>) {
    Vector<T> values[M + 2][M + 2], to[M + 2][M + 2];
    load_square<T>(in + c, pitch, channels, values);
    on_both(Transform<T, M>::patch, values, to);
    store_square<T>(to, planes + c, (M + 2) * plane, plane);
  }
}

// The transform of a 3x3 window: taps are 3 * 3 vectors `step` apart, planes `plane` apart.
template <typename T, int M>
void transform_window(const T* taps, int64_t step, T* planes, int64_t plane) {
  Vector<T> values[3][3], to[M + 2][M + 2];
  load_square<T>(taps, 3 * step, step, values);
  on_both(Transform<T, M>::window, values, to);
  store_square<T>(to, planes, (M + 2) * plane, plane);
}

// The M x M pixels that products come to.
template <typename T, int M>
void transform_back(const T* planes, int64_t plane, Vector<T> (&pixels)[M][M]) {
  Vector<T> values[M + 2][M + 2];
  load_square<T>(planes, (M + 2) * plane, plane, values);
  on_both(Transform<T, M>::back, values, pixels);
}

// planes[k][...] = the products' gradient, from that of M x M pixels.
template <typename T, int M>
void transform_pixels(const Vector<T> (&pixels)[M][M], T* planes, int64_t plane) {
  Vector<T> to[M + 2][M + 2];
  on_both(Transform<T, M>::pixels, pixels, to);
  store_square<T>(to, planes, (M + 2) * plane, plane);
}

// out [N, H, W, D] = the correlation of bordered images, from pixel (offset, offset) on, with packed taps
// [panel][3][3 * C][WIDTH].
template <typename T, int M>
void correlate_winograd(ffi::ThreadPool& pool, const T* in, const Images& shape, Border border, int64_t offset,
                        const T* packed, T* out, const Images& out_shape) {
  const int64_t panels = ceil_div(out_shape.channels, WIDTH<T>), channels = shape.channels;
  const int64_t padded = ceil_div(channels, LANES<T>) * LANES<T>;  // channels of a plane
  const Patches<M> grid(out_shape.height, out_shape.width);
  border.after += grid.beyond(out_shape);
  const Images bordered = with_border(shape, border);
  const int64_t pitch = bordered.width * channels, panel_size = PLANES<M> * channels * WIDTH<T>;
  Scratch<T> weights(panels * panel_size);  // [panel][plane][C][WIDTH]
  parallel_for(pool, panels, [&](int64_t panel) {
    const T* taps = packed + panel * 9 * channels * WIDTH<T>;
    for (int64_t l = 0; l < channels * WIDTH<T>; l += LANES<T>) {
      transform_window<T, M>(taps + l, channels * WIDTH<T>, weights.get() + panel * panel_size + l, channels * WIDTH<T>);
    }
  });

  const Portion portion(grid.count(), PLANES<M> * padded * sizeof(T), ceil_div(shape.count, TASKS));
  const int64_t patches = ceil_div(portion.patches, PIXELS) * PIXELS;

  for_images(pool, shape.count, [&](int64_t, int64_t first, int64_t last) {
    Scratch<T> source(portion.images * bordered.size() + LANES<T>);
    Scratch<T> planes(PLANES<M> * patches * padded), products(PLANES<M> * patches * WIDTH<T>);
    for (int64_t n = first; n < last; n += portion.images) {
      const int64_t count = std::min(portion.images, last - n);
      add_border(in + n * shape.size(), {count, shape.height, shape.width, channels}, border, source.get());
      for (int64_t begin = 0; begin < count * grid.count(); begin += patches) {
        const int64_t size = std::min(patches, count * grid.count() - begin);
        for (int64_t p = 0; p < size; ++p) {
          const T* patch = source.get() + grid.image(begin + p) * bordered.size() +
                           (offset + grid.y(begin + p)) * pitch + (offset + grid.x(begin + p)) * channels;
          transform_patch<T, M>(patch, pitch, channels, planes.get() + p * padded, patches * padded);
        }
        for (int64_t panel = 0; panel < panels; ++panel) {
          const int64_t used = std::min<int64_t>(out_shape.channels - panel * WIDTH<T>, WIDTH<T>);
          const auto tile = used > LANES<T> ? correlate_tile<T, PANEL> : correlate_tile<T, 1>;
          for (int64_t k = 0; k < PLANES<M>; ++k) {
            const T* w = weights.get() + panel * panel_size + k * channels * WIDTH<T>;
            for (int64_t p = 0; p < size; p += PIXELS) {
              Place group[PIXELS];
              for (int q = 0; q < PIXELS; ++q) group[q] = {(p + q) * padded, (p + q) * WIDTH<T>};
              tile(planes.get() + k * patches * padded, products.get() + k * patches * WIDTH<T>, group, 1, 0, channels,
                   w, WIDTH<T>);
            }
          }
          for (int64_t p = 0; p < size; ++p) {
            const int64_t image = n + grid.image(begin + p), y = grid.y(begin + p), x = grid.x(begin + p);
            for (int64_t v = 0; v < used; v += LANES<T>) {
              Vector<T> pixels[M][M];
              transform_back<T, M>(products.get() + p * WIDTH<T> + v, patches * WIDTH<T>, pixels);
              store_pixels<T>(pixels, out + image * out_shape.size() + panel * WIDTH<T> + v, out_shape, y, x, used - v);
            }
          }
        }
      }
    }
  });
}

// dkernel [3, 3, C, D] = the gradient for the taps of a convolution of stride 1.
template <typename T, int M>
void kernel_gradient_winograd(ffi::ThreadPool& pool, const T* x, const Images& x_shape, const T* dy,
                              const Images& dy_shape, int64_t padding, T* dkernel) {
  const int64_t inputs = x_shape.channels, outputs = dy_shape.channels, panels = ceil_div(outputs, WIDTH<T>);
  const int64_t padded = ceil_div(inputs, LANES<T>) * LANES<T>;
  const Patches<M> grid(dy_shape.height, dy_shape.width);
  const Border border = {padding, padding + grid.beyond(dy_shape)};
  const Images bordered = with_border(x_shape, border);
  const int64_t length = PLANES<M> * inputs * WIDTH<T>;  // of a panel's sums: [plane][C][WIDTH]
  const int64_t fitting = std::clamp<int64_t>(SUMS_BYTES / (length * sizeof(T)), 1, panels);
  const Shares share(x_shape.count, panels, fitting, ceil_div(SUMMED_PATCHES, grid.count()));
  const int64_t groups = share.image_tasks;
  const Portion portion(grid.count(), PLANES<M> * padded * sizeof(T), share.images_each);
  const int64_t patches = portion.patches;
  Scratch<T> sums(groups * panels * length);
  std::vector<int64_t> offsets(patches);
  for (int64_t p = 0; p < patches; ++p) offsets[p] = p * padded;

  parallel_for(pool, share.tasks(), [&](int64_t task) {
    const int64_t group = task / share.panel_tasks, first_panel = task % share.panel_tasks * share.panels_each;
    const int64_t its_panels = std::min(share.panels_each, panels - first_panel);
    const int64_t first = group * share.images_each, last = std::min(first + share.images_each, x_shape.count);
    T* own = sums.get() + (group * panels + first_panel) * length;
    std::fill_n(own, its_panels * length, T(0));
    Scratch<T> source(portion.images * bordered.size() + LANES<T>);
    Scratch<T> values(PLANES<M> * patches * padded + RUN * PANEL), gradients(PLANES<M> * patches * WIDTH<T>);
    for (int64_t n = first; n < last; n += portion.images) {
      const int64_t count = std::min(portion.images, last - n);
      add_border(x + n * x_shape.size(), {count, x_shape.height, x_shape.width, inputs}, border, source.get());
      for (int64_t begin = 0; begin < count * grid.count(); begin += patches) {
        const int64_t size = std::min(patches, count * grid.count() - begin);
        for (int64_t p = 0; p < size; ++p) {
          const T* patch = source.get() + grid.image(begin + p) * bordered.size() +
                           (grid.y(begin + p) * bordered.width + grid.x(begin + p)) * inputs;
          transform_patch<T, M>(patch, bordered.width * inputs, inputs, values.get() + p * padded, patches * padded);
        }
        for (int64_t panel = 0; panel < its_panels; ++panel) {
          const int64_t from = (first_panel + panel) * WIDTH<T>, used = std::min<int64_t>(outputs - from, WIDTH<T>);
          for (int64_t p = 0; p < size; ++p) {
            const int64_t image = n + grid.image(begin + p), y = grid.y(begin + p), x = grid.x(begin + p);
            for (int64_t v = 0; v < used; v += LANES<T>) {
              Vector<T> pixels[M][M];
              load_pixels<T>(dy + image * dy_shape.size() + from + v, dy_shape, y, x, used - v, pixels);
              transform_pixels<T, M>(pixels, gradients.get() + p * WIDTH<T> + v, patches * WIDTH<T>);
            }
          }
          const auto tile = used > LANES<T> ? gradient_tile<T, PANEL> : gradient_tile<T, 1>;
          const int64_t step = gradient_values<T>(used);
          for (int64_t k = 0; k < PLANES<M>; ++k) {
            for (int64_t c = 0; c < inputs; c += step) {
              tile(values.get() + k * patches * padded + c, offsets.data(), gradients.get() + k * patches * WIDTH<T>,
                   WIDTH<T>, size, own + panel * length + (k * inputs + c) * WIDTH<T>, inputs - c);
            }
          }
        }
      }
    }
  });

  parallel_for(pool, panels, [&](int64_t panel) {
    const int64_t used = std::min<int64_t>(outputs - panel * WIDTH<T>, WIDTH<T>);
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t v = 0; v < used; v += LANES<T>) {
        Vector<T> planes[M + 2][M + 2] = {}, taps[3][3];
        for (int64_t group = 0; group < groups; ++group) {
          const T* from = sums.get() + (group * panels + panel) * length + c * WIDTH<T> + v;
          for (int k = 0; k < PLANES<M>; ++k) planes[k / (M + 2)][k % (M + 2)] += load(from + k * inputs * WIDTH<T>);
        }
        on_both(Transform<T, M>::taps, planes, taps);
        for (int tap = 0; tap < 9; ++tap) {
          T* to = dkernel + (tap * inputs + c) * outputs + panel * WIDTH<T> + v;
          store_some(to, taps[tap / 3][tap % 3], used - v);
        }
      }
    }
  });
}

}  // namespace wsjax
