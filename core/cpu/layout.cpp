// Kernels that only move data. They see elements as bytes of some size, never as numbers.
#include <array>
#include <cstring>
#include <vector>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {
namespace {

constexpr int64_t kGrainBytes = 65536;  // a copy that repays waking a thread

struct Axis {
  int64_t size, stride;  // stride in the input, in elements
};

/// The output's axes, outermost first, each with its stride in the input. Axes of size 1 vanish,
/// and neighbours that are neighbours in the input too become one.
std::vector<Axis> permuted_axes(const Shape& x, std::span<const int> axes) {
  std::vector<Axis> merged;
  for (int axis : axes) {
    const Axis next{x[axis], x.product(axis + 1, x.rank())};
    if (next.size == 1) continue;
    if (!merged.empty() && merged.back().stride == next.size * next.stride) {
      merged.back() = {merged.back().size * next.size, next.stride};
    } else {
      merged.push_back(next);
    }
  }
  if (merged.empty()) merged.push_back({1, 1});
  return merged;
}

/// Offset of entry `index` of the row-major walk over `axes`, by `stride_of(position)`.
template <class StrideOf>
int64_t offset_of(int64_t index, const std::vector<Axis>& axes, const StrideOf& stride_of) {
  int64_t offset = 0;
  for (size_t i = axes.size(); i-- > 0; index /= axes[i].size) {
    offset += index % axes[i].size * stride_of(i);
  }
  return offset;
}

/// The last axis stays last: rows of it are copied whole.
void permute_rows(const char* x, const std::vector<Axis>& axes, size_t element, char* out) {
  const std::vector<Axis> outer(axes.begin(), axes.end() - 1);
  int64_t rows = 1;
  for (const Axis& axis : outer) rows *= axis.size;
  const size_t row_bytes = static_cast<size_t>(axes.back().size) * element;
  const int64_t grain = kGrainBytes / static_cast<int64_t>(row_bytes) + 1;
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t offset = offset_of(row, outer, [&](size_t i) { return outer[i].stride; });
      std::memcpy(out + static_cast<size_t>(row) * row_bytes,
                  x + static_cast<size_t>(offset) * element, row_bytes);
    }
  });
}

/// Otherwise two axes matter: the one that is contiguous in the output and the one that is
/// contiguous in the input. They are walked in tiles, so that both sides use whole cache lines; the
/// others are a loop around that.
template <class Word>
void permute_tiles(const Word* x, const std::vector<Axis>& axes, Word* out) {
  constexpr int64_t kTile = 32;
  const size_t last = axes.size() - 1;
  size_t middle = 0;
  while (axes[middle].stride != 1) ++middle;

  std::vector<int64_t> out_stride(axes.size(), 1);
  for (size_t i = last; i-- > 0;) out_stride[i] = out_stride[i + 1] * axes[i + 1].size;

  std::vector<Axis> loop = axes;  // tiles along `middle`, one entry for `last`
  loop[middle].size = (axes[middle].size + kTile - 1) / kTile;
  loop[last].size = 1;
  int64_t tasks = 1;
  for (const Axis& axis : loop) tasks *= axis.size;

  const auto x_step = [&](size_t i) { return axes[i].stride * (i == middle ? kTile : 1); };
  const auto out_step = [&](size_t i) { return out_stride[i] * (i == middle ? kTile : 1); };
  int64_t position_stride = 1;  // of a tile's position along `middle` in the task number
  for (size_t i = middle + 1; i < last; ++i) position_stride *= loop[i].size;

  const int64_t columns = axes[last].size, x_stride = axes[last].stride;
  const int64_t grain = kGrainBytes / (columns * kTile * static_cast<int64_t>(sizeof(Word))) + 1;
  parallel_for(tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Word* from = x + offset_of(task, loop, x_step);
      Word* to = out + offset_of(task, loop, out_step);
      const int64_t first = task / position_stride % loop[middle].size * kTile;
      const int64_t rows = std::min(kTile, axes[middle].size - first);
      for (int64_t column = 0; column < columns; column += kTile) {
        const int64_t column_end = std::min(column + kTile, columns);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = column; j < column_end; ++j) {
            to[i * out_stride[middle] + j] = from[i + j * x_stride];
          }
        }
      }
    }
  });
}

}  // namespace

void CpuBackend::permute(ConstView x, std::span<const int> axes, View out) {
  if (x.numel() == 0) return;
  const std::vector<Axis> merged = permuted_axes(x.shape, axes);
  const size_t element = size_of(x.dtype);
  if (merged.back().stride == 1) {
    return permute_rows(x.as<char>(), merged, element, out.as<char>());
  }
  if (element == 1) return permute_tiles(x.as<uint8_t>(), merged, out.as<uint8_t>());
  if (element == 2) return permute_tiles(x.as<uint16_t>(), merged, out.as<uint16_t>());
  if (element == 4) return permute_tiles(x.as<uint32_t>(), merged, out.as<uint32_t>());
  permute_tiles(x.as<uint64_t>(), merged, out.as<uint64_t>());
}

void CpuBackend::copy_slice(ConstView x, int axis, int64_t x_begin, int64_t count, View out,
                            int64_t out_begin) {
  const int64_t inner = x.shape.product(axis + 1, x.shape.rank()) *
                        static_cast<int64_t>(size_of(x.dtype));  // bytes an entry of the axis
  const int64_t bytes = count * inner, rows = x.shape.product(0, axis);
  if (bytes == 0 || rows == 0) return;
  const int64_t x_stride = x.shape[axis] * inner, out_stride = out.shape[axis] * inner;
  const char* from = x.as<char>() + x_begin * inner;
  char* to = out.as<char>() + out_begin * inner;
  parallel_for(rows, kGrainBytes / bytes + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::memcpy(to + row * out_stride, from + row * x_stride, static_cast<size_t>(bytes));
    }
  });
}

}  // namespace mutilde
