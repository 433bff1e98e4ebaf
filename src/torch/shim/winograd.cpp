// Convolution by Winograd's minimal filtering, F(4x4, 3x3) of Lavin and Gray (https://arxiv.org/abs/1509.09308): 36 products
// for 16 outputs where the direct way takes 144. Kernels of 3, steps of 1, a border of 1, float32 on the CPU.
//
// The twin in oneDNN wants AVX-512, the one in NNPACK takes kernels of one picture at a time. Pictures lie with their channels last, so that what is transformed is always a run of channels: eight lanes at a time.
#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {
constexpr int64_t kSide = 6;      // of a tile of input, and of what it is transformed to
constexpr int64_t kStep = 4;      // of a tile of output
constexpr int64_t kPoints = kSide * kSide;
constexpr int64_t kLanes = 8;
constexpr int64_t kBlock = 256;   // tiles that are multiplied at once
constexpr int64_t kFewest = 32;   // tiles, below which transforming the kernels takes longer than it saves
constexpr int64_t kChunk = 64;    // outputs whose kernels are transformed at once where all tiles are one block

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// The whole of each pass is compiled for either kind of processor, and the right one is found when the library is loaded.
#if defined(__x86_64__) && defined(__linux__)
#define DISPATCHED __attribute__((target_clones("arch=haswell", "default"), flatten))
#else
#define DISPATCHED
#endif

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void store(float* to, const Lanes& value) { *reinterpret_cast<Lanes*>(to) = value; }

// One column, or row, of B' d B: six numbers, `step` apart, in place.
inline void transform_input(Lanes* d, int64_t step) {
  const Lanes d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Lanes a = d4 - 4.0f * d2, b = d3 - 4.0f * d1, c = d4 - d2, e = 2.0f * (d3 - d1);
  d[0] = 4.0f * d0 - 5.0f * d2 + d4;
  d[step] = a + b;
  d[2 * step] = a - b;
  d[3 * step] = c + e;
  d[4 * step] = c - e;
  d[5 * step] = 4.0f * d1 - 5.0f * d3 + d5;
}

// One column, or row, of A' m A: six numbers become four.
inline void transform_output(const Lanes* m, int64_t step, Lanes* out, int64_t out_step) {
  const Lanes sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
  const Lanes far_sum = m[3 * step] + m[4 * step], far_difference = m[3 * step] - m[4 * step];
  out[0] = m[0] + sum + far_sum;
  out[out_step] = difference + 2.0f * far_difference;
  out[2 * out_step] = sum + 4.0f * far_sum;
  out[3 * out_step] = difference + 8.0f * far_difference + m[5 * step];
}

// One column, or row, of G g G': three numbers become six.
inline void transform_kernel(const Lanes* g, int64_t step, Lanes* out, int64_t out_step) {
  const Lanes ends = g[0] + g[2 * step];
  const Lanes wide = g[0] * (1.0f / 24) + g[2 * step] * (1.0f / 6), middle = g[step] * (1.0f / 12);
  out[0] = 0.25f * g[0];
  out[out_step] = (ends + g[step]) * (-1.0f / 6);
  out[2 * out_step] = (ends - g[step]) * (-1.0f / 6);
  out[3 * out_step] = wide + middle;
  out[4 * out_step] = wide - middle;
  out[5 * out_step] = g[2 * step];
}

// 36 matrices, one behind the other. Their distance is no multiple of a page: what is written to all of them in turn would
// fall into one set of the cache.
struct Planes {
  Planes(int64_t rows, int64_t columns, const at::TensorOptions& options)
      : rows(rows), columns(columns), distance((rows * columns + 15) / 16 * 16 + 16),
        storage(at::empty({kPoints * distance}, options)), data(storage.mutable_data_ptr<float>()) {}

  at::Tensor first(int64_t count) const {
    return storage.as_strided({kPoints, count, columns}, {distance, columns, 1});
  }

  int64_t rows, columns, distance;
  at::Tensor storage;
  float* data;
};

struct Picture {
  int64_t height, width;
  int64_t tiles_down() const { return (height + kStep - 1) / kStep; }
  int64_t tiles_across() const { return (width + kStep - 1) / kStep; }
  int64_t tiles() const { return tiles_down() * tiles_across(); }
};

// Kernels `[outputs, 3, 3, inputs]` from `begin` to `end` to rows of `to`, the first of which is for the output `first`.
DISPATCHED void transform_kernels(const float* from, float* to, int64_t distance, int64_t first, int64_t begin, int64_t end,
                                  int64_t inputs) {
  for (int64_t output = begin; output < end; ++output) {
    for (int64_t c = 0; c < inputs; c += kLanes) {
      Lanes g[9], rows[18], points[kPoints];
      for (int64_t k = 0; k < 9; ++k) g[k] = load(from + (output * 9 + k) * inputs + c);
      for (int64_t k = 0; k < 3; ++k) transform_kernel(g + k, 3, rows + k, 3);
      for (int64_t k = 0; k < kSide; ++k) transform_kernel(rows + 3 * k, 1, points + kSide * k, 1);
      for (int64_t k = 0; k < kPoints; ++k) store(to + k * distance + (output - first) * inputs + c, points[k]);
    }
  }
}

// Tiles from `begin` to `end` of pictures `[batch, height, width, channels]` to rows of `to`, the first of which is for the
// tile `first`.
DISPATCHED void transform_tiles(const float* from, const float* zeros, float* to, int64_t distance, Picture picture,
                                int64_t channels, int64_t first, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t within = tile % picture.tiles();
    const int64_t top = within / picture.tiles_across() * kStep - 1, left = within % picture.tiles_across() * kStep - 1;
    const float* image = from + tile / picture.tiles() * picture.height * picture.width * channels;
    const float* pixels[kPoints];
    for (int64_t k = 0; k < kPoints; ++k) {
      const int64_t y = top + k / kSide, x = left + k % kSide;
      const bool inside = y >= 0 && y < picture.height && x >= 0 && x < picture.width;
      pixels[k] = inside ? image + (y * picture.width + x) * channels : zeros;
    }
    for (int64_t c = 0; c < channels; c += kLanes) {
      Lanes d[kPoints];
      for (int64_t k = 0; k < kPoints; ++k) d[k] = load(pixels[k] + c);
      for (int64_t k = 0; k < kSide; ++k) transform_input(d + k, kSide);
      for (int64_t k = 0; k < kSide; ++k) transform_input(d + kSide * k, 1);
      for (int64_t k = 0; k < kPoints; ++k) store(to + k * distance + (tile - first) * channels + c, d[k]);
    }
  }
}

// Products of `count` outputs, in rows as those of `transform_tiles`, to the tiles from `begin` to `end` of pictures
// `[batch, height, width, channels]`, of which `to` and `bias` are the first channel that is written.
DISPATCHED void transform_products(const float* from, int64_t distance, const float* bias, float* to, Picture picture,
                                   int64_t channels, int64_t count, int64_t first, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t within = tile % picture.tiles();
    const int64_t top = within / picture.tiles_across() * kStep, left = within % picture.tiles_across() * kStep;
    const int64_t rows = std::min(kStep, picture.height - top), columns = std::min(kStep, picture.width - left);
    float* image = to + tile / picture.tiles() * picture.height * picture.width * channels;
    for (int64_t c = 0; c < count; c += kLanes) {
      Lanes m[kPoints], half[kStep * kSide], out[kStep * kStep];
      for (int64_t k = 0; k < kPoints; ++k) m[k] = load(from + k * distance + (tile - first) * count + c);
      for (int64_t k = 0; k < kSide; ++k) transform_output(m + k, kSide, half + k, kSide);
      for (int64_t k = 0; k < kStep; ++k) transform_output(half + kSide * k, 1, out + kStep * k, 1);
      const Lanes offset = load(bias + c);
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < columns; ++x) {
          store(image + ((top + y) * picture.width + left + x) * channels + c, out[y * kStep + x] + offset);
        }
      }
    }
  }
}

bool suits(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  const auto is_plain = [](const at::Tensor& tensor) { return tensor.is_cpu() && tensor.scalar_type() == at::kFloat; };
  if (!is_plain(input) || !is_plain(weight) || (bias.defined() && !is_plain(bias))) return false;
  if (at::GradMode::is_enabled() && (input.requires_grad() || weight.requires_grad())) return false;
  if (input.dim() != 4 || weight.dim() != 4 || weight.size(2) != 3 || weight.size(3) != 3) return false;
  if (input.size(1) != weight.size(1) || (bias.defined() && bias.numel() != weight.size(0))) return false;
  const Picture picture{input.size(2), input.size(3)};
  return weight.size(0) % kLanes == 0 && weight.size(1) % kLanes == 0 && input.size(0) * picture.tiles() >= kFewest &&
         !torch::jit::tracer::isTracing();
}

at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;
  const auto source = input.contiguous(kChannelsLast), kernels = weight.contiguous(kChannelsLast);
  const int64_t batch = source.size(0), inputs = source.size(1), outputs = kernels.size(0);
  const Picture picture{source.size(2), source.size(3)};
  const auto offset = bias.defined() ? bias.contiguous() : at::zeros({outputs}, source.options());
  const std::vector<float> zeros(static_cast<size_t>(inputs), 0.0f);

  auto result = at::empty({batch, outputs, picture.height, picture.width}, source.options().memory_format(kChannelsLast));
  const float* kernel = kernels.const_data_ptr<float>();
  const float* pixels = source.const_data_ptr<float>();
  const float* offsets = offset.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();

  const int64_t tiles = batch * picture.tiles(), block = std::min(kBlock, tiles);
  // Kernels are transformed once: all before the first block, or in chunks that stay in the cache for the only one.
  const int64_t chunk = tiles <= kBlock ? std::min(kChunk, outputs) : outputs;
  const auto plain = source.options();
  const Planes points(chunk, inputs, plain), transformed(block, inputs, plain), products(block, chunk, plain);
  for (int64_t tile = 0; tile < tiles; tile += block) {
    const int64_t end = std::min(tile + block, tiles);
    at::parallel_for(tile, end, 1, [&](int64_t from, int64_t to) {
      transform_tiles(pixels, zeros.data(), transformed.data, transformed.distance, picture, inputs, tile, from, to);
    });
    for (int64_t output = 0; output < outputs; output += chunk) {
      const int64_t count = std::min(chunk, outputs - output);
      if (tile == 0) {
        at::parallel_for(output, output + count, 1, [&](int64_t from, int64_t to) {
          transform_kernels(kernel, points.data, points.distance, output, from, to, inputs);
        });
      }
      auto product = products.storage.as_strided({kPoints, end - tile, count}, {products.distance, count, 1});
      at::bmm_out(product, transformed.first(end - tile), points.first(count).transpose(1, 2));
      at::parallel_for(tile, end, 1, [&](int64_t from, int64_t to) {
        transform_products(products.data, products.distance, offsets + output, out + output, picture, outputs, count, tile,
                           from, to);
      });
    }
  }
  return result;
}
}  // namespace

// A convolution with a kernel of 3, steps of 1 and a border of 1; `bias` may be null. `*out` stays null where this way
// does not suit the tensors.
SHIM int tds_conv2d_winograd(void* input, void* weight, void* bias, void** out, char** error) {
  return guarded(error, [&] {
    const auto& kernels = *static_cast<at::Tensor*>(weight);
    const auto& pictures = *static_cast<at::Tensor*>(input);
    const auto offset = bias == nullptr ? at::Tensor() : *static_cast<at::Tensor*>(bias);
    *out = suits(pictures, kernels, offset) ? new at::Tensor(convolve(pictures, kernels, offset)) : nullptr;
  });
}
