// Linear layers with W8A8 weights stored by input (`PackedMatrix`): for few rows, only the weights of nonzero inputs are read.
//
// A zero input adds nothing to a group's sum, and the sum is exact in any order, so the bits are those of reading all weights.
// The nonzero inputs of a group are gathered into quads of four. For more rows, each block of weights is first rearranged into
// the order of `integer_tile.hpp`.
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

// Whether memory limits the layer, and not arithmetic.
#if defined(RWKV_ISA_AVX2) && !defined(RWKV_VNNI)
constexpr bool memory_bound(size_t rows) { return rows == 1; }
#else
constexpr bool memory_bound(size_t) { return true; }
#endif

// Lines at random places are read more slowly than all lines in order, which the processor itself prefetches. So some are skipped if
// at most this many inputs are needed.
constexpr size_t max_gathered(size_t in, size_t rows) { return memory_bound(rows) ? in / 2 : in - 1; }

// The weight lines of gathered inputs. Prefetch distances are in lines, and in groups for scales.
struct ListedLines {
    static constexpr size_t AHEAD = MAX_SPARSE_AHEAD, SCALES_AHEAD = 2;
    const uint8_t* weights;   // of the band
    const uint32_t* offsets;  // from there, in bytes

    RWKV_INLINE const uint8_t* operator[](size_t i) const { return weights + offsets[i]; }
    RWKV_INLINE void advance() { offsets += QUAD; }
};

// The weight lines of all inputs, prefetched `DISTANCE` lines ahead.
template <size_t DISTANCE> struct LinesInOrder {
    static constexpr size_t AHEAD = DISTANCE;
    const uint8_t* line;

    RWKV_INLINE const uint8_t* operator[](size_t i) const { return line + i * INPUT_LINE; }
    RWKV_INLINE void advance() { line += QUAD * INPUT_LINE; }
};

// Convert the lines of four inputs to the quads of four panels.
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

// The weights of a block in the order for tiles: the packed weights themselves or, if stored by input, a rearranged copy.
class TileWeights {
public:
    explicit TileWeights(const PackedMatrix& weight) : weight_(weight) {}

    // The panels of a band must be requested in order, starting with the first: that call rearranges the band.
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
    static constexpr size_t BLOCK = integer_block(true);
    alignas(64) uint8_t units_[BLOCK * INPUT_LINE + BLOCK / SCALED_INPUTS * BAND_SCALES];
};

// Read and write an input in quads, in the order of `store_inputs`.
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

// Reverse the low `bits` bits of a number. The inputs of a group are listed in the order of their reversed numbers: in ascending order,
// the processor takes the lines for a sequence and prefetches skipped ones too.
constexpr size_t reversed(size_t number, size_t bits) {
    return bits == 0 ? 0 : (number & 1) << (bits - 1) | reversed(number >> 1, bits - 1);
}
constexpr size_t GROUP_BITS = 7;
static_assert(size_t{1} << GROUP_BITS == SCALED_INPUTS);

// Gather the rounded inputs that are nonzero in at least one row into `to`. Returns their number, or that of all inputs if there
// are more than `max_gathered`: then all are to be read in order.
inline size_t gather(const QuantizedRows& rows, const SparseQuads& to) {
    size_t number = 0, count = 0;
    for (size_t begin = 0, offset = 0; begin < rows.in; begin += SCALED_INPUTS, offset += BAND_SCALES) {
        const size_t before = number, inputs = std::min(SCALED_INPUTS, rows.in - begin);
#if defined(RWKV_ISA_AVX512) && defined(RWKV_VNNI)
        // A group is sixteen words of eight inputs. Each step takes one input of each word, the words in reversed order.
        constexpr size_t NUM_WORDS = 16, WORD_INPUTS = 8, HALF = SCALED_INPUTS / 2;
        static_assert(NUM_WORDS * WORD_INPUTS == SCALED_INPUTS);
        const __m128i words = _mm_setr_epi8(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
        const __m512i word_offsets = _mm512_mullo_epi32(_mm512_cvtepi8_epi32(words), _mm512_set1_epi32(WORD_INPUTS * INPUT_LINE));
        const auto first_bits = [](size_t count) { return count < HALF ? (uint64_t{1} << count) - 1 : ~uint64_t{0}; };
        const __mmask64 low = first_bits(inputs), high = inputs > HALF ? first_bits(inputs - HALF) : 0;
        for (size_t i = 0; i < WORD_INPUTS; ++i) {
            const size_t input = reversed(i, 3);
            __mmask16 needed = 0;
            __m128i values[MAX_SPARSE_ROWS];
            for (size_t row = 0; row < rows.num_rows; ++row) {
                const uint8_t* const from = rows.quads + row * rows.stride + begin;
                const auto bytes = [&](__mmask64 mask, const uint8_t* at) __attribute__((always_inline)) {
                    const __m512i loaded = _mm512_maskz_loadu_epi8(mask, at);
                    return _mm512_cvtepi64_epi8(_mm512_srl_epi64(loaded, _mm_cvtsi32_si128(static_cast<int>(input * 8))));
                };
                values[row] = _mm_shuffle_epi8(_mm_unpacklo_epi64(bytes(low, from), bytes(high, from + HALF)), words);
                needed |= _mm_test_epi8_mask(values[row], values[row]);
            }
            const __m512i offsets = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(offset + input * INPUT_LINE)), word_offsets);
            _mm512_storeu_si512(to.offsets + number, _mm512_maskz_compress_epi32(needed, offsets));
            for (size_t row = 0; row < rows.num_rows; ++row)
                store_inputs<Dtype::W8A8>(to.quads + row * to.stride + number, {_mm512_maskz_compress_epi32(needed, _mm512_cvtepi8_epi32(values[row]))});
            number += static_cast<size_t>(__builtin_popcount(needed));
        }
#else
        for (size_t i = 0; i < SCALED_INPUTS; ++i) {
            const size_t k = reversed(i, GROUP_BITS);
            if (k >= inputs) continue;
            bool needed = false;
            for (size_t row = 0; row < rows.num_rows; ++row) {
                const int32_t input = input_at(rows.quads + row * rows.stride, begin + k);
                put_input(to.quads + row * to.stride, number, input);
                needed |= input != 0;
            }
            to.offsets[number] = static_cast<uint32_t>(offset + k * INPUT_LINE);
            number += needed;
        }
#endif
        offset += inputs * INPUT_LINE;
        count += number - before;
        for (; number % QUAD != 0; ++number) {
            to.offsets[number] = to.offsets[number - 1];
            for (size_t row = 0; row < rows.num_rows; ++row) put_input(to.quads + row * to.stride, number, 0);
        }
        to.group_ends[begin / SCALED_INPUTS] = static_cast<uint32_t>(number / QUAD);
    }
    // After the last offset follow those of the next band, for prefetching.
    const size_t band = rows.in * INPUT_LINE + ceil_div(rows.in, SCALED_INPUTS) * BAND_SCALES;
    for (size_t i = 0; i < MAX_SPARSE_AHEAD; ++i)
        to.offsets[number + i] = static_cast<uint32_t>(band + (i < number ? to.offsets[i] : 0));
    return count > max_gathered(rows.in, rows.num_rows) ? rows.in : count;
}

// The sums of a group, for a few rows and the panels of a band. `add` adds the products of `quads` quads of inputs `x` and `lines`.
#if defined(RWKV_ISA_AVX2) && !defined(RWKV_VNNI)

// With more than one row, the two halves of the lines are processed one after the other, since the sums of whole lines do not fit
// into the registers. A product uses two of four inputs, the first and the third or the other two: their bytes are interleaved, and
// then interleaved with zeros.
template <size_t ROWS> struct BandSums {
    static constexpr size_t HALVES = ROWS == 1 ? 2 : 1, HALF_LINE = INPUT_LINE / 2;
    __m256i sum[ROWS][BAND][2];

    RWKV_INLINE void start(const InputGroup* rows) {
        for (size_t i = 0; i < ROWS; ++i)
            for (size_t p = 0; p < BAND; ++p) sum[i][p][0] = sum[i][p][1] = _mm256_set1_epi32(rows[i].start);
    }
    template <class Lines> RWKV_INLINE void add(const Lines& lines, const uint8_t* x, size_t stride, size_t quads) {
        add_halves<0>(lines, x, stride, quads);
        if constexpr (HALVES == 1) add_halves<1>(lines, x, stride, quads);
    }
    RWKV_INLINE I16 operator()(size_t i, size_t p) const { return {sum[i][p][0], sum[i][p][1]}; }

private:
    template <size_t FIRST, class Lines> RWKV_INLINE void add_halves(Lines lines, const uint8_t* x, size_t stride, size_t quads) {
        __m256i sums[ROWS][BAND][HALVES];
        each_sum([&](size_t i, size_t p, size_t h) __attribute__((always_inline)) { sums[i][p][h] = sum[i][p][FIRST + h]; });
        for (size_t quad = 0; quad < quads; ++quad, lines.advance(), x += QUAD_BYTES<Dtype::W8A8>) {
            if constexpr (FIRST == 0)
                for (size_t i = 0; i < QUAD; ++i) __builtin_prefetch(lines[i + Lines::AHEAD], 0, 2);
#pragma GCC unroll 2
            for (size_t part = 0; part < NUM_PARTS<Dtype::W8A8>; ++part)
#pragma GCC unroll 2
                for (size_t h = 0; h < HALVES; ++h) {
                    const auto half_line = [&](size_t i) __attribute__((always_inline)) {
                        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines[i] + (FIRST + h) * HALF_LINE));
                    };
                    const __m256i first = half_line(part), second = half_line(part + 2), none = _mm256_setzero_si256();
                    const __m256i low = _mm256_unpacklo_epi8(first, second), high = _mm256_unpackhi_epi8(first, second);
                    const __m256i pairs[BAND] = {_mm256_unpacklo_epi8(low, none), _mm256_unpackhi_epi8(low, none),
                                                 _mm256_unpacklo_epi8(high, none), _mm256_unpackhi_epi8(high, none)};
#pragma GCC unroll 3
                    for (size_t i = 0; i < ROWS; ++i) {
                        const I16 row = load_inputs<Dtype::W8A8>(x + i * stride + part * WORD);
#pragma GCC unroll 4
                        for (size_t p = 0; p < BAND; ++p) add_products<Dtype::W8A8>(sums[i][p][h], pairs[p], row.a);
                    }
                }
        }
        each_sum([&](size_t i, size_t p, size_t h) __attribute__((always_inline)) { sum[i][p][FIRST + h] = sums[i][p][h]; });
    }
    template <class Do> RWKV_INLINE static void each_sum(const Do& with) {
#pragma GCC unroll 3
        for (size_t i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (size_t p = 0; p < BAND; ++p)
#pragma GCC unroll 2
                for (size_t h = 0; h < HALVES; ++h) with(i, p, h);
    }
};

#else

template <size_t ROWS> struct BandSums {
    I16 sum[ROWS][BAND];

    RWKV_INLINE void start(const InputGroup* rows) {
        unrolled<ROWS>([&](auto i) RWKV_UNROLLED {
            const I16 first = set1(static_cast<uint32_t>(rows[i].start));
            unrolled<BAND>([&](auto p) RWKV_UNROLLED { sum[i][p] = first; });
        });
    }
    template <class Lines> RWKV_INLINE void add(Lines lines, const uint8_t* x, size_t stride, size_t quads) {
        for (size_t quad = 0; quad < quads; ++quad, lines.advance(), x += QUAD_BYTES<Dtype::W8A8>) {
            I16 weights[QUAD];
            unrolled<QUAD>([&](auto i) RWKV_UNROLLED {
                __builtin_prefetch(lines[i + Lines::AHEAD], 0, 2);
                weights[i] = load_line(lines[i]);
            });
            quads_of(weights);
            unrolled<ROWS>([&](auto i) RWKV_UNROLLED {
                const UnitInputs<Dtype::W8A8> row(x + i * stride);
                unrolled<BAND>([&](auto p) RWKV_UNROLLED { row.add_products_to(sum[i][p], weights[p]); });
            });
        }
    }
    RWKV_INLINE I16 operator()(size_t i, size_t p) const { return sum[i][p]; }
};

#endif

// Compute bands for a few rows. If `job.sparse` has gathered inputs, `job.x` are these, otherwise all.
template <size_t ROWS> void linear_by_input(const LinearJob& job, size_t first_panel, size_t end_panel, float* sums) {
    constexpr Dtype DTYPE = Dtype::W8A8;
    const PackedMatrix& weight = job.weight;
    const uint8_t* const x = reinterpret_cast<const uint8_t*>(job.x.data);
    const size_t stride = job.x.stride * sizeof(float);
    const uint32_t *const offsets = job.sparse.offsets, *const group_ends = job.sparse.block_ends;
    for (size_t panel = first_panel; panel < end_panel; panel += BAND) {
        const uint8_t *const band = weight.at(panel, 0), *lines = band;
        for (size_t i = 0; i < ROWS * BAND; ++i) store(sums + i * PANEL, zero());
        for (size_t begin = 0, quad = 0; begin < weight.in; begin += SCALED_INPUTS) {
            const InputGroup* const rows = job.groups + begin / SCALED_INPUTS * job.num_rows;
            const size_t inputs = std::min(SCALED_INPUTS, weight.in - begin);
            const size_t end = offsets == nullptr ? quad + inputs / QUAD : group_ends[begin / SCALED_INPUTS];
            const uint8_t *const quads = x + quad * QUAD_BYTES<DTYPE>, *const scales = lines + inputs * INPUT_LINE;
            BandSums<ROWS> group;
            group.start(rows);
            if (offsets == nullptr) {
                if (job.prefetch) group.add(LinesInOrder<AHEAD / INPUT_LINE>{lines}, quads, stride, end - quad);
                else group.add(LinesInOrder<memory_bound(ROWS) ? 12 : 48>{lines}, quads, stride, end - quad);
            } else {
                for (size_t line = 0; line < BAND_SCALES; line += LINE)
                    __builtin_prefetch(scales + ListedLines::SCALES_AHEAD * (SCALED_INPUTS * INPUT_LINE + BAND_SCALES) + line, 0, 2);
                group.add(ListedLines{band, offsets + quad * QUAD}, quads, stride, end - quad);
            }
            add_to_totals<DTYPE, ROWS, BAND>(sums, rows, scales, group);
            lines = scales + BAND_SCALES;
            quad = end;
        }
        finish_tile(job, 0, ROWS, panel, BAND, {sums, BAND * PANEL, PANEL});
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
