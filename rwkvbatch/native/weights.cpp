// Loading of weights: packs them from memory or from a file.
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "context.hpp"

namespace rwkv {
namespace {

// Read `num_bytes` bytes; false if not all could be read.
bool read_all(int descriptor, uint64_t start, uint8_t* to, size_t num_bytes) {
    for (size_t num_read = 0; num_read < num_bytes;) {
        const ssize_t count = pread(descriptor, to + num_read, num_bytes - num_read, static_cast<off_t>(start + num_read));
        if (count > 0) num_read += static_cast<size_t>(count);
        else if (count == 0 || errno != EINTR) return false;
    }
    return true;
}

}  // namespace

LinearLayer Context::linear_layer(const StoredMatrix& stored, size_t out, size_t in, const float* bias,
                                  Activation activation, Dtype dtype, bool sparse_inputs) {
    const StandardArithmetic arithmetic;
    PackedMatrix packed{nullptr, dtype, out, in, sparse_inputs && fits_by_input(dtype, out, in)};
    uint8_t* const memory = store_->allocate(packed.num_bytes());
    threads().run(packed.num_bands(), [&](size_t band, size_t) {
        isa_.packing_kernels->pack_band(packed, stored.from(band * BAND * PANEL), band, memory);
    });
    packed.data = memory;
    return {{packed, store_}, bias != nullptr ? vector(bias, 1, out).data : nullptr, activation};
}

std::optional<LinearLayer> Context::read_layer(const StoredRows& stored, size_t out, size_t in, Activation activation, Dtype dtype,
                                               bool sparse_inputs) {
    constexpr size_t ROWS = BAND * PANEL;
    const StandardArithmetic arithmetic;
    const size_t row = row_bytes(stored.dtype, in);
    PackedMatrix packed{nullptr, dtype, out, in, sparse_inputs && fits_by_input(dtype, out, in)};
    uint8_t* const memory = store_->allocate(packed.num_bytes());
    need_scratch(ceil_div(ROWS * row, sizeof(float)));
    std::atomic<bool> failed{false};
    threads().run(packed.num_bands(), [&](size_t band, size_t thread) {
        if (failed.load(std::memory_order_relaxed)) return;
        // The part that a thread reads at a time stays in its cache until it is packed.
        uint8_t* const rows = reinterpret_cast<uint8_t*>(scratch(thread));
        const size_t count = std::min(ROWS, out - band * ROWS);
        const int64_t in_stride = is_integer(stored.dtype) ? 0 : static_cast<int64_t>(size_of(stored.dtype));
        const StoredMatrix matrix{rows, stored.dtype, static_cast<int64_t>(row), in_stride};
        if (read_all(stored.descriptor, stored.start + band * ROWS * row, rows, count * row) &&
            isa_.packing_kernels->rows_are_finite(matrix, in, count))
            isa_.packing_kernels->pack_band(packed, matrix, band, memory);
        else
            failed.store(true, std::memory_order_relaxed);
    });
    if (failed.load()) return std::nullopt;
    packed.data = memory;
    return LinearLayer{{packed, store_}, nullptr, activation};
}

Vector Context::vector(const float* data, size_t rows, size_t width) {
    uint8_t* target = store_->allocate(rows * width * sizeof(float));
    std::memcpy(target, data, rows * width * sizeof(float));
    return {reinterpret_cast<const float*>(target), rows, width, store_};
}

Table Context::table(const uint8_t* data, Dtype dtype, size_t vocab_size, size_t width) {
    const size_t num_bytes = vocab_size * width * size_of(dtype);
    uint8_t* target = store_->allocate(num_bytes);
    std::memcpy(target, data, num_bytes);
    return {target, dtype, vocab_size, width, store_};
}

std::optional<Table> Context::read_table(const StoredRows& stored, size_t vocab_size, size_t width) {
    constexpr size_t PART = size_t(1) << 17;  // numbers that a thread reads at a time
    const size_t element = size_of(stored.dtype), count = vocab_size * width;
    uint8_t* const memory = store_->allocate(count * element);
    std::atomic<bool> failed{false};
    threads().run(ceil_div(count, PART), [&](size_t part, size_t) {
        const size_t begin = part * PART, size = std::min(PART, count - begin);
        uint8_t* const numbers = memory + begin * element;
        if (failed.load(std::memory_order_relaxed)) return;
        if (!read_all(stored.descriptor, stored.start + begin * element, numbers, size * element) ||
            !isa_.packing_kernels->are_finite(numbers, stored.dtype, size))
            failed.store(true, std::memory_order_relaxed);
    });
    if (failed.load()) return std::nullopt;
    return Table{memory, stored.dtype, vocab_size, width, store_};
}

}  // namespace rwkv
