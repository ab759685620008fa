// Convolutions and channel sums for a CPU, called from XLA's programs; wsjax/kernels.py compiles and registers them.
//
// Images are [N, H, W, C], kernels [K, K, C, D]: a pixel's channels, and the channels of neighbouring pixels in a row,
// lie side by side. So a convolution is, for every row of taps, a product of a run of K * C input values with a
// [K * C, D] matrix, and no patches are copied: a tile of PIXELS output pixels by a few vectors of output channels
// stays in registers while the runs stream by. The same loop serves the images' gradient, a convolution of dy with the
// flipped kernel, once for every residue of the pixels' positions modulo the stride. The kernel's gradient holds a tile
// of RUN values of the run by a few vectors of channels, and streams the pixels.
//
// Work is cut into tasks by shapes alone, and every output is summed in one order: the number of threads changes no bit.

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
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, PIXELS = 8, RUN = 12;  // of 32 registers
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, PIXELS = 6, RUN = 6;  // of 16
#else
constexpr int VECTOR_BYTES = 16, PIXELS = 8, RUN = 8;
#endif
constexpr int PANEL = 2;                        // vectors of output channels in a tile
constexpr int64_t TASKS = 16;                   // a call's tasks, about
constexpr int64_t CACHE_BYTES = 512 << 10;      // of input that a task works on at a time: part of a core's cache
constexpr int64_t BLOCK_BYTES = 16 << 10;       // of pixels that are summed at a time: part of a core's first cache
constexpr int64_t WINOGRAD_MIN_CHANNELS = 32, WINOGRAD_MIN_PATCHES = 256;  // where its transforms pay
constexpr int64_t FOLDED = 256;                 // channels of neighbouring pixels that a loop runs over, at least
constexpr int64_t ALIGNMENT = 64;

template <typename T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);
template <typename T>
constexpr int WIDTH = PANEL * LANES<T>;  // output channels in a panel
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

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

struct Images {
  int64_t count, height, width, channels;
  int64_t size() const { return height * width * channels; }  // of one image
};

struct Border {
  int64_t before, after;  // pixels of zeros, on both axes
};

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

// A correlation of bordered input with a window of taps, on a grid of pixels.
struct Phase {
  int64_t rows, columns;                      // taps
  int64_t grid_height, grid_width;            // output pixels of an image
  int64_t in_row, in_column, in_step;         // where the first pixel's window begins; the way to the next pixel's
  int64_t out_row, out_column, out_step;      // where the first output pixel lies; the way to the next
  int64_t weights;                            // where its packed weights begin: [panel][rows][columns * C][WIDTH]
  int64_t taps() const { return rows * columns; }
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

// The places of a phase's pixels on `count` images.
std::vector<Place> places_of(const Phase& phase, const Images& in, const Images& out, int64_t count) {
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

// --- Winograd's F(2x2, 3x3) ---
//
// Two by two pixels of a 3x3 correlation take 16 products in place of 36: a 4x4 patch and the window are transformed,
// multiplied value by value (summed over channels, which makes 16 matrix products), and transformed back (Lavin and
// Gray 2016, https://arxiv.org/abs/1509.09308).

constexpr int PLANES = 16;

// Whether the products that are saved outweigh the transforms, of images to `out` channels and of the window.
bool winograd_wins(int64_t channels, const Images& out) {
  return std::min(channels, out.channels) >= WINOGRAD_MIN_CHANNELS &&
         out.count * ceil_div(out.height, 2) * ceil_div(out.width, 2) >= WINOGRAD_MIN_PATCHES;
}

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

// What `correlate` does, for a single phase of 3x3 taps and steps of 1.
template <typename T>
void correlate_winograd(ffi::ThreadPool& pool, const T* in, const Images& shape, Border border, const Phase& phase,
                        const T* packed, T* out, const Images& out_shape) {
  const int64_t panels = ceil_div(out_shape.channels, WIDTH<T>), channels = shape.channels;
  const int64_t padded = ceil_div(channels, LANES<T>) * LANES<T>;  // channels of a plane
  border.after += 1;  // the last patch of an odd size goes beyond
  const Images bordered = {1, shape.height + border.before + border.after, shape.width + border.before + border.after,
                           channels};
  const int64_t pitch = bordered.width * channels, panel_size = PLANES * channels * WIDTH<T>;
  Scratch<T> weights(panels * panel_size);  // [panel][plane][C][WIDTH]
  parallel_for(pool, panels, [&](int64_t panel) {
    const T* taps = packed + panel * 9 * channels * WIDTH<T>;
    for (int64_t l = 0; l < channels * WIDTH<T>; l += LANES<T>) {
      transform_window(taps + l, channels * WIDTH<T>, weights.get() + panel * panel_size + l, channels * WIDTH<T>);
    }
  });

  const int64_t rows = ceil_div(phase.grid_height, 2), columns = ceil_div(phase.grid_width, 2), grid = rows * columns;
  const bool by_panel = panels * panel_size * sizeof(T) > 2 * CACHE_BYTES;
  const int64_t panel_tasks = by_panel ? panels : 1, panels_each = by_panel ? 1 : panels;
  const int64_t images_each = ceil_div(shape.count * panel_tasks, std::max(TASKS, panel_tasks));
  const int64_t image_tasks = ceil_div(shape.count, images_each);
  const int64_t at_a_time = std::clamp<int64_t>(CACHE_BYTES / (bordered.size() * sizeof(T)), 1, images_each);
  const int64_t fitting = CACHE_BYTES / (PLANES * padded * sizeof(T)) / PIXELS * PIXELS;
  const int64_t patches = std::clamp<int64_t>(fitting, PIXELS, ceil_div(at_a_time * grid, PIXELS) * PIXELS);

  parallel_for(pool, panel_tasks * image_tasks, [&](int64_t task) {
    const int64_t first_panel = task / image_tasks * panels_each;
    const int64_t first = task % image_tasks * images_each, last = std::min(first + images_each, shape.count);
    Scratch<T> source(at_a_time * bordered.size() + LANES<T>);
    Scratch<T> planes(PLANES * patches * padded), products(PLANES * patches * WIDTH<T>);
    for (int64_t n = first; n < last; n += at_a_time) {
      const int64_t count = std::min(at_a_time, last - n);
      add_border(in + n * shape.size(), {count, shape.height, shape.width, channels}, border, source.get());
      for (int64_t begin = 0; begin < count * grid; begin += patches) {
        const int64_t size = std::min(patches, count * grid - begin);
        for (int64_t p = 0; p < size; ++p) {
          const int64_t image = (begin + p) / grid, y = (begin + p) % grid / columns, x = (begin + p) % columns;
          const T* patch = source.get() + image * bordered.size() + (phase.in_row + 2 * y) * pitch +
                           (phase.in_column + 2 * x) * channels;
          transform_patch(patch, pitch, channels, planes.get() + p * padded, patches * padded);
        }
        for (int64_t panel = first_panel; panel < first_panel + panels_each; ++panel) {
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
            const int64_t image = (begin + p) / grid, y = (begin + p) % grid / columns, x = (begin + p) % columns;
            for (int64_t v = 0; v < used; v += LANES<T>) {
              Vector<T> pixels[2][2];
              transform_back(products.get() + p * WIDTH<T> + v, patches * WIDTH<T>, pixels);
              for (int64_t i = 0; i < std::min<int64_t>(2, phase.grid_height - 2 * y); ++i) {
                for (int64_t j = 0; j < std::min<int64_t>(2, phase.grid_width - 2 * x); ++j) {
                  T* to = out + (n + image) * out_shape.size() +
                          ((2 * y + i) * out_shape.width + 2 * x + j) * out_shape.channels + panel * WIDTH<T> + v;
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

// Correlates images with all phases' weights; what no phase covers of `out` is left alone.
template <typename T>
void correlate(ffi::ThreadPool& pool, const T* in, const Images& shape, Border border, const std::vector<Phase>& phases,
               const T* weights, T* out, const Images& out_shape) {
  const bool is_plain = phases.size() == 1 && phases[0].rows == 3 && phases[0].columns == 3 && phases[0].in_step == 1;
  if (is_plain && winograd_wins(shape.channels, out_shape)) {
    return correlate_winograd(pool, in, shape, border, phases[0], weights, out, out_shape);
  }
  const int64_t panels = ceil_div(out_shape.channels, WIDTH<T>);
  const Images bordered = {1, shape.height + border.before + border.after, shape.width + border.before + border.after,
                           shape.channels};
  const int64_t pitch = bordered.width * shape.channels;
  int64_t taps = 0;
  for (const Phase& phase : phases) taps += phase.taps();
  // Weights too large to stay in the cache beside the input are taken a panel at a time.
  const bool by_panel = panels * taps * shape.channels * WIDTH<T> * sizeof(T) > CACHE_BYTES;
  const int64_t panel_tasks = by_panel ? panels : 1, panels_each = by_panel ? 1 : panels;
  const int64_t images_each = ceil_div(shape.count * panel_tasks, std::max(TASKS, panel_tasks));
  const int64_t image_tasks = ceil_div(shape.count, images_each);
  const int64_t at_a_time = std::clamp<int64_t>(CACHE_BYTES / (bordered.size() * sizeof(T)), 1, images_each);
  const bool copy = border.before || border.after;
  std::vector<std::vector<Place>> places;
  for (const Phase& phase : phases) places.push_back(places_of(phase, bordered, out_shape, at_a_time));

  parallel_for(pool, panel_tasks * image_tasks, [&](int64_t task) {
    const int64_t first_panel = task / image_tasks * panels_each;
    const int64_t first = task % image_tasks * images_each, last = std::min(first + images_each, shape.count);
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
        for (int64_t panel = first_panel; panel < first_panel + panels_each; ++panel) {
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

// What `kernel_gradient` does, for a 3x3 kernel and a stride of 1.
template <typename T>
void kernel_gradient_winograd(ffi::ThreadPool& pool, const T* x, const Images& x_shape, const T* dy,
                              const Images& dy_shape, int64_t padding, T* dkernel) {
  const int64_t inputs = x_shape.channels, outputs = dy_shape.channels, panels = ceil_div(outputs, WIDTH<T>);
  const int64_t padded = ceil_div(inputs, LANES<T>) * LANES<T>;
  const Border border = {padding, padding + 1};  // the last patch of an odd size goes beyond
  const Images bordered = {1, x_shape.height + border.before + border.after,
                           x_shape.width + border.before + border.after, inputs};
  const int64_t rows = ceil_div(dy_shape.height, 2), columns = ceil_div(dy_shape.width, 2), grid = rows * columns;
  const int64_t length = PLANES * inputs * WIDTH<T>;  // of a panel's sums: [plane][C][WIDTH]
  const int64_t panels_each = panels * length * sizeof(T) <= CACHE_BYTES ? panels : 1, panel_tasks = panels / panels_each;
  const int64_t images_each = ceil_div(x_shape.count * panel_tasks, std::max(TASKS, panel_tasks));
  const int64_t groups = ceil_div(x_shape.count, images_each);
  const int64_t at_a_time = std::clamp<int64_t>(CACHE_BYTES / (bordered.size() * sizeof(T)), 1, images_each);
  const int64_t patches =
      std::clamp<int64_t>(CACHE_BYTES / (PLANES * padded * sizeof(T)), 1, at_a_time * grid);
  Scratch<T> sums(groups * panels * length);
  std::vector<int64_t> offsets(patches);
  for (int64_t p = 0; p < patches; ++p) offsets[p] = p * padded;

  parallel_for(pool, groups * panel_tasks, [&](int64_t task) {
    const int64_t group = task / panel_tasks, first_panel = task % panel_tasks * panels_each;
    const int64_t first = group * images_each, last = std::min(first + images_each, x_shape.count);
    T* own = sums.get() + (group * panels + first_panel) * length;
    std::fill_n(own, panels_each * length, T(0));
    Scratch<T> source(at_a_time * bordered.size() + LANES<T>);
    Scratch<T> values(PLANES * patches * padded + RUN * PANEL), gradients(PLANES * patches * WIDTH<T>);
    for (int64_t n = first; n < last; n += at_a_time) {
      const int64_t count = std::min(at_a_time, last - n);
      add_border(x + n * x_shape.size(), {count, x_shape.height, x_shape.width, inputs}, border, source.get());
      for (int64_t begin = 0; begin < count * grid; begin += patches) {
        const int64_t size = std::min(patches, count * grid - begin);
        for (int64_t p = 0; p < size; ++p) {
          const int64_t image = (begin + p) / grid, row = (begin + p) % grid / columns, column = (begin + p) % columns;
          const T* patch = source.get() + image * bordered.size() + (2 * row * bordered.width + 2 * column) * inputs;
          transform_patch(patch, bordered.width * inputs, inputs, values.get() + p * padded, patches * padded);
        }
        for (int64_t panel = 0; panel < panels_each; ++panel) {
          const int64_t from = (first_panel + panel) * WIDTH<T>, used = std::min<int64_t>(outputs - from, WIDTH<T>);
          for (int64_t p = 0; p < size; ++p) {
            const int64_t image = (begin + p) / grid, row = (begin + p) % grid / columns, column = (begin + p) % columns;
            for (int64_t v = 0; v < used; v += LANES<T>) {
              Vector<T> pixels[2][2] = {};
              for (int64_t i = 0; i < std::min<int64_t>(2, dy_shape.height - 2 * row); ++i) {
                for (int64_t j = 0; j < std::min<int64_t>(2, dy_shape.width - 2 * column); ++j) {
                  const T* pixel = dy + (n + image) * dy_shape.size() +
                                   ((2 * row + i) * dy_shape.width + 2 * column + j) * outputs + from + v;
                  pixels[i][j] = load_some(pixel, used - v);
                }
              }
              transform_pixels(pixels, gradients.get() + p * WIDTH<T> + v, patches * WIDTH<T>);
            }
          }
          const auto tile = used > LANES<T> ? gradient_tile<T, PANEL> : gradient_tile<T, 1>;
          const int64_t step = used > LANES<T> ? RUN : RUN * PANEL;
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

// dkernel = the gradient for the kernel.
template <typename T>
void kernel_gradient(ffi::ThreadPool& pool, const T* x, const Images& x_shape, const T* dy, const Images& dy_shape,
                     Window window, T* dkernel) {
  if (window.size == 3 && window.stride == 1 && winograd_wins(x_shape.channels, dy_shape)) {
    return kernel_gradient_winograd(pool, x, x_shape, dy, dy_shape, window.padding, dkernel);
  }
  const int64_t inputs = x_shape.channels, outputs = dy_shape.channels, panels = ceil_div(outputs, WIDTH<T>);
  const Border border = {window.padding, window.padding};
  const Images bordered = {1, x_shape.height + 2 * window.padding, x_shape.width + 2 * window.padding, inputs};
  const int64_t run = window.size * inputs, length = window.size * run, grid = dy_shape.height * dy_shape.width;
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
    const int64_t step = channels > LANES<T> ? RUN : RUN * PANEL;
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

// --- Batch normalisation ---

// Several pixels taken as one with many channels, so that loops over channels are long.
struct Fold {
  int64_t channels, pixels;
  Fold(const Images& shape) : channels(shape.channels), pixels(1) {
    while (channels * pixels < FOLDED && shape.height * shape.width % (2 * pixels) == 0) pixels *= 2;
  }
  int64_t size() const { return channels * pixels; }
  template <typename T>
  void sum(T* values) const {  // over the pixels, into the first
    for (int64_t i = channels; i < size(); ++i) values[i % channels] += values[i];
  }
  template <typename T>
  void spread(const T* from, T* to) const {
    for (int64_t i = 0; i < size(); ++i) to[i] = from[i % channels];
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

// The tasks that images are cut into, calling task(number, first, last).
template <typename Task>
int64_t for_images(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  const int64_t each = ceil_div(count, TASKS), tasks = ceil_div(count, each);
  parallel_for(pool, tasks, [&](int64_t i) { task(i, i * each, std::min((i + 1) * each, count)); });
  return tasks;
}

// The loops over values: their channels come round every `size`. Functions, for only there does __restrict count.

template <typename T>
void add_values(const T* __restrict x, int64_t count, int64_t size, T* __restrict sums) {
  for (int64_t i = 0; i < count; i += size) {
    for (int64_t c = 0; c < size; ++c) sums[c] += x[i + c];
  }
}

template <typename T>
void add_squares(const T* __restrict x, int64_t count, int64_t size, const T* __restrict means, T* __restrict sums) {
  for (int64_t i = 0; i < count; i += size) {
    for (int64_t c = 0; c < size; ++c) sums[c] += (x[i + c] - means[c]) * (x[i + c] - means[c]);
  }
}

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

// dy = dz where the RELU's result z is above 0, or everywhere without RELU (then `dy` is not written); and the sums over
// all pixels of dy, and of dy * (x - mean), each channel apart.
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

Images images_of(const ffi::AnyBuffer& buffer) {
  const auto shape = buffer.dimensions();
  return {shape[0], shape[1], shape[2], shape[3]};
}

// Calls `function` with a zero of the buffer's type.
template <typename Function>
ffi::Error by_type(const ffi::AnyBuffer& buffer, const Function& function) {
  if (buffer.element_type() == ffi::F32) return function(float()), ffi::Error::Success();
  if (buffer.element_type() == ffi::F64) return function(double()), ffi::Error::Success();
  return ffi::Error::InvalidArgument("only float32 and float64");
}

ffi::Error convolve_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> y,
                         int64_t stride, int64_t padding) {
  const Window window = {kernel.dimensions()[0], stride, padding};
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    convolve(pool, x.reinterpret_data<T>(), images_of(x), kernel.reinterpret_data<T>(), window,
             y->reinterpret_data<T>(), images_of(*y));
  });
}

ffi::Error images_gradient_call(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer kernel,
                                ffi::Result<ffi::AnyBuffer> dx, int64_t stride, int64_t padding) {
  const Window window = {kernel.dimensions()[0], stride, padding};
  return by_type(dy, [&](auto zero) {
    using T = decltype(zero);
    images_gradient(pool, dy.reinterpret_data<T>(), images_of(dy), kernel.reinterpret_data<T>(), window,
                    dx->reinterpret_data<T>(), images_of(*dx));
  });
}

ffi::Error kernel_gradient_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer dy,
                                ffi::Result<ffi::AnyBuffer> dkernel, int64_t stride, int64_t padding) {
  const Window window = {dkernel->dimensions()[0], stride, padding};
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    kernel_gradient(pool, x.reinterpret_data<T>(), images_of(x), dy.reinterpret_data<T>(), images_of(dy), window,
                    dkernel->reinterpret_data<T>());
  });
}

ffi::Error moments_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer weights, ffi::Result<ffi::AnyBuffer> mean,
                        ffi::Result<ffi::AnyBuffer> squares) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    moments(pool, x.reinterpret_data<T>(), images_of(x), weights.reinterpret_data<T>(), mean->reinterpret_data<T>(),
            squares->reinterpret_data<T>());
  });
}

// The shortcut may be empty.
ffi::Error normalise_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer mean, ffi::AnyBuffer factor,
                          ffi::AnyBuffer bias, ffi::AnyBuffer shortcut, ffi::Result<ffi::AnyBuffer> y, int64_t relu) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const bool has_shortcut = shortcut.element_count() > 0;
    const auto run = has_shortcut ? (relu ? normalise<T, true, true> : normalise<T, true, false>)
                                  : (relu ? normalise<T, false, true> : normalise<T, false, false>);
    run(pool, x.reinterpret_data<T>(), images_of(x), mean.reinterpret_data<T>(), factor.reinterpret_data<T>(),
        bias.reinterpret_data<T>(), shortcut.reinterpret_data<T>(), y->reinterpret_data<T>());
  });
}

// Without ReLU there is neither z nor dy: both are empty.
ffi::Error normalise_gradient_call(ffi::ThreadPool pool, ffi::AnyBuffer dz, ffi::AnyBuffer z, ffi::AnyBuffer x,
                                   ffi::AnyBuffer mean, ffi::Result<ffi::AnyBuffer> dy,
                                   ffi::Result<ffi::AnyBuffer> sums, ffi::Result<ffi::AnyBuffer> products) {
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    const auto run = z.element_count() > 0 ? normalise_gradient<T, true> : normalise_gradient<T, false>;
    run(pool, dz.reinterpret_data<T>(), z.reinterpret_data<T>(), x.reinterpret_data<T>(), images_of(x),
        mean.reinterpret_data<T>(), dy->reinterpret_data<T>(), sums->reinterpret_data<T>(),
        products->reinterpret_data<T>());
  });
}

auto convolution() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("padding");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_convolve, convolve_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_images_gradient, images_gradient_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_kernel_gradient, kernel_gradient_call, convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_moments, moments_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_normalise, normalise_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(wsjax_normalise_gradient, normalise_gradient_call,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());
