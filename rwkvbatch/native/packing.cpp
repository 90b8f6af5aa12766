// Packs rows of a checkpoint into panels, and rounds them to integers. Compiled once for each instruction set.
//
// A panel's columns are rows of the checkpoint, so packing transposes blocks of 16 bytes of a few rows in registers, with whole
// cache lines on both sides. Remainders and other strides are copied element by element.
#include <algorithm>
#include <cstring>

#include "halves.hpp"
#include "kernels.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {
namespace {

constexpr size_t LINE = 64;

// A vector of 16 bytes, with elements of SIZE bytes.
template <size_t SIZE> struct Elements;
template <> struct Elements<1> { typedef uint8_t Vector __attribute__((vector_size(16))); };
template <> struct Elements<2> { typedef uint16_t Vector __attribute__((vector_size(16))); };
template <> struct Elements<4> { typedef uint32_t Vector __attribute__((vector_size(16))); };
using Bytes = Elements<1>::Vector;
using Halves = Elements<2>::Vector;
using Words = Elements<4>::Vector;

#if defined(__clang__)
#define RWKV_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RWKV_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a){__VA_ARGS__})
#endif

// Interleave the elements of the first, or the last, halves of two vectors.
RWKV_INLINE Bytes zip_low(Bytes a, Bytes b) {
    return RWKV_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
RWKV_INLINE Bytes zip_high(Bytes a, Bytes b) {
    return RWKV_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
RWKV_INLINE Halves zip_low(Halves a, Halves b) { return RWKV_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
RWKV_INLINE Halves zip_high(Halves a, Halves b) { return RWKV_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
RWKV_INLINE Words zip_low(Words a, Words b) { return RWKV_SHUFFLE(a, b, 0, 4, 1, 5); }
RWKV_INLINE Words zip_high(Words a, Words b) { return RWKV_SHUFFLE(a, b, 2, 6, 3, 7); }
#undef RWKV_SHUFFLE

// Transpose a square block. Each round moves one bit of an element's index in its row to the row's index.
template <size_t SIZE> RWKV_INLINE void transpose(typename Elements<SIZE>::Vector (&rows)[16 / SIZE]) {
    constexpr size_t COUNT = 16 / SIZE;
    typename Elements<SIZE>::Vector next[COUNT];
    for (size_t round = 1; round < COUNT; round *= 2) {
        for (size_t i = 0; i < COUNT / 2; ++i) {
            next[2 * i] = zip_low(rows[i], rows[i + COUNT / 2]);
            next[2 * i + 1] = zip_high(rows[i], rows[i + COUNT / 2]);
        }
        for (size_t i = 0; i < COUNT; ++i) rows[i] = next[i];
    }
}

// The column of a panel that `widen_bf16` expects at an index.
constexpr size_t column_at(size_t index, Dtype dtype) { return dtype == Dtype::BF16 ? index / 2 + index % 2 * 8 : index; }

// Whether a panel's weights alternate with those of its neighbour in a band of `width` panels, see `PackedMatrix`.
constexpr bool is_paired([[maybe_unused]] size_t panel, [[maybe_unused]] size_t width, [[maybe_unused]] Dtype dtype) {
#if defined(RWKV_ISA_AVX512)
    return dtype == Dtype::BF16 && (panel | 1) < width;
#else
    return false;
#endif
}

// The index at which an output of a band of `width` panels is stored, among the weights for an input.
constexpr size_t index_of(size_t output, size_t width, Dtype dtype) {
    const size_t panel = output / PANEL, column = output % PANEL;
    if (is_paired(panel, width, dtype)) return panel / 2 * 2 * PANEL + 2 * column + panel % 2;
    return dtype == Dtype::BF16 ? panel * PANEL + column % 8 * 2 + column / 8 : output;
}

// Copy the weights of the band's outputs `first` to `last` for the inputs from `begin` on, element by element. Outputs that the
// matrix lacks, from `outputs` on, are zero.
void copy_elements(const PackedMatrix& matrix, const StoredMatrix& rows, size_t width, size_t first, size_t last, size_t outputs,
                   size_t begin, uint8_t* to) {
    const size_t element = size_of(matrix.dtype), input_bytes = matrix.input_bytes(width);
    for (size_t output = first; output < last; ++output) {
        uint8_t* target = to + index_of(output, width, matrix.dtype) * element + begin * input_bytes;
        for (size_t k = begin; k < matrix.in; ++k, target += input_bytes) {
            if (output < outputs) std::memcpy(target, rows.at(output, k), element);
            else std::memset(target, 0, element);
        }
    }
}

// Copy the first `panels`, which are full, of a band of `width`, from rows whose inputs are adjacent; returns the number of inputs
// copied.
template <size_t SIZE>
size_t copy_transposed(const PackedMatrix& matrix, const StoredMatrix& rows, size_t width, size_t panels, uint8_t* to) {
    constexpr size_t COUNT = 16 / SIZE, LINE_INPUTS = LINE / SIZE;
    const size_t input_bytes = matrix.input_bytes(width);
    const uint8_t* from[BAND * PANEL];
    for (size_t output = 0; output < panels * PANEL; ++output) from[index_of(output, width, matrix.dtype)] = rows.at(output, 0);
    size_t begin = 0;
    for (; begin + LINE_INPUTS <= matrix.in; begin += LINE_INPUTS)
        // A whole line of each row at a time: with a power of two as row size, rows evict each other's lines from the cache.
        for (size_t index = 0; index < panels * PANEL; index += COUNT)
            for (size_t k = begin; k < begin + LINE_INPUTS; k += COUNT) {
                typename Elements<SIZE>::Vector block[COUNT];
                for (size_t i = 0; i < COUNT; ++i) std::memcpy(&block[i], from[index + i] + k * SIZE, 16);
                transpose<SIZE>(block);
                uint8_t* const target = to + k * input_bytes + index * SIZE;
                for (size_t i = 0; i < COUNT; ++i) std::memcpy(target + i * input_bytes, &block[i], 16);
            }
    return begin;
}

// Copy the first `panels`, which are full, of a band of `width`, from a matrix whose outputs are adjacent.
void copy_columns(const PackedMatrix& matrix, const StoredMatrix& rows, size_t width, size_t panels, uint8_t* to) {
    const size_t element = size_of(matrix.dtype), input_bytes = matrix.input_bytes(width);
    for (size_t k = 0; k < matrix.in; ++k, to += input_bytes) {
        const uint8_t* const from = rows.at(0, k);
        if (matrix.dtype != Dtype::BF16) {
            std::memcpy(to, from, panels * PANEL * element);
            continue;
        }
        // The halves of a panel, or two panels, alternate.
        for (size_t panel = 0, step; panel < panels; panel += step) {
            step = is_paired(panel, width, matrix.dtype) ? 2 : 1;
            const size_t distance = step * PANEL / 2 * element;
            const uint8_t* part = from + panel * PANEL * element;
            for (uint8_t *target = to + panel * PANEL * element, *end = target + 2 * distance; target < end; target += 32, part += 16) {
                Halves low, high;
                std::memcpy(&low, part, 16);
                std::memcpy(&high, part + distance, 16);
                const Halves first = zip_low(low, high), last = zip_high(low, high);
                std::memcpy(target, &first, 16);
                std::memcpy(target + 16, &last, 16);
            }
        }
    }
}

void copy_band(const PackedMatrix& matrix, const StoredMatrix& rows, size_t band, uint8_t* memory) {
    const size_t element = size_of(matrix.dtype), width = matrix.band_width(band * BAND);
    const size_t outputs = std::min(width * PANEL, matrix.out - band * BAND * PANEL);
    size_t full = outputs / PANEL;
    if (full < width && is_paired(full, width, matrix.dtype)) full = full / 2 * 2;
    uint8_t* const to = memory + matrix.offset(band * BAND, 0);
    size_t done = 0;
    if (rows.in_stride == static_cast<int64_t>(element)) {
        done = element == 2 ? copy_transposed<2>(matrix, rows, width, full, to) : copy_transposed<4>(matrix, rows, width, full, to);
    } else if (rows.out_stride == static_cast<int64_t>(element)) {
        copy_columns(matrix, rows, width, full, to);
        done = matrix.in;
    }
    copy_elements(matrix, rows, width, 0, full * PANEL, outputs, done, to);
    copy_elements(matrix, rows, width, full * PANEL, width * PANEL, outputs, 0, to);
}

// Weights of a panel for some inputs, [input][output].
using Block = float[SCALED_INPUTS][PANEL];

// The scale of an output's weight for `input` in a quantised file.
float scale_at(const StoredMatrix& rows, size_t inputs, size_t out, size_t input) {
    const uint8_t* const scales = rows.at(out, 0) + integer_bytes(rows.dtype, inputs);
    const size_t number = input / scaled_inputs(rows.dtype);
    if (rows.dtype == Dtype::INT4) {
        uint16_t half;
        std::memcpy(&half, scales + number * sizeof half, sizeof half);
        return bf16_to_float(half);
    }
    float scale;
    std::memcpy(&scale, scales + number * sizeof scale, sizeof scale);
    return scale;
}

float weight_at(const StoredMatrix& rows, size_t inputs, size_t out, size_t input) {
    if (rows.dtype == Dtype::INT4) {
        const int integer = rows.at(out, 0)[input / 2] >> input % 2 * 4 & 15;
        return static_cast<float>(integer - 8) * scale_at(rows, inputs, out, input);
    }
    if (rows.dtype == Dtype::W8A8)
        return static_cast<float>(static_cast<int8_t>(rows.at(out, 0)[input])) * scale_at(rows, inputs, out, input);
    if (rows.dtype == Dtype::FP32) {
        float value;
        std::memcpy(&value, rows.at(out, input), sizeof value);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, rows.at(out, input), sizeof half);
    return rows.dtype == Dtype::BF16 ? bf16_to_float(half) : half_to_float(half);
}

// Load `count` inputs from `begin` on of a panel of a quantised file; a byte has IN_BYTE inputs.
template <size_t IN_BYTE>
void load_integers(const StoredMatrix& rows, size_t inputs, size_t begin, size_t count, Block& block) {
    const size_t num_bytes = ceil_div(count, IN_BYTE), group = scaled_inputs(rows.dtype);
    float scale[PANEL] = {};
    for (size_t first = 0; first < num_bytes; first += LANES) {
        Bytes bytes[PANEL] = {};
        for (size_t i = 0; i < PANEL; ++i)
            std::memcpy(&bytes[i], rows.at(i, 0) + begin / IN_BYTE + first, std::min(LANES, num_bytes - first));
        transpose<1>(bytes);
        for (size_t k = first * IN_BYTE; k < std::min(count, (first + LANES) * IN_BYTE); ++k) {
            if (k == 0 || (begin + k) % group == 0)
                for (size_t i = 0; i < PANEL; ++i) scale[i] = scale_at(rows, inputs, i, begin + k);
            Bytes column = bytes[k / IN_BYTE - first];
            if constexpr (IN_BYTE == 2) column = (k % 2 == 0 ? column & 15 : column >> 4) - 8;
            int8_t integers[PANEL];
            std::memcpy(integers, &column, sizeof column);
            store(block[k], widen_int8(integers) * load(scale));
        }
    }
}

// The same for rows whose inputs are adjacent; returns the number of inputs loaded.
template <size_t SIZE> size_t load_transposed(const StoredMatrix& rows, size_t begin, size_t count, Block& block) {
    constexpr size_t COUNT = 16 / SIZE, PARTS = PANEL / COUNT;
    const size_t done = count / COUNT * COUNT;
    for (size_t k = 0; k < done; k += COUNT) {
        typename Elements<SIZE>::Vector parts[PARTS][COUNT];
        for (size_t index = 0; index < PANEL; ++index)
            std::memcpy(&parts[index / COUNT][index % COUNT], rows.at(column_at(index, rows.dtype), begin + k), 16);
        for (auto& part : parts) transpose<SIZE>(part);
        for (size_t i = 0; i < COUNT; ++i) {
            uint8_t column[PANEL * SIZE];
            for (size_t part = 0; part < PARTS; ++part) std::memcpy(column + part * 16, &parts[part][i], 16);
            if constexpr (SIZE == sizeof(float)) {
                std::memcpy(block[k + i], column, sizeof column);
            } else {
                uint16_t halves[PANEL];
                std::memcpy(halves, column, sizeof column);
                store(block[k + i], rows.dtype == Dtype::BF16 ? widen_bf16(halves) : widen_fp16(halves));
            }
        }
    }
    return done;
}

// The same for any rows. The panel has `columns` outputs; the other weights are zero.
void load_block(const StoredMatrix& rows, size_t inputs, size_t columns, size_t begin, size_t count, Block& block) {
    size_t done = 0;
    if (columns == PANEL && rows.dtype == Dtype::INT4) {
        load_integers<2>(rows, inputs, begin, count, block);
        done = count;
    } else if (columns == PANEL && rows.dtype == Dtype::W8A8) {
        load_integers<1>(rows, inputs, begin, count, block);
        done = count;
    } else if (columns == PANEL && rows.in_stride == static_cast<int64_t>(size_of(rows.dtype))) {
        done = rows.dtype == Dtype::FP32 ? load_transposed<sizeof(float)>(rows, begin, count, block)
                                         : load_transposed<sizeof(uint16_t)>(rows, begin, count, block);
    }
    for (size_t k = done; k < count; ++k)
        for (size_t column = 0; column < PANEL; ++column)
            block[k][column] = column < columns ? weight_at(rows, inputs, column, begin + k) : 0.0f;
}

RWKV_INLINE F16 magnitude(F16 x) { return from_bits(bits(x) & set1(0x7fffffffu)); }

constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, halves to even, in the low bits

// Rounds the weights of a block to integers, w / scale clamped to two bounds, or 0 if the scale is 0, and adds `excess`.
struct Rounder {
    const Block& block;
    size_t count;
    F16 scale, least, most;
    uint32_t excess;

    RWKV_INLINE I16 integers(size_t input) const {
        if (input >= count) return set1(excess);
        const F16 magic = set1(MAGIC), shifted = load(block[input]) / scale + magic;
        // A scale that is a small denormal number is inexact, so that the quotient may exceed the bounds.
        const F16 below = select(shifted < magic + most, shifted, magic + most);
        const F16 bounded = select(magic + least < below, below, magic + least);
        return bits(select(zero() < magnitude(scale), bounded, magic)) + set1(excess - 0x4B400000u);
    }
    // The integers of four inputs as bytes.
    RWKV_INLINE I16 quad(size_t input) const {
        return integers(input) + shift_left<8>(integers(input + 1)) + shift_left<16>(integers(input + 2)) +
               shift_left<24>(integers(input + 3));
    }
};

void round_to_int8(Dtype dtype, const Block& block, size_t count, uint8_t* weights, size_t input_bytes, uint8_t* scales) {
    F16 largest = zero();
    for (size_t k = 0; k < count; ++k) largest = greater(magnitude(load(block[k])), largest);
    const F16 scale = largest / set1(127.0f);
    float scale_of[PANEL];
    store(scale_of, scale);
    std::memcpy(scales, scale_of, sizeof scale_of);
    const uint32_t excess = dtype == Dtype::W8A8 ? zero_weight(dtype) : 0;
    const Rounder rounder{block, count, scale, set1(-127.0f), set1(127.0f), excess};
    if (dtype == Dtype::W8A8) {
        for (size_t k = 0; k < count; k += QUAD, weights += input_bytes)
            store(reinterpret_cast<uint32_t*>(weights), rounder.quad(k));
        return;
    }
    for (size_t k = 0; k < count; ++k, weights += input_bytes) {
        uint32_t words[PANEL];
        store(words, rounder.integers(k));
        for (size_t i = 0; i < PANEL; ++i) weights[i] = static_cast<uint8_t>(words[i]);
    }
}

void round_to_int4(const Block& block, size_t count, uint8_t* weights, size_t input_bytes, uint8_t* scales) {
    F16 largest = zero();
    for (size_t k = 0; k < count; ++k) {
        const F16 current = load(block[k]);
        largest = select(magnitude(largest) < magnitude(current), current, largest);
    }
    // Round to the nearest bf16 number, halves to even.
    const I16 exact = bits(largest / set1(-8.0f)), odd = shift_right<16>(exact) & set1(1u);
    const I16 nearest = (exact + set1(0x7fffu) + odd) & set1(0xffff0000u);
    uint32_t words[PANEL];
    store(words, nearest);
    uint16_t scale_of[PANEL];
    for (size_t i = 0; i < PANEL; ++i) scale_of[i] = static_cast<uint16_t>(words[i] >> 16);
    std::memcpy(scales, scale_of, sizeof scale_of);
    const Rounder rounder{block, count, from_bits(nearest), set1(-8.0f), set1(7.0f), static_cast<uint32_t>(zero_weight(Dtype::INT4))};
    for (size_t k = 0; k < count; k += 2 * QUAD, weights += input_bytes)
        store(reinterpret_cast<uint32_t*>(weights), rounder.quad(k) + shift_left<4>(rounder.quad(k + QUAD)));
}

// Convert the quads of four panels to the lines of four inputs. Two more rounds would convert them back.
void lines_of(Bytes (&quads)[BAND], uint8_t* lines) {
    Bytes next[BAND];
    for (size_t round = 0; round < 4; ++round) {
        for (size_t i = 0; i < BAND / 2; ++i) {
            next[2 * i] = zip_low(quads[i], quads[i + BAND / 2]);
            next[2 * i + 1] = zip_high(quads[i], quads[i + BAND / 2]);
        }
        for (size_t i = 0; i < BAND; ++i) quads[i] = next[i];
    }
    for (size_t i = 0; i < QUAD; ++i) std::memcpy(lines + i * INPUT_LINE, &quads[i], sizeof quads[i]);
}

// Pack a band that is stored by input.
void round_by_input(const PackedMatrix& matrix, const StoredMatrix& rows, size_t band, uint8_t* memory) {
    constexpr Dtype DTYPE = Dtype::W8A8;
    alignas(64) Block block;
    alignas(64) uint8_t units[BAND][SCALED_INPUTS * PANEL];
    uint8_t* to = memory + matrix.offset(band * BAND, 0);
    for (size_t begin = 0; begin < matrix.in; begin += SCALED_INPUTS) {
        const size_t count = std::min(SCALED_INPUTS, matrix.in - begin);
        uint8_t* const scales = to + count * INPUT_LINE;
        for (size_t p = 0; p < BAND; ++p) {
            load_block(rows.from(p * PANEL), matrix.in, PANEL, begin, count, block);
            round_to_int8(DTYPE, block, count, units[p], unit_bytes(DTYPE), scales + p * scale_bytes(DTYPE));
        }
        for (size_t k = 0; k < count; k += QUAD)
            for (size_t lane = 0; lane < INPUT_LINE; lane += sizeof(Bytes)) {
                Bytes quads[BAND];
                for (size_t p = 0; p < BAND; ++p) std::memcpy(&quads[p], units[p] + k * PANEL + lane, sizeof(Bytes));
                lines_of(quads, to + k * INPUT_LINE + lane);
            }
        to = scales + BAND_SCALES;
    }
}

void round_band(const PackedMatrix& matrix, const StoredMatrix& rows, size_t band, uint8_t* memory) {
    const Dtype dtype = matrix.dtype;
    const size_t first = band * BAND, panels = matrix.band_width(first), input_bytes = matrix.input_bytes(panels);
    const size_t group = scaled_inputs(dtype);
    alignas(64) Block block;
    for (size_t begin = 0; begin < matrix.in; begin += group) {
        const size_t count = std::min(group, matrix.in - begin);
        for (size_t p = 0; p < panels; ++p) {
            const size_t columns = std::min(PANEL, matrix.out - (first + p) * PANEL);
            load_block(rows.from(p * PANEL), matrix.in, columns, begin, count, block);
            uint8_t* const weights = memory + matrix.offset(first + p, begin);
            if (dtype == Dtype::INT4)
                round_to_int4(block, count, weights, input_bytes, weights + integer_scales_after(dtype, count, input_bytes, p));
            else if (dtype == Dtype::W8A8)
                round_to_int8(dtype, block, count, weights, input_bytes, weights + integer_scales_after(dtype, count, input_bytes, p));
            else
                round_to_int8(dtype, block, count, weights, input_bytes, weights + scales_after(count, input_bytes, p));
        }
    }
}

void pack_band(const PackedMatrix& matrix, const StoredMatrix& rows, size_t band, uint8_t* memory) {
    if (matrix.by_input) round_by_input(matrix, rows, band, memory);
    else if (scaled_inputs(matrix.dtype) != 0) round_band(matrix, rows, band, memory);
    else copy_band(matrix, rows, band, memory);
}

template <class Word> bool none_is(const uint8_t* numbers, size_t count, Word exponent) {
    constexpr size_t CHUNK = 1024;  // numbers between two checks of the result
    Word found = 0;
    for (size_t begin = 0; begin < count && found == 0; begin += CHUNK)
        for (size_t i = begin; i < std::min(begin + CHUNK, count); ++i) {
            Word word;
            std::memcpy(&word, numbers + i * sizeof word, sizeof word);
            found |= static_cast<Word>((word & exponent) == exponent);
        }
    return found == 0;
}

// Whether all numbers are finite.
bool are_finite(const uint8_t* numbers, Dtype dtype, size_t count) {
    if (dtype == Dtype::FP32) return none_is<uint32_t>(numbers, count, 0x7f800000u);
    return none_is<uint16_t>(numbers, count, dtype == Dtype::BF16 ? 0x7f80 : 0x7c00);
}

// Whether all weights of rows without gaps are certainly finite.
bool rows_are_finite(const StoredMatrix& rows, size_t inputs, size_t count) {
    if (!is_integer(rows.dtype)) return are_finite(rows.data, rows.dtype, inputs * count);
    const size_t element = rows.dtype == Dtype::INT4 ? sizeof(uint16_t) : sizeof(float);
    for (size_t row = 0; row < count; ++row) {
        const uint8_t* const scales = rows.at(row, 0) + integer_bytes(rows.dtype, inputs);
        for (size_t g = 0; g < ceil_div(inputs, scaled_inputs(rows.dtype)); ++g) {
            uint32_t word = 0;
            std::memcpy(reinterpret_cast<uint8_t*>(&word) + sizeof word - element, scales + g * element, element);
            if ((word & 0x7fffffffu) >= 0x7b800000u) return false;  // 2^120: below it, products of scales and integers are finite
        }
    }
    return true;
}

constexpr PackingKernels KERNELS = {pack_band, are_finite, rows_are_finite};

}  // namespace
}  // namespace RWKV_ISA

#if defined(RWKV_ISA_AVX512)
const PackingKernels* avx512_packing_kernels() { return &avx512::KERNELS; }
#elif defined(RWKV_ISA_AVX2)
const PackingKernels* avx2_packing_kernels() { return &avx2::KERNELS; }
#elif defined(RWKV_ISA_NEON)
const PackingKernels* neon_packing_kernels() { return &neon::KERNELS; }
#else
const PackingKernels* portable_packing_kernels() { return &portable::KERNELS; }
#endif

}  // namespace rwkv
