#include "packed.hpp"

#include <cmath>
#include <cstring>

#include "halves.hpp"

namespace rwkv {
namespace {

// Copy an output's weights to every `step` bytes.
void copy_output(const StoredMatrix& stored, size_t out, size_t in, uint8_t* to, size_t step) {
    const size_t element = size_of(stored.dtype);
    const uint8_t* from = stored.at(out, 0);
    for (size_t k = 0; k < in; ++k, from += stored.in_stride, to += step) std::memcpy(to, from, element);
}

float widened(Dtype dtype, const uint8_t* from) {
    if (dtype == Dtype::FP32) {
        float value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, from, sizeof half);
    return dtype == Dtype::BF16 ? bf16_to_float(half) : half_to_float(half);
}

// To an integer, halves to the even one; for numbers below 2^22.
float rounded(float x) {
    constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23
    return (x + MAGIC) - MAGIC;
}

// Round a block of an output's weights to int8; returns its scale.
float round_block(const float* weights, size_t count, int8_t* to) {
    float largest = 0.0f;
    for (size_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(weights[k]));
    const float scale = largest / 127.0f;
    for (size_t k = 0; k < count; ++k) {
        // Among the smallest denormals the scale itself is far from exact, or zero.
        const float integer = scale > 0.0f ? std::max(-127.0f, std::min(127.0f, rounded(weights[k] / scale))) : 0.0f;
        to[k] = static_cast<int8_t>(integer);
    }
    return scale;
}

// The nearest bf16 number, halves to the even one.
uint16_t rounded_to_bf16(float x) {
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

// Round a block of an output's weights to 4 bits: the integers, and the scale in bf16.
uint16_t round_block_to_int4(const float* weights, size_t count, int8_t* to) {
    float largest = 0.0f;
    for (size_t k = 0; k < count; ++k)
        if (std::fabs(weights[k]) > std::fabs(largest)) largest = weights[k];
    const uint16_t half = rounded_to_bf16(largest / -8.0f);
    const float scale = bf16_to_float(half);
    for (size_t k = 0; k < count; ++k)
        to[k] = scale == 0.0f ? 0 : static_cast<int8_t>(std::max(-8.0f, std::min(7.0f, rounded(weights[k] / scale))));
    return half;
}

// A block's column of integers, as bytes of its units.
void put_integers(Dtype dtype, const int8_t* integers, size_t count, size_t column, uint8_t* weights, size_t input_bytes) {
    const int zero = zero_weight(dtype);
    const auto at = [&](size_t k) { return static_cast<unsigned>((k < count ? integers[k] : 0) + zero); };
    const size_t unit = unit_inputs(dtype);
    for (size_t begin = 0; begin < count; begin += unit, weights += input_bytes)
        for (size_t k = 0; k < QUAD; ++k)
            weights[column * QUAD + k] = static_cast<uint8_t>(
                dtype == Dtype::INT4 ? at(begin + k) | at(begin + QUAD + k) << 4 : at(begin + k));
}

void round_panel(const PackedMatrix& matrix, const StoredMatrix& stored, size_t panel, uint8_t* memory) {
    const size_t input_bytes = matrix.input_bytes(matrix.band_width(panel)), group = scaled_inputs(matrix.dtype);
    for (size_t begin = 0; begin < matrix.in; begin += group) {
        const size_t count = std::min(group, matrix.in - begin);
        uint8_t* const weights = memory + matrix.offset(panel, begin);
        uint8_t* const scales =
            weights + (is_integer(matrix.dtype) ? integer_scales_after(matrix.dtype, count, input_bytes, panel % BAND)
                                                : scales_after(count, input_bytes, panel % BAND));
        for (size_t column = 0; column < PANEL; ++column) {
            float values[SCALED_INPUTS] = {};
            int8_t integers[SCALED_INPUTS] = {};
            const size_t out = panel * PANEL + column;
            for (size_t k = 0; k < count && out < matrix.out; ++k)
                values[k] = widened(stored.dtype, stored.at(out, begin + k));
            if (matrix.dtype == Dtype::INT4) {
                const uint16_t scale = round_block_to_int4(values, count, integers);
                std::memcpy(scales + column * sizeof scale, &scale, sizeof scale);
            } else {
                const float scale = round_block(values, count, integers);
                std::memcpy(scales + column * sizeof scale, &scale, sizeof scale);
            }
            if (is_integer(matrix.dtype)) put_integers(matrix.dtype, integers, count, column, weights, input_bytes);
            else for (size_t k = 0; k < count; ++k) weights[column + k * input_bytes] = static_cast<uint8_t>(integers[k]);
        }
    }
}

}  // namespace

void pack_panel(const PackedMatrix& matrix, const StoredMatrix& stored, size_t panel, uint8_t* memory) {
    if (scaled_inputs(matrix.dtype) != 0) return round_panel(matrix, stored, panel, memory);
    const size_t element = size_of(matrix.dtype), input_bytes = matrix.input_bytes(matrix.band_width(panel));
    uint8_t* const start = memory + matrix.offset(panel, 0);
    for (size_t column = 0; column < PANEL; ++column) {
        const size_t place = matrix.dtype == Dtype::BF16 ? column % 8 * 2 + column / 8 : column;
        const size_t out = panel * PANEL + column;
        uint8_t* const to = start + place * element;
        if (out < matrix.out) copy_output(stored, out, matrix.in, to, input_bytes);
        else for (size_t k = 0; k < matrix.in; ++k) std::memset(to + k * input_bytes, 0, element);
    }
}

}  // namespace rwkv
