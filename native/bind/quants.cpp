// Quantized blocks to and from NumPy arrays.
#include "../quants/quants.h"

#include <algorithm>
#include <memory>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <optional>
#include <string>
#include <thread>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

insula::quants::Traits format_of(std::int32_t type_id) {
  const auto format = insula::quants::traits(type_id);
  if (!format) {
    throw nb::value_error(("no ggml type " + std::to_string(type_id) + " is decoded").c_str());
  }
  return *format;
}

unsigned thread_count(unsigned asked) {
  return asked != 0 ? asked : std::max(1u, std::thread::hardware_concurrency());
}

template <typename T> auto numpy_array(std::unique_ptr<T[]> values, std::size_t n) {
  T *raw = values.release();
  nb::capsule owner(raw, [](void *p) noexcept { delete[] static_cast<T *>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(raw, {n}, owner);
}

auto dequantize(std::int32_t type_id, Bytes raw, std::size_t n, unsigned threads) {
  const auto format = format_of(type_id);
  // The division first: n comes from a file, and n * bytes could overflow.
  if (n % format.block_size != 0 || raw.size() % format.block_bytes != 0 ||
      raw.size() / format.block_bytes != n / format.block_size) {
    throw nb::value_error((std::to_string(raw.size()) + " bytes are not " + std::to_string(n) +
                           " elements of " + format.name)
                              .c_str());
  }
  auto values = std::make_unique_for_overwrite<float[]>(n);
  {
    nb::gil_scoped_release released;
    insula::quants::dequantize(format, raw.data(), values.get(), n, thread_count(threads));
  }
  return numpy_array(std::move(values), n);
}

auto quantize(std::int32_t type_id, Matrix x, std::optional<Vector> importance, unsigned threads) {
  const auto format = format_of(type_id);
  const std::size_t rows = x.shape(0);
  const std::size_t cols = x.shape(1);
  if (cols % format.block_size != 0) {
    throw nb::value_error(("rows of " + std::to_string(cols) + " do not divide into " +
                           format.name + " blocks of " + std::to_string(format.block_size))
                              .c_str());
  }
  if (importance) {
    if (importance->size() != cols) {
      throw nb::value_error("importance needs one weight a column");
    }
    const float *w = importance->data();
    if (!std::all_of(w, w + cols, [](float v) { return v >= 0 && v <= 1e30f; })) {
      throw nb::value_error("importance must be finite and not negative");
    }
  }
  const std::size_t size = rows * (cols / format.block_size * format.block_bytes);
  auto blocks = std::make_unique_for_overwrite<std::uint8_t[]>(size);
  insula::quants::QuantizeResult result;
  {
    nb::gil_scoped_release released;
    result =
        insula::quants::quantize(format, x.data(), blocks.get(), rows, cols,
                                 importance ? importance->data() : nullptr, thread_count(threads));
  }
  if (result.fault != insula::quants::Fault::none) {
    const bool overflow = result.fault == insula::quants::Fault::overflow;
    throw nb::value_error(("row " + std::to_string(result.row) +
                           (overflow ? std::string(" holds values too large for ") + format.name
                                     : std::string(" holds a NaN or an infinity")))
                              .c_str());
  }
  return numpy_array(std::move(blocks), size);
}

} // namespace

void bind_quants(nb::module_ &m) {
  m.def("dequantize", &dequantize, "type_id"_a, "raw"_a, "n"_a, "threads"_a = 0,
        "Blocks uint8[nbytes] of a ggml type as float32[n]. threads 0: one a core.\n\n"
        "ValueError if the type is not decoded or the bytes are not n elements.");
  m.def("quantize", &quantize, "type_id"_a, "x"_a, "importance"_a = nb::none(), "threads"_a = 0,
        "float32[rows, cols] as blocks of a ggml type, uint8[nbytes].\n\n"
        "importance: float32[cols] weights of the columns' errors, or None.\n"
        "ValueError if the type is not known, cols does not divide into its blocks, or a\n"
        "row holds values that are not finite or too large for the format.");
}
