// Winograd's F(2x2, 3x3): two by two pixels of a 3x3 correlation take 16 products in place of 36.
//
// A 4x4 patch and the window are transformed, multiplied value by value (summed over channels, which makes 16 matrix
// products), and transformed back (Lavin and Gray 2016, https://arxiv.org/abs/1509.09308).

#pragma once

#include "tiles.h"

namespace wsjax {

constexpr int PLANES = 16;
// Where the transforms pay: that of a large window, which does not stay in the cache, needs more patches.
constexpr int64_t WINOGRAD_MIN_CHANNELS = 32, WINOGRAD_MIN_PATCHES = 64, WINOGRAD_MIN_PATCHES_OF_LARGE = 256;
constexpr int64_t WINOGRAD_LARGE = 128 * 128;  // more input times output channels than these
constexpr int64_t SUMMED_PATCHES = 64;         // of a gradient's task, at least: its sums go through memory

// Whether the products that are saved outweigh the transforms, of images to `out` channels and of the window.
inline bool winograd_wins(int64_t channels, const Images& out) {
  const bool is_large = channels * out.channels > WINOGRAD_LARGE;
  return std::min(channels, out.channels) >= WINOGRAD_MIN_CHANNELS &&
         out.count * ceil_div(out.height, 2) * ceil_div(out.width, 2) >=
             (is_large ? WINOGRAD_MIN_PATCHES_OF_LARGE : WINOGRAD_MIN_PATCHES);
}

// The 2x2 pixels that images are cut into, numbered in row-major order.
struct Patches {
  int64_t rows, columns;  // of an image
  explicit Patches(int64_t height, int64_t width) : rows(ceil_div(height, 2)), columns(ceil_div(width, 2)) {}
  int64_t count() const { return rows * columns; }
  int64_t image(int64_t index) const { return index / count(); }
  int64_t y(int64_t index) const { return index % count() / columns * 2; }  // of the first pixel
  int64_t x(int64_t index) const { return index % columns * 2; }
};

// values[i] = the transform of the 4 vectors values[i], in a row or a column of a patch.
template <typename V>
void patch_transform(V& a, V& b, V& c, V& d) {
  const V first = a - c, second = b + c, third = c - b, fourth = b - d;
  a = first, b = second, c = third, d = fourth;
}

// planes[k][...] = the transform of the 4x4 patch at `in`, all channels; a whole vector is read at the end.
template <typename T>
void transform_patch(const T* in, int64_t pitch, int64_t channels, T* planes, int64_t plane) {
  for (int64_t c = 0; c < channels; c += LANES<T>) {
    Vector<T> d[4][4];
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) d[i][j] = load(in + i * pitch + j * channels + c);
    }
    for (int i = 0; i < 4; ++i) patch_transform(d[i][0], d[i][1], d[i][2], d[i][3]);
    for (int j = 0; j < 4; ++j) patch_transform(d[0][j], d[1][j], d[2][j], d[3][j]);
    for (int k = 0; k < PLANES; ++k) store(planes + k * plane + c, d[k / 4][k % 4]);
  }
}

// The transform of a 3x3 window: taps are 3 * 3 vectors `step` apart, planes 16 vectors `plane` apart.
template <typename T>
void transform_window(const T* taps, int64_t step, T* planes, int64_t plane) {
  Vector<T> half[4][3];
  for (int j = 0; j < 3; ++j) {
    const Vector<T> a = load(taps + j * step), b = load(taps + (3 + j) * step), c = load(taps + (6 + j) * step);
    half[0][j] = a, half[1][j] = (a + b + c) / 2, half[2][j] = (a - b + c) / 2, half[3][j] = c;
  }
  for (int i = 0; i < 4; ++i) {
    const auto& [a, b, c] = half[i];
    const Vector<T> whole[4] = {a, (a + b + c) / 2, (a - b + c) / 2, c};
    for (int j = 0; j < 4; ++j) store(planes + (4 * i + j) * plane, whole[j]);
  }
}

// The 2x2 pixels that 16 products come to.
template <typename T>
void transform_back(const T* planes, int64_t plane, Vector<T> (&pixels)[2][2]) {
  Vector<T> half[2][4];
  for (int j = 0; j < 4; ++j) {
    const Vector<T> a = load(planes + j * plane), b = load(planes + (4 + j) * plane);
    const Vector<T> c = load(planes + (8 + j) * plane), d = load(planes + (12 + j) * plane);
    half[0][j] = a + b + c, half[1][j] = b - c - d;
  }
  for (int i = 0; i < 2; ++i) {
    pixels[i][0] = half[i][0] + half[i][1] + half[i][2];
    pixels[i][1] = half[i][1] - half[i][2] - half[i][3];
  }
}

// planes[k][...] = the products' gradient, from that of 2x2 pixels.
template <typename T>
void transform_pixels(const Vector<T> (&pixels)[2][2], T* planes, int64_t plane) {
  for (int i = 0; i < 4; ++i) {
    Vector<T> half[2];
    for (int j = 0; j < 2; ++j) {
      const Vector<T> a = pixels[0][j], b = pixels[1][j];
      half[j] = i == 0 ? a : i == 1 ? a + b : i == 2 ? a - b : -b;
    }
    const Vector<T> whole[4] = {half[0], half[0] + half[1], half[0] - half[1], -half[1]};
    for (int j = 0; j < 4; ++j) store(planes + (4 * i + j) * plane, whole[j]);
  }
}

// The 3x3 taps' gradient, from that of their transform.
template <typename T>
void transform_taps(const Vector<T> (&planes)[4][4], Vector<T> (&taps)[3][3]) {
  Vector<T> half[3][4];
  for (int j = 0; j < 4; ++j) {
    const Vector<T> sum = (planes[1][j] + planes[2][j]) / 2, difference = (planes[1][j] - planes[2][j]) / 2;
    half[0][j] = planes[0][j] + sum, half[1][j] = difference, half[2][j] = sum + planes[3][j];
  }
  for (int i = 0; i < 3; ++i) {
    const Vector<T> sum = (half[i][1] + half[i][2]) / 2, difference = (half[i][1] - half[i][2]) / 2;
    taps[i][0] = half[i][0] + sum, taps[i][1] = difference, taps[i][2] = sum + half[i][3];
  }
}

// out [N, H, W, D] = the correlation of bordered images, from pixel (offset, offset) on, with packed taps
// [panel][3][3 * C][WIDTH].
template <typename T>
void correlate_winograd(ffi::ThreadPool& pool, const T* in, const Images& shape, Border border, int64_t offset,
                        const T* packed, T* out, const Images& out_shape) {
  const int64_t panels = ceil_div(out_shape.channels, WIDTH<T>), channels = shape.channels;
  const int64_t padded = ceil_div(channels, LANES<T>) * LANES<T>;  // channels of a plane
  border.after += 1;  // the last patch of an odd size goes beyond
  const Images bordered = with_border(shape, border);
  const int64_t pitch = bordered.width * channels, panel_size = PLANES * channels * WIDTH<T>;
  Scratch<T> weights(panels * panel_size);  // [panel][plane][C][WIDTH]
  parallel_for(pool, panels, [&](int64_t panel) {
    const T* taps = packed + panel * 9 * channels * WIDTH<T>;
    for (int64_t l = 0; l < channels * WIDTH<T>; l += LANES<T>) {
      transform_window(taps + l, channels * WIDTH<T>, weights.get() + panel * panel_size + l, channels * WIDTH<T>);
    }
  });

  const Patches grid(out_shape.height, out_shape.width);
  const bool by_panel = panels * panel_size * sizeof(T) > 2 * CACHE_BYTES;
  const Shares share(shape.count, panels, by_panel, bordered.size() * sizeof(T));
  const int64_t fitting = CACHE_BYTES / (PLANES * padded * sizeof(T)) / PIXELS * PIXELS;
  const int64_t most = ceil_div(share.at_a_time * grid.count(), PIXELS) * PIXELS;
  const int64_t patches = std::clamp<int64_t>(fitting, PIXELS, most);

  parallel_for(pool, share.tasks(), [&](int64_t task) {
    const int64_t first_panel = task / share.image_tasks * share.panels_each;
    const int64_t first = task % share.image_tasks * share.images_each;
    const int64_t last = std::min(first + share.images_each, shape.count);
    Scratch<T> source(share.at_a_time * bordered.size() + LANES<T>);
    Scratch<T> planes(PLANES * patches * padded), products(PLANES * patches * WIDTH<T>);
    for (int64_t n = first; n < last; n += share.at_a_time) {
      const int64_t count = std::min(share.at_a_time, last - n);
      add_border(in + n * shape.size(), {count, shape.height, shape.width, channels}, border, source.get());
      for (int64_t begin = 0; begin < count * grid.count(); begin += patches) {
        const int64_t size = std::min(patches, count * grid.count() - begin);
        for (int64_t p = 0; p < size; ++p) {
          const T* patch = source.get() + grid.image(begin + p) * bordered.size() +
                           (offset + grid.y(begin + p)) * pitch + (offset + grid.x(begin + p)) * channels;
          transform_patch(patch, pitch, channels, planes.get() + p * padded, patches * padded);
        }
        for (int64_t panel = first_panel; panel < first_panel + share.panels_each; ++panel) {
          const int64_t used = std::min<int64_t>(out_shape.channels - panel * WIDTH<T>, WIDTH<T>);
          const auto tile = used > LANES<T> ? correlate_tile<T, PANEL> : correlate_tile<T, 1>;
          for (int64_t k = 0; k < PLANES; ++k) {
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
              Vector<T> pixels[2][2];
              transform_back(products.get() + p * WIDTH<T> + v, patches * WIDTH<T>, pixels);
              for (int64_t i = 0; i < std::min<int64_t>(2, out_shape.height - y); ++i) {
                for (int64_t j = 0; j < std::min<int64_t>(2, out_shape.width - x); ++j) {
                  T* to = out + image * out_shape.size() + ((y + i) * out_shape.width + x + j) * out_shape.channels +
                          panel * WIDTH<T> + v;
                  store_some(to, pixels[i][j], used - v);
                }
              }
            }
          }
        }
      }
    }
  });
}

// dkernel [3, 3, C, D] = the gradient for the taps of a convolution of stride 1.
template <typename T>
void kernel_gradient_winograd(ffi::ThreadPool& pool, const T* x, const Images& x_shape, const T* dy,
                              const Images& dy_shape, int64_t padding, T* dkernel) {
  const int64_t inputs = x_shape.channels, outputs = dy_shape.channels, panels = ceil_div(outputs, WIDTH<T>);
  const int64_t padded = ceil_div(inputs, LANES<T>) * LANES<T>;
  const Border border = {padding, padding + 1};  // the last patch of an odd size goes beyond
  const Images bordered = with_border(x_shape, border);
  const Patches grid(dy_shape.height, dy_shape.width);
  const int64_t length = PLANES * inputs * WIDTH<T>;  // of a panel's sums: [plane][C][WIDTH]
  const bool by_panel = panels * length * sizeof(T) > CACHE_BYTES;
  const Shares share(x_shape.count, panels, by_panel, bordered.size() * sizeof(T),
                     ceil_div(SUMMED_PATCHES, grid.count()));
  const int64_t groups = share.image_tasks;
  const int64_t patches =
      std::clamp<int64_t>(CACHE_BYTES / (PLANES * padded * sizeof(T)), 1, share.at_a_time * grid.count());
  Scratch<T> sums(groups * panels * length);
  std::vector<int64_t> offsets(patches);
  for (int64_t p = 0; p < patches; ++p) offsets[p] = p * padded;

  parallel_for(pool, share.tasks(), [&](int64_t task) {
    const int64_t group = task / share.panel_tasks, first_panel = task % share.panel_tasks * share.panels_each;
    const int64_t first = group * share.images_each, last = std::min(first + share.images_each, x_shape.count);
    T* own = sums.get() + (group * panels + first_panel) * length;
    std::fill_n(own, share.panels_each * length, T(0));
    Scratch<T> source(share.at_a_time * bordered.size() + LANES<T>);
    Scratch<T> values(PLANES * patches * padded + RUN * PANEL), gradients(PLANES * patches * WIDTH<T>);
    for (int64_t n = first; n < last; n += share.at_a_time) {
      const int64_t count = std::min(share.at_a_time, last - n);
      add_border(x + n * x_shape.size(), {count, x_shape.height, x_shape.width, inputs}, border, source.get());
      for (int64_t begin = 0; begin < count * grid.count(); begin += patches) {
        const int64_t size = std::min(patches, count * grid.count() - begin);
        for (int64_t p = 0; p < size; ++p) {
          const T* patch = source.get() + grid.image(begin + p) * bordered.size() +
                           (grid.y(begin + p) * bordered.width + grid.x(begin + p)) * inputs;
          transform_patch(patch, bordered.width * inputs, inputs, values.get() + p * padded, patches * padded);
        }
        for (int64_t panel = 0; panel < share.panels_each; ++panel) {
          const int64_t from = (first_panel + panel) * WIDTH<T>, used = std::min<int64_t>(outputs - from, WIDTH<T>);
          for (int64_t p = 0; p < size; ++p) {
            const int64_t image = n + grid.image(begin + p), y = grid.y(begin + p), x = grid.x(begin + p);
            for (int64_t v = 0; v < used; v += LANES<T>) {
              Vector<T> pixels[2][2] = {};
              for (int64_t i = 0; i < std::min<int64_t>(2, dy_shape.height - y); ++i) {
                for (int64_t j = 0; j < std::min<int64_t>(2, dy_shape.width - x); ++j) {
                  const T* pixel = dy + image * dy_shape.size() +
                                   ((y + i) * dy_shape.width + x + j) * outputs + from + v;
                  pixels[i][j] = load_some(pixel, used - v);
                }
              }
              transform_pixels(pixels, gradients.get() + p * WIDTH<T> + v, patches * WIDTH<T>);
            }
          }
          const auto tile = used > LANES<T> ? gradient_tile<T, PANEL> : gradient_tile<T, 1>;
          const int64_t step = gradient_values<T>(used);
          for (int64_t k = 0; k < PLANES; ++k) {
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
        Vector<T> planes[4][4] = {}, taps[3][3];
        for (int64_t group = 0; group < groups; ++group) {
          const T* from = sums.get() + (group * panels + panel) * length + c * WIDTH<T> + v;
          for (int k = 0; k < PLANES; ++k) planes[k / 4][k % 4] += load(from + k * inputs * WIDTH<T>);
        }
        transform_taps<T>(planes, taps);
        for (int tap = 0; tap < 9; ++tap) {
          T* to = dkernel + (tap * inputs + c) * outputs + panel * WIDTH<T> + v;
          store_some(to, taps[tap / 3][tap % 3], used - v);
        }
      }
    }
  });
}

}  // namespace wsjax
