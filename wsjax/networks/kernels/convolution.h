// A convolution of images [N, H, W, C] with a kernel [K, K, C, D], and its gradients.
//
// The gradient for the images is a correlation of dy with the flipped kernel, once for every residue of the pixels'
// positions modulo the stride.

#pragma once

#include "winograd.h"

namespace wsjax {

// A correlation of bordered input with a window of taps, on a grid of pixels.
struct Phase {
  int64_t rows, columns;                  // taps
  int64_t grid_height, grid_width;        // output pixels of an image
  int64_t in_row, in_column, in_step;     // where the first pixel's window begins; the way to the next pixel's
  int64_t out_row, out_column, out_step;  // where the first output pixel lies; the way to the next
  int64_t weights;                        // where its packed weights begin: [panel][rows][columns * C][WIDTH]
  int64_t taps() const { return rows * columns; }
};

// The places of a phase's pixels on `count` images.
inline std::vector<Place> places_of(const Phase& phase, const Images& in, const Images& out, int64_t count) {
  std::vector<Place> places;
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t y = 0; y < phase.grid_height; ++y) {
      for (int64_t x = 0; x < phase.grid_width; ++x) {
        const int64_t in_pixel = (phase.in_row + y * phase.in_step) * in.width + phase.in_column + x * phase.in_step;
        const int64_t out_pixel =
            (phase.out_row + y * phase.out_step) * out.width + phase.out_column + x * phase.out_step;
        places.push_back({n * in.size() + in_pixel * in.channels, n * out.size() + out_pixel * out.channels});
      }
    }
  }
  return places;
}

// Correlates images with all phases' weights; what no phase covers of `out` is left alone.
template <typename T>
void correlate(ffi::ThreadPool& pool, const T* in, const Images& shape, Border border, const std::vector<Phase>& phases,
               const T* weights, T* out, const Images& out_shape) {
  const bool is_plain = phases.size() == 1 && phases[0].rows == 3 && phases[0].columns == 3 && phases[0].in_step == 1;
  if (const int size = is_plain ? winograd_size(shape.channels, out_shape) : 0) {
    const auto way = size == 4 ? correlate_winograd<T, 4> : correlate_winograd<T, 2>;
    return way(pool, in, shape, border, phases[0].in_row, weights, out, out_shape);
  }
  const int64_t panels = ceil_div(out_shape.channels, WIDTH<T>);
  const Images bordered = with_border(shape, border);
  const int64_t pitch = bordered.width * shape.channels;
  int64_t taps = 0;
  for (const Phase& phase : phases) taps += phase.taps();
  // Weights too large to stay in the cache beside the input are taken a panel at a time.
  const bool by_panel = panels * taps * shape.channels * WIDTH<T> * sizeof(T) > CACHE_BYTES;
  const Shares share(shape.count, panels, by_panel ? 1 : panels);
  const int64_t bytes = bordered.size() * sizeof(T);  // of an image
  const int64_t at_a_time = std::clamp<int64_t>(CACHE_BYTES / bytes, 1, share.images_each);
  const bool copy = border.before || border.after;
  std::vector<std::vector<Place>> places;
  for (const Phase& phase : phases) places.push_back(places_of(phase, bordered, out_shape, at_a_time));

  parallel_for(pool, share.tasks(), [&](int64_t task) {
    const int64_t first_panel = task / share.image_tasks * share.panels_each;
    const int64_t first = task % share.image_tasks * share.images_each;
    const int64_t last = std::min(first + share.images_each, shape.count);
    Scratch<T> scratch(copy ? at_a_time * bordered.size() : 0);
    for (int64_t n = first; n < last; n += at_a_time) {
      const int64_t count = std::min(at_a_time, last - n);
      const T* source = in + n * shape.size();
      if (copy) {
        add_border(source, {count, shape.height, shape.width, shape.channels}, border, scratch.get());
        source = scratch.get();
      }
      for (size_t k = 0; k < phases.size(); ++k) {
        const Phase& phase = phases[k];
        const int64_t pixels = count * phase.grid_height * phase.grid_width, run = phase.columns * shape.channels;
        for (int64_t panel = first_panel; panel < first_panel + share.panels_each; ++panel) {
          const T* packed = weights + phase.weights + panel * phase.taps() * shape.channels * WIDTH<T>;
          const int64_t channels = std::min<int64_t>(out_shape.channels - panel * WIDTH<T>, WIDTH<T>);
          T* to = out + n * out_shape.size() + panel * WIDTH<T>;
          const auto tile = channels > LANES<T> ? correlate_tile<T, PANEL> : correlate_tile<T, 1>;
          for (int64_t pixel = 0; pixel < pixels; pixel += PIXELS) {
            Place group[PIXELS];
            // The last tile repeats the last pixel.
            for (int p = 0; p < PIXELS; ++p) group[p] = places[k][std::min(pixel + p, pixels - 1)];
            tile(source, to, group, phase.rows, pitch, run, packed, channels);
          }
        }
      }
    }
  });
}

struct Window {
  int64_t size, stride, padding;
};

// y = the convolution of x with the kernel.
template <typename T>
void convolve(ffi::ThreadPool& pool, const T* x, const Images& x_shape, const T* kernel, Window window, T* y,
              const Images& y_shape) {
  const int64_t inputs = x_shape.channels, outputs = y_shape.channels, panels = ceil_div(outputs, WIDTH<T>);
  const int64_t length = window.size * window.size * inputs;  // of a panel, in rows of WIDTH
  Scratch<T> packed(panels * length * WIDTH<T>);
  parallel_for(pool, panels, [&](int64_t panel) {
    const int64_t first = panel * WIDTH<T>, channels = std::min<int64_t>(outputs - first, WIDTH<T>);
    T* to = packed.get() + panel * length * WIDTH<T>;
    for (int64_t l = 0; l < length; ++l, to += WIDTH<T>) {
      std::copy_n(kernel + l * outputs + first, channels, to);
      std::fill_n(to + channels, WIDTH<T> - channels, T(0));
    }
  });
  const Phase phase = {window.size, window.size, y_shape.height, y_shape.width, 0, 0, window.stride, 0, 0, 1, 0};
  correlate(pool, x, x_shape, {window.padding, window.padding}, {phase}, packed.get(), y, y_shape);
}

// The taps of one axis that reach pixels at `residue` modulo the stride: first, first + stride, ...
struct Reach {
  int64_t first, count;
  int64_t begin;  // where the window over dy begins for the first such pixel
  Reach(int64_t residue, Window window)
      : first((residue + window.padding) % window.stride),
        count(first < window.size ? ceil_div(window.size - first, window.stride) : 0),
        begin((residue + window.padding) / window.stride - (count - 1)) {}
};

// dx = the gradient for the images: dy is correlated with the flipped kernel.
template <typename T>
void images_gradient(ffi::ThreadPool& pool, const T* dy, const Images& dy_shape, const T* kernel, Window window, T* dx,
                     const Images& dx_shape) {
  const int64_t inputs = dx_shape.channels, outputs = dy_shape.channels, panels = ceil_div(inputs, WIDTH<T>);
  const int64_t stride = window.stride;
  const int64_t before = (window.size - 1) / stride;
  const int64_t farthest = (std::max(dx_shape.height - dy_shape.height * stride,
                                     dx_shape.width - dy_shape.width * stride) - 1 + window.padding + stride);
  const Border border = {before, std::max<int64_t>(farthest / stride, 0)};
  std::vector<Phase> phases;
  std::vector<std::pair<Reach, Reach>> reaches;
  int64_t size = 0;
  bool covered = true;
  for (int64_t a = 0; a < std::min(stride, dx_shape.height); ++a) {
    for (int64_t b = 0; b < std::min(stride, dx_shape.width); ++b) {
      const Reach rows(a, window), columns(b, window);
      if (rows.count == 0 || columns.count == 0) {
        covered = false;
        continue;
      }
      phases.push_back({rows.count, columns.count, ceil_div(dx_shape.height - a, stride),
                        ceil_div(dx_shape.width - b, stride), before + rows.begin, before + columns.begin, 1, a, b,
                        stride, size});
      reaches.emplace_back(rows, columns);
      size += panels * rows.count * columns.count * outputs * WIDTH<T>;
    }
  }
  if (!covered) {
    parallel_for(pool, dx_shape.count,
                 [&](int64_t n) { std::fill_n(dx + n * dx_shape.size(), dx_shape.size(), T(0)); });
  }
  Scratch<T> packed(size);
  parallel_for(pool, panels, [&](int64_t panel) {
    const int64_t first = panel * WIDTH<T>, channels = std::min<int64_t>(inputs - first, WIDTH<T>);
    for (size_t k = 0; k < phases.size(); ++k) {
      const auto& [rows, columns] = reaches[k];
      T* to = packed.get() + phases[k].weights + panel * phases[k].taps() * outputs * WIDTH<T>;
      for (int64_t i = rows.count - 1; i >= 0; --i) {
        for (int64_t j = columns.count - 1; j >= 0; --j, to += outputs * WIDTH<T>) {
          const int64_t tap = (rows.first + i * stride) * window.size + columns.first + j * stride;
          const T* from = kernel + (tap * inputs + first) * outputs;
          for (int64_t d = 0; d < outputs; ++d) {
            for (int64_t c = 0; c < channels; ++c) to[d * WIDTH<T> + c] = from[c * outputs + d];
            std::fill_n(to + d * WIDTH<T> + channels, WIDTH<T> - channels, T(0));
          }
        }
      }
    }
  });
  correlate(pool, dy, dy_shape, border, phases, packed.get(), dx, dx_shape);
}

// dkernel = the gradient for the kernel.
template <typename T>
void kernel_gradient(ffi::ThreadPool& pool, const T* x, const Images& x_shape, const T* dy, const Images& dy_shape,
                     Window window, T* dkernel) {
  const bool is_plain = window.size == 3 && window.stride == 1;
  if (const int size = is_plain ? winograd_size(x_shape.channels, dy_shape) : 0) {
    const auto way = size == 4 ? kernel_gradient_winograd<T, 4> : kernel_gradient_winograd<T, 2>;
    return way(pool, x, x_shape, dy, dy_shape, window.padding, dkernel);
  }
  const int64_t inputs = x_shape.channels, outputs = dy_shape.channels, panels = ceil_div(outputs, WIDTH<T>);
  const Border border = {window.padding, window.padding};
  const Images bordered = with_border(x_shape, border);
  const int64_t run = window.size * inputs, length = window.size * run, grid = dy_shape.pixels();
  const int64_t groups = std::min(ceil_div(TASKS, panels), x_shape.count);  // of images, summed apart
  const int64_t images_each = ceil_div(x_shape.count, groups);
  const int64_t bytes = (bordered.size() + grid * WIDTH<T>) * sizeof(T);  // of an image and its gradients
  const int64_t at_a_time = std::clamp<int64_t>(CACHE_BYTES / bytes, 1, images_each);
  Scratch<T> sums(groups * panels * length * WIDTH<T>);
  std::vector<int64_t> offsets;  // of the pixels' windows
  for (int64_t n = 0; n < at_a_time; ++n) {
    for (int64_t row = 0; row < dy_shape.height; ++row) {
      for (int64_t column = 0; column < dy_shape.width; ++column) {
        offsets.push_back(n * bordered.size() + (row * bordered.width + column) * window.stride * inputs);
      }
    }
  }

  parallel_for(pool, groups * panels, [&](int64_t task) {
    const int64_t panel = task % panels, first = task / panels * images_each;
    const int64_t last = std::min(first + images_each, x_shape.count);
    const int64_t channels = std::min<int64_t>(outputs - panel * WIDTH<T>, WIDTH<T>);
    const auto tile = channels > LANES<T> ? gradient_tile<T, PANEL> : gradient_tile<T, 1>;
    const int64_t step = gradient_values<T>(channels);
    T* own = sums.get() + task * length * WIDTH<T>;
    std::fill_n(own, length * WIDTH<T>, T(0));
    const bool is_full = channels % LANES<T> == 0;  // else dy's channels are filled up with zeros
    Scratch<T> values(at_a_time * bordered.size() + RUN * PANEL), filled(is_full ? 0 : at_a_time * grid * WIDTH<T>);
    for (int64_t n = first; n < last; n += at_a_time) {
      const int64_t count = std::min(at_a_time, last - n), pixels = count * grid;
      add_border(x + n * x_shape.size(), {count, x_shape.height, x_shape.width, inputs}, border, values.get());
      const T* gradients = dy + n * dy_shape.size() + panel * WIDTH<T>;
      if (!is_full) {
        for (int64_t p = 0; p < pixels; ++p) {
          T* to = std::copy_n(gradients + p * outputs, channels, filled.get() + p * WIDTH<T>);
          std::fill_n(to, WIDTH<T> - channels, T(0));
        }
        gradients = filled.get();
      }
      for (int64_t i = 0; i < window.size; ++i) {
        for (int64_t l = 0; l < run; l += step) {
          tile(values.get() + i * bordered.width * inputs + l, offsets.data(), gradients,
               is_full ? outputs : WIDTH<T>, pixels, own + (i * run + l) * WIDTH<T>, run - l);
        }
      }
    }
  });

  parallel_for(pool, panels * window.size, [&](int64_t task) {
    const int64_t panel = task % panels, channels = std::min<int64_t>(outputs - panel * WIDTH<T>, WIDTH<T>);
    for (int64_t l = task / panels * run; l < (task / panels + 1) * run; ++l) {
      T* to = dkernel + l * outputs + panel * WIDTH<T>;
      for (int64_t d = 0; d < channels; ++d) {
        T sum = 0;
        for (int64_t g = 0; g < groups; ++g) sum += sums.get()[((g * panels + panel) * length + l) * WIDTH<T> + d];
        to[d] = sum;
      }
    }
  });
}

}  // namespace wsjax
