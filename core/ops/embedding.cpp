// Rows of tables.
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

// The CPU's kernels trust the indices, so they are read here. On a device they are not: each look
// would make the host wait for all that was asked of the device before (core/backend.h says what its
// kernels do with a wrong one).
void require_indices(const char* op, const Tensor& index, const Tensor& table) {
  require_dtype(op, "index", index, DType::kInt64);
  require_same_device(op, "index", index, table);
  if (index.device().type != DeviceType::kCpu) return;
  for (const int64_t i : index.values<int64_t>()) {
    if (i < 0 || i >= table.size(0)) {
      fail<Error>("{}: index {} is outside a table of {} rows", op, i, table.size(0));
    }
  }
}

}  // namespace

Tensor embedding(const Tensor& weight, const Tensor& index) {
  require_floating("embedding", "weight", weight);
  require_rank("embedding", "weight", weight, 2, "[V, E]");
  require_indices("embedding", index, weight);
  const int64_t n = index.numel(), E = weight.size(1);
  std::vector<int64_t> sizes(index.shape().begin(), index.shape().end());
  sizes.push_back(E);
  const Shape shape{std::span<const int64_t>(sizes)};
  const Tensor index1 = view_of(index, {n}, 0);
  const Tensor out = Tensor::empty({n, E}, weight.dtype(), weight.device());
  backend(weight).embedding(weight, index1, out);
  return record(
      "embedding", view_of(out, shape, 0), {weight},
      [n, E, index1, before = weight.shape()](const Tensor& cotangent) -> std::vector<Tensor> {
        const Tensor dout = view_of(cotangent, {n, E}, 0);
        const Tensor dweight = Tensor::empty(before, dout.dtype(), dout.device());
        backend(dout).embedding_backward(dout, index1, dweight);
        return {dweight};
      });
}

Tensor gather_timesteps(const Tensor& table, const Tensor& t, int rank, DType dtype) {
  require_dtype("gather_timesteps", "table", table, DType::kFloat64);
  require_rank("gather_timesteps", "table", table, 1, "[T]");
  require_indices("gather_timesteps", t, table);
  require_rank("gather_timesteps", "t", t, 1, "[N]");
  if (rank < 1 || rank > Shape::kMaxRank) {
    fail<ShapeError>("gather_timesteps: rank {} given, 1 to {} expected", rank, Shape::kMaxRank);
  }
  std::vector<int64_t> sizes(static_cast<size_t>(rank), 1);
  sizes[0] = t.size(0);
  const Tensor out =
      Tensor::empty(Shape(std::span<const int64_t>(sizes)), table.dtype(), table.device());
  backend(table).embedding(view_of(table, {table.size(0), 1}, 0), t,
                           view_of(out, {t.size(0), 1}, 0));
  return cast(out, dtype);
}

}  // namespace mutilde
