// W8A8 weights that lie by input (`PackedMatrix`): few rows read only those whose rounded inputs are not zero.
//
// What a zero would add to a group's sum is nothing, and the sum is exact in any order, so the bits are those of reading all. The
// inputs of a group that are needed are taken in fours, as quads of their own. For more rows a block of weights is put into the
// order of `integer_tile.hpp` first.
#pragma once

#include <algorithm>
#include <cstring>

#include "integer_tile.hpp"
#include "kernels.hpp"
#include "linear.hpp"
#include "quads.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// How many lines before they are needed weights are asked for.
constexpr size_t LINES_AHEAD = 48;
static_assert(LINES_AHEAD <= MAX_SPARSE_AHEAD);

// The quads of four panels from the lines of four inputs.
RWKV_INLINE void quads_of(I16 (&lines)[QUAD]) {
    for (size_t round = 0; round < 2; ++round) {
        const I16 first = zip_low(lines[0], lines[2]), second = zip_high(lines[0], lines[2]);
        const I16 third = zip_low(lines[1], lines[3]), fourth = zip_high(lines[1], lines[3]);
        lines[0] = first;
        lines[1] = second;
        lines[2] = third;
        lines[3] = fourth;
    }
}

RWKV_INLINE I16 load_line(const uint8_t* from) { return load(reinterpret_cast<const uint32_t*>(from)); }

// A block of weights as tiles take them: where they are packed or, lying by input, in memory of its own.
class TileWeights {
public:
    explicit TileWeights(const PackedMatrix& weight) : weight_(weight) {}

    // The panels of a band are to be asked for one after the other, the first of them first.
    const uint8_t* at(size_t panel, size_t begin, size_t end) {
        if (!weight_.by_input) return weight_.at(panel, begin);
        if (panel % BAND == 0) arrange(weight_.at(panel, begin), end - begin);
        return units_ + panel % BAND * unit_bytes(Dtype::W8A8);
    }

private:
    void arrange(const uint8_t* from, size_t inputs) {
        uint8_t* to = units_;
        for (size_t begin = 0; begin < inputs; begin += SCALED_INPUTS) {
            for (const uint8_t* const end = from + std::min(SCALED_INPUTS, inputs - begin) * INPUT_LINE; from < end;) {
                I16 lines[QUAD];
                for (size_t i = 0; i < QUAD; ++i, from += INPUT_LINE) lines[i] = load_line(from);
                quads_of(lines);
                for (size_t p = 0; p < BAND; ++p, to += unit_bytes(Dtype::W8A8)) store(reinterpret_cast<uint32_t*>(to), lines[p]);
            }
            std::memcpy(to, from, BAND_SCALES);
            from += BAND_SCALES;
            to += BAND_SCALES;
        }
    }

    const PackedMatrix& weight_;
    alignas(64) uint8_t units_[INTEGER_BLOCK * INPUT_LINE + INTEGER_BLOCK / SCALED_INPUTS * BAND_SCALES];
};

// The place of an input in a quad, as `store_inputs` lays it down.
[[maybe_unused]] RWKV_INLINE int32_t input_at(const uint8_t* quads, size_t k) {
    if constexpr (QUAD_BYTES<Dtype::W8A8> == QUAD) return static_cast<int8_t>(quads[k]);
    int16_t input;
    std::memcpy(&input, quads + (k / QUAD * QUAD + (0x3120u >> k % QUAD * 4 & 15u)) * sizeof input, sizeof input);
    return input;
}
RWKV_INLINE void put_input(uint8_t* quads, size_t k, int32_t value) {
    if constexpr (QUAD_BYTES<Dtype::W8A8> == QUAD) {
        quads[k] = static_cast<uint8_t>(value);
    } else {
        const int16_t input = static_cast<int16_t>(value);
        std::memcpy(quads + (k / QUAD * QUAD + (0x3120u >> k % QUAD * 4 & 15u)) * sizeof input, &input, sizeof input);
    }
}

// The inputs of rounded rows that are not zero in all of them, or all: see `SparseQuads`. Returns their number.
inline size_t gather(const QuantizedRows& rows, bool all, const SparseQuads& to) {
    size_t number = 0, count = 0;
    for (size_t begin = 0, line = 0; begin < rows.in; begin += SCALED_INPUTS, line += BAND_SCALES / INPUT_LINE) {
        const size_t before = number;
#if defined(RWKV_ISA_AVX512) && defined(RWKV_VNNI)
        const size_t end = std::min(begin + SCALED_INPUTS, rows.in);
        for (size_t k = begin; k < end; k += LANES) {
            const __mmask16 there = end - k >= LANES ? 0xffff : first_lanes(end - k);
            __mmask16 needed = all ? there : 0;
            __m128i inputs[MAX_SPARSE_ROWS];
            for (size_t row = 0; row < rows.num_rows; ++row) {
                inputs[row] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.quads + row * rows.stride + k));
                needed |= _mm_test_epi8_mask(inputs[row], inputs[row]);
            }
            const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            const __m512i lines = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(line + k - begin)), numbers);
            _mm512_storeu_si512(to.lines + number, _mm512_maskz_compress_epi32(needed, lines));
            for (size_t row = 0; row < rows.num_rows; ++row)
                store_inputs<Dtype::W8A8>(to.quads + row * to.stride + number, {_mm512_maskz_compress_epi32(needed, _mm512_cvtepi8_epi32(inputs[row]))});
            number += static_cast<size_t>(__builtin_popcount(needed));
        }
        line += end - begin;
#else
        for (size_t k = begin; k < std::min(begin + SCALED_INPUTS, rows.in); ++k, ++line) {
            bool needed = all;
            for (size_t row = 0; row < rows.num_rows; ++row) {
                const int32_t input = input_at(rows.quads + row * rows.stride, k);
                put_input(to.quads + row * to.stride, number, input);
                needed |= input != 0;
            }
            to.lines[number] = static_cast<uint32_t>(line);
            number += needed;
        }
#endif
        count += number - before;
        for (; number % QUAD != 0; ++number) {
            to.lines[number] = to.lines[number - 1];
            for (size_t row = 0; row < rows.num_rows; ++row) put_input(to.quads + row * to.stride, number, 0);
        }
        to.group_ends[begin / SCALED_INPUTS] = static_cast<uint32_t>(number / QUAD);
    }
    // Behind the last come those of the next band.
    const size_t band = rows.in + ceil_div(rows.in, SCALED_INPUTS) * BAND_SCALES / INPUT_LINE;
    for (size_t i = 0; i < MAX_SPARSE_AHEAD; ++i) to.lines[number + i] = static_cast<uint32_t>(band + (i < number ? to.lines[i] : 0));
    return count;
}

// Bands of a few rows, whose gathered inputs are `job.sparse`.
template <size_t ROWS> void linear_by_input(const LinearJob& job, size_t first_panel, size_t end_panel, float* sums) {
    constexpr Dtype DTYPE = Dtype::W8A8;
    const PackedMatrix& weight = job.weight;
    const uint8_t* const x = reinterpret_cast<const uint8_t*>(job.x.data);
    const size_t stride = job.x.stride * sizeof(float);
    const uint32_t *const lines = job.sparse.places, *const group_ends = job.sparse.block_ends;
    for (size_t panel = first_panel; panel < end_panel; panel += BAND) {
        const uint8_t *const weights = weight.at(panel, 0), *scales = weights;
        for (size_t i = 0; i < ROWS * BAND; ++i) store(sums + i * PANEL, zero());
        for (size_t begin = 0, quad = 0; begin < weight.in; begin += SCALED_INPUTS) {
            const InputGroup* const rows = job.groups + begin / SCALED_INPUTS * job.num_rows;
            scales += std::min(SCALED_INPUTS, weight.in - begin) * INPUT_LINE;
            I16 sum[ROWS][BAND];
            for (size_t i = 0; i < ROWS; ++i)
                for (size_t p = 0; p < BAND; ++p) sum[i][p] = set1(static_cast<uint32_t>(rows[i].start));
            for (const size_t end = group_ends[begin / SCALED_INPUTS]; quad < end; ++quad) {
                I16 quads[QUAD];
                for (size_t i = 0; i < QUAD; ++i) {
                    __builtin_prefetch(weights + lines[quad * QUAD + i + LINES_AHEAD] * INPUT_LINE, 0, 2);
                    quads[i] = load_line(weights + lines[quad * QUAD + i] * INPUT_LINE);
                }
                quads_of(quads);
                for (size_t i = 0; i < ROWS; ++i) {
                    const UnitInputs<DTYPE> row(x + i * stride + quad * QUAD_BYTES<DTYPE>);
                    for (size_t p = 0; p < BAND; ++p) row.add_products_to(sum[i][p], quads[p]);
                }
            }
            add_to_totals<DTYPE, ROWS, BAND>(sums, rows, scales, [&](size_t i, size_t p) __attribute__((always_inline)) { return sum[i][p]; });
            scales += BAND_SCALES;
        }
        finish_tile(job, 0, ROWS, panel, BAND, sums);
    }
}

inline void linear_by_input(const LinearJob& job, size_t first_panel, size_t end_panel, float* sums) {
    switch (job.num_rows) {
        case 1: return linear_by_input<1>(job, first_panel, end_panel, sums);
        case 2: return linear_by_input<2>(job, first_panel, end_panel, sums);
        default: return linear_by_input<MAX_SPARSE_ROWS>(job, first_panel, end_panel, sums);
    }
}

}  // namespace RWKV_ISA
}  // namespace rwkv
