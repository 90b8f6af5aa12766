// Linear layers of integers: weights of 8 or 4 bits times inputs rounded to 8 bits, summed exactly in 32 bits.
//
// Inputs are rounded per row and group (`quantize_row`), each row from itself alone. With q the integers of a group, s a
// weight's scale and t the row's scale of that group, an output is
//
//     total = 0;  for each group, first to last: total = fma(float(sum q_w q_x), s t, total)
//
// and the same end of the layer as ever. A group's sum is below 2^24 (128 x 127 x 127), so it is exact in any order, also
// as a float; all else is one sequence of IEEE operations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "linear.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// A quad: four inputs. Its weights for 16 outputs, its inputs of a row, and the sum of their products.
//
// Weights are unsigned bytes (`zero_weight` more than they are), inputs signed: what `vpdpbusd` multiplies, without
// saturation. The excess, zero times the sum of a group's inputs, is taken off where a sum begins. Without that instruction
// the bytes are widened to 16 bits for `vpmaddwd`: `vpmaddubsw` would saturate.
#if defined(RWKV_VNNI)

constexpr size_t QUAD_BYTES = 4;
struct QuadWeights { I16 bytes; };
struct QuadInputs { I16 bytes; };

RWKV_INLINE QuadWeights split_quad(I16 bytes) { return {bytes}; }
RWKV_INLINE QuadInputs load_inputs(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return {set1(word)};
}
#if defined(RWKV_ISA_AVX512)
RWKV_INLINE I16 add_products(I16 sum, QuadWeights w, QuadInputs x) {
    // As assembly, since GCC 12 copies the sums of a tile around the intrinsic.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.bytes.v), "v"(x.bytes.v));
    return sum;
}
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(integers.v));
}
#else
RWKV_INLINE I16 add_products(I16 sum, QuadWeights w, QuadInputs x) {
    return {_mm256_dpbusd_avx_epi32(sum.a, w.bytes.a, x.bytes.a), _mm256_dpbusd_avx_epi32(sum.b, w.bytes.b, x.bytes.b)};
}
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers.a, integers.b), 0xD8);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
}
#endif

#else

// Inputs as 16 bits in the order 0, 2, 1, 3, the even ones and the odd ones together.
constexpr size_t QUAD_BYTES = 8;
struct QuadWeights { I16 even, odd; };
struct QuadInputs { I16 even, odd; };

RWKV_INLINE QuadWeights split_quad(I16 bytes) {
    const I16 low = set1(0x00ff00ffu);
    return {bytes & low, shift_right<8>(bytes) & low};
}
RWKV_INLINE QuadInputs load_inputs(const uint8_t* from) {
    uint32_t words[2];
    std::memcpy(words, from, sizeof words);
    return {set1(words[0]), set1(words[1])};
}
#if defined(RWKV_ISA_AVX512)
RWKV_INLINE I16 pairs(I16 w, I16 x) { return {_mm512_madd_epi16(w.v, x.v)}; }
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const __m256i words = _mm512_cvtepi32_epi16(integers.v);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
}
#elif defined(RWKV_ISA_AVX2)
RWKV_INLINE I16 pairs(I16 w, I16 x) { return {_mm256_madd_epi16(w.a, x.a), _mm256_madd_epi16(w.b, x.b)}; }
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers.a, integers.b), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8));
}
#else
RWKV_INLINE I16 pairs(I16 w, I16 x) {
    I16 r;
    for (size_t i = 0; i < LANES; ++i) {
        const int32_t low = static_cast<int16_t>(w.v[i] & 0xffffu) * static_cast<int16_t>(x.v[i] & 0xffffu);
        const int32_t high = static_cast<int16_t>(w.v[i] >> 16) * static_cast<int16_t>(x.v[i] >> 16);
        r.v[i] = static_cast<uint32_t>(low + high);
    }
    return r;
}
RWKV_INLINE void store_inputs(uint8_t* to, I16 integers) {
    int16_t words[LANES];
    constexpr size_t ORDER[QUAD] = {0, 2, 1, 3};
    for (size_t i = 0; i < LANES; ++i) words[i] = static_cast<int16_t>(integers.v[i / QUAD * QUAD + ORDER[i % QUAD]]);
    std::memcpy(to, words, sizeof words);
}
#endif
RWKV_INLINE I16 add_products(I16 sum, QuadWeights w, QuadInputs x) {
    return sum + pairs(w.even, x.even) + pairs(w.odd, x.odd);
}

#endif

static_assert(QUAD_BYTES <= MAX_QUAD_BYTES);

// Of one row and group of inputs: what its integers are multiplied by, and what every sum of their products begins with.
struct InputGroup {
    float scale;
    int32_t start;
};
static_assert(sizeof(InputGroup) == INPUT_GROUP_BYTES);

// Rounds one row of inputs for weights of `dtype`: its groups' scales and starts, then its quads.
//
// A group's scale is max |x| / 127, its integers are round(x (1 / scale)), halves to even. A group whose inputs are all below
// 2^-100 is zeros; one with an input that is not finite has NaN as its scale, and so has every output. `quantized` in
// model/ops/reference.py is the reference implementation.
inline void quantize_row(const float* x, size_t in, Dtype dtype, uint8_t* to) {
    const size_t group = scaled_inputs(dtype);
    uint8_t* quads = to + input_groups_bytes(in, dtype);
    const F16 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    for (size_t begin = 0; begin < in; begin += group, to += sizeof(InputGroup)) {
        const size_t end = std::min(begin + group, in);
        F16 largest = zero(), not_finite = zero();
        for (size_t k = begin; k < end; k += LANES) {
            const F16 values = load_upto(x + k, end - k);
            largest = greater(from_bits(bits(values) & set1(0x7fffffffu)), largest);
            not_finite = fma(values, zero(), not_finite);
        }
        float lanes[LANES], most = 0.0f;
        store(lanes, largest);
        for (const float lane : lanes) most = std::max(most, lane);
        const float nan = sum_lanes(not_finite);
        InputGroup record{most / 127.0f, 0};
        if (nan != 0.0f || most < 7.888609052210118e-31f) {  // 2^-100
            record.scale = nan;  // or zero
            std::memset(quads, 0, ceil_div(end - begin, LANES) * LANES / QUAD * QUAD_BYTES);
            quads += ceil_div(end - begin, LANES) * LANES / QUAD * QUAD_BYTES;
        } else {
            const F16 inverse = set1(1.0f / record.scale);
            F16 sum = zero();
            for (size_t k = begin; k < end; k += LANES) {
                const F16 shifted = load_upto(x + k, end - k) * inverse + magic;
                sum = sum + (shifted - magic);
                // The low bits hold the integer in two's complement: as 32 bits, with the sign carried up.
                store_inputs(quads, bits(shifted) + set1(0u - 0x4B400000u));
                quads += LANES / QUAD * QUAD_BYTES;
            }
            record.start = -zero_weight(dtype) * static_cast<int32_t>(sum_lanes(sum));
        }
        std::memcpy(to, &record, sizeof record);
    }
}

inline void quantize(const QuantizeJob& job, size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row)
        quantize_row(job.x.data + row * job.x.stride, job.width, job.dtype,
                     reinterpret_cast<uint8_t*>(job.out.data + row * job.out.stride));
}

#if defined(RWKV_ISA_AVX512) && defined(RWKV_VNNI)
constexpr size_t MAX_INTEGER_ROWS = 6, INTEGER_PANELS = 4;
#elif defined(RWKV_ISA_AVX512)
constexpr size_t MAX_INTEGER_ROWS = 4, INTEGER_PANELS = 4;
#elif defined(RWKV_VNNI)
constexpr size_t MAX_INTEGER_ROWS = 6, INTEGER_PANELS = 1;
#else
constexpr size_t MAX_INTEGER_ROWS = 4, INTEGER_PANELS = 1;
#endif

// Inputs in a block that several tiles share.
constexpr size_t INTEGER_BLOCK = 256;
static_assert(INTEGER_BLOCK % SCALED_INPUTS == 0);

// Rounded inputs of some rows: of the first, its records and its quads.
struct QuantizedRows {
    const uint8_t *groups, *quads;
    size_t stride;  // bytes

    RWKV_INLINE InputGroup group(size_t row, size_t number) const {
        InputGroup record;
        std::memcpy(&record, groups + row * stride + number * sizeof record, sizeof record);
        return record;
    }
};

// One register tile's work on one block of inputs.
struct IntegerTile {
    QuantizedRows x;
    size_t begin, end;       // inputs
    const uint8_t* weights;  // of the first of them, as W8A8
    size_t quad_bytes;       // from one quad to the next; a group's scales in fp32 follow its quads
    float* sums;             // [panel][row][16]
    size_t panel_sums;       // distance between panels there
    const uint8_t* ahead;    // weights to ask the memory for meanwhile,
    size_t ahead_step;       // bytes for each quad
};

template <size_t GROUP, size_t ROWS, size_t PANELS> void integer_tile(const IntegerTile& tile) {
    const uint8_t *weights = tile.weights, *ahead = tile.ahead;
    const size_t quad_bytes = tile.quad_bytes, stride = tile.x.stride;
    for (size_t begin = tile.begin, end; begin < tile.end; begin = end) {
        end = std::min(begin + GROUP, tile.end);
        I16 sum[ROWS][PANELS];
        for (size_t i = 0; i < ROWS; ++i) {
            const I16 start = set1(static_cast<uint32_t>(tile.x.group(i, begin / GROUP).start));
            for (size_t p = 0; p < PANELS; ++p) sum[i][p] = start;
        }
        const uint8_t* x = tile.x.quads + begin / QUAD * QUAD_BYTES;
        for (size_t k = begin; k < end; k += QUAD, weights += quad_bytes, x += QUAD_BYTES, ahead += tile.ahead_step) {
            for (size_t byte = 0; byte < tile.ahead_step; byte += LINE) __builtin_prefetch(ahead + byte, 0, 2);
            QuadWeights weight[PANELS];
            for (size_t p = 0; p < PANELS; ++p)
                weight[p] = split_quad(load(reinterpret_cast<const uint32_t*>(weights) + p * PANEL));
            for (size_t i = 0; i < ROWS; ++i) {
                const QuadInputs inputs = load_inputs(x + i * stride);
                for (size_t p = 0; p < PANELS; ++p) sum[i][p] = add_products(sum[i][p], weight[p], inputs);
            }
        }
        // Unrolled, or the sums would live in memory.
#pragma GCC unroll 4
        for (size_t p = 0; p < PANELS; ++p) {
            const F16 scale = load(reinterpret_cast<const float*>(weights) + p * PANEL);
#pragma GCC unroll 6
            for (size_t i = 0; i < ROWS; ++i) {
                float* const total = tile.sums + p * tile.panel_sums + i * PANEL;
                const F16 both = scale * set1(tile.x.group(i, begin / GROUP).scale);
                store(total, fma(from_int(sum[i][p]), both, begin == 0 ? zero() : load(total)));
            }
        }
        weights += quad_bytes;
    }
}

using IntegerTileFunction = void (*)(const IntegerTile&);

template <size_t GROUP, size_t PANELS> IntegerTileFunction integer_tile_of(size_t rows) {
    switch (rows) {
        case 1: return integer_tile<GROUP, 1, PANELS>;
        case 2: return integer_tile<GROUP, 2, PANELS>;
        case 3: return integer_tile<GROUP, 3, PANELS>;
        case 5: if constexpr (MAX_INTEGER_ROWS >= 5) return integer_tile<GROUP, 5, PANELS>; [[fallthrough]];
        case 6: if constexpr (MAX_INTEGER_ROWS >= 6) return integer_tile<GROUP, 6, PANELS>; [[fallthrough]];
        default: return integer_tile<GROUP, 4, PANELS>;
    }
}

template <size_t GROUP> IntegerTileFunction integer_tile_of(size_t rows, size_t panels) {
    if constexpr (INTEGER_PANELS > 1) {
        if (panels == 4) return integer_tile_of<GROUP, 4>(rows);
        if (panels == 2) return integer_tile_of<GROUP, 2>(rows);
    }
    return integer_tile_of<GROUP, 1>(rows);
}

RWKV_INLINE F16 load_bf16(const uint8_t* from) {
    uint16_t halves[PANEL];
    uint32_t words[PANEL];
    std::memcpy(halves, from, sizeof halves);
    for (size_t i = 0; i < PANEL; ++i) words[i] = static_cast<uint32_t>(halves[i]) << 16;
    return from_bits(load(words));
}

constexpr size_t UNPACKED_BYTES = INTEGER_BLOCK * BAND * PANEL + INTEGER_BLOCK / INT4_SCALED_INPUTS * BAND * PANEL * sizeof(float);

// Some panels' INT4 weights of inputs `begin` to `end` in the layout of W8A8, with their scales in fp32.
inline void unpack(const uint8_t* weights, size_t input_bytes, size_t panel_in_band, size_t panels, size_t begin, size_t end,
                   uint8_t* to) {
    const I16 low = set1(0x0f0f0f0fu);
    const size_t band_bytes = input_bytes / unit_bytes(Dtype::INT4) * scale_bytes(Dtype::INT4);
    for (size_t stop; begin < end; begin = stop) {
        stop = std::min(begin + INT4_SCALED_INPUTS, end);
        const uint8_t* scales = weights + integer_scales_after(Dtype::INT4, stop - begin, input_bytes, panel_in_band);
        for (size_t k = begin; k < stop; k += 2 * QUAD, weights += input_bytes) {
            for (size_t p = 0; p < panels; ++p) {
                const I16 bytes = load(reinterpret_cast<const uint32_t*>(weights) + p * PANEL);
                uint32_t* const first = reinterpret_cast<uint32_t*>(to) + p * PANEL;
                store(first, bytes & low);
                if (k + QUAD < stop) store(first + panels * PANEL, shift_right<4>(bytes) & low);
            }
            to += (k + QUAD < stop ? 2 : 1) * panels * PANEL * QUAD;
        }
        for (size_t p = 0; p < panels; ++p)
            store(reinterpret_cast<float*>(to) + p * PANEL, load_bf16(scales + p * scale_bytes(Dtype::INT4)));
        to += panels * PANEL * sizeof(float);
        weights += band_bytes;
    }
}

// The sums of a single row, which never leave the registers.
template <Dtype D, size_t PANELS>
RWKV_INLINE void sum_one_integer_row(const QuantizedRows& x, const PackedMatrix& weight, size_t first_panel, F16 (&total)[PANELS]) {
    constexpr size_t GROUP = scaled_inputs(D);
    const size_t input_bytes = weight.input_bytes(weight.band_width(first_panel));
    const size_t band_scales = weight.band_width(first_panel) * scale_bytes(D);
    const uint8_t *weights = weight.at(first_panel, 0), *quads = x.quads;
    const I16 low = set1(0x0f0f0f0fu);
    for (size_t p = 0; p < PANELS; ++p) total[p] = zero();
    for (size_t begin = 0, end; begin < weight.in; begin = end) {
        end = std::min(begin + GROUP, weight.in);
        const InputGroup group = x.group(0, begin / GROUP);
        I16 sum[PANELS];
        for (size_t p = 0; p < PANELS; ++p) sum[p] = set1(static_cast<uint32_t>(group.start));
        const uint8_t* scales = weights + integer_scales_after(D, end - begin, input_bytes, first_panel % BAND);
        for (size_t k = begin; k < end; k += unit_inputs(D), weights += input_bytes) {
            const QuadInputs first = load_inputs(quads);
            QuadInputs second = first;
            if constexpr (D == Dtype::INT4) second = load_inputs(quads + QUAD_BYTES);
            quads += unit_inputs(D) / QUAD * QUAD_BYTES;
            for (size_t p = 0; p < PANELS; ++p) {
                const I16 bytes = load(reinterpret_cast<const uint32_t*>(weights) + p * PANEL);
                if constexpr (D == Dtype::INT4) {
                    sum[p] = add_products(sum[p], split_quad(bytes & low), first);
                    sum[p] = add_products(sum[p], split_quad(shift_right<4>(bytes) & low), second);
                } else {
                    sum[p] = add_products(sum[p], split_quad(bytes), first);
                }
            }
        }
        const F16 input_scale = set1(group.scale);
        for (size_t p = 0; p < PANELS; ++p) {
            const F16 scale = D == Dtype::INT4 ? load_bf16(scales + p * scale_bytes(D))
                                               : load(reinterpret_cast<const float*>(scales) + p * PANEL);
            total[p] = fma(from_int(sum[p]), scale * input_scale, total[p]);
        }
        weights += band_scales;
    }
}

template <Dtype D, size_t PANELS> void finish_one_integer_row(const LinearJob& job, const QuantizedRows& x, size_t first_panel) {
    F16 sum[PANELS];
    sum_one_integer_row<D>(x, job.weight, first_panel, sum);
    for (size_t p = 0; p < PANELS; ++p) {
        const size_t column = (first_panel + p) * PANEL, width = std::min(PANEL, job.weight.out - column);
        store_upto(job.out.data + column, finish(job, sum[p], 0, column, width), width);
    }
}

template <Dtype D>
void one_integer_row(const LinearJob& job, const QuantizedRows& x, size_t first_panel, size_t end_panel) {
    for (size_t panel = first_panel; panel < end_panel;) {
        switch (std::min(end_panel - panel, job.weight.band_width(panel) - panel % BAND)) {
            case 4: finish_one_integer_row<D, 4>(job, x, panel); panel += 4; break;
            case 3:
            case 2: finish_one_integer_row<D, 2>(job, x, panel); panel += 2; break;
            default: finish_one_integer_row<D, 1>(job, x, panel); panel += 1;
        }
    }
}

// As `linear`, for integer weights. `job.x` are rows that `quantize` wrote.
inline void integer_linear(const LinearJob& job, size_t task, float* sums, const uint8_t* next) {
    const PackedMatrix& weight = job.weight;
    const size_t first_panel = task * job.panels_per_task;
    const size_t end_panel = std::min(first_panel + job.panels_per_task, weight.num_panels());
    const uint8_t* const rows = reinterpret_cast<const uint8_t*>(job.x.data);
    const QuantizedRows all{rows, rows + input_groups_bytes(weight.in, weight.dtype), job.x.stride * sizeof(float)};
    const bool int4 = weight.dtype == Dtype::INT4;
    if (job.num_rows == 1) {
        if (int4) one_integer_row<Dtype::INT4>(job, all, first_panel, end_panel);
        else one_integer_row<Dtype::W8A8>(job, all, first_panel, end_panel);
        return;
    }

    alignas(64) uint8_t unpacked[UNPACKED_BYTES];
    for (size_t first_row = 0; first_row < job.num_rows; first_row += LINEAR_ROW_BLOCK) {
        const size_t num_rows = std::min(LINEAR_ROW_BLOCK, job.num_rows - first_row);
        const size_t num_tiles = ceil_div(num_rows, MAX_INTEGER_ROWS);
        const size_t panel_sums = num_rows * PANEL;
        for (size_t begin = 0; begin < weight.in; begin += INTEGER_BLOCK) {
            const size_t end = std::min(begin + INTEGER_BLOCK, weight.in);
            for (size_t panel = first_panel, width; panel < end_panel; panel += width) {
                const size_t band_width = weight.band_width(panel), in_band = panel % BAND;
                width = std::min(end_panel - panel, band_width - in_band);
                const size_t next_band = panel - in_band + BAND;
                const uint8_t* ahead = next_band < end_panel ? weight.at(next_band, begin)
                                       : end < weight.in     ? weight.at(first_panel, end)
                                                             : next;
                const uint8_t* weights = weight.at(panel, begin);
                size_t quad_bytes = weight.input_bytes(band_width);
                if (int4) {
                    unpack(weights, quad_bytes, in_band, width, begin, end, unpacked);
                    weights = unpacked;
                    quad_bytes = width * PANEL * QUAD;
                }
                for (size_t in_width = 0, panels; in_width < width; in_width += panels) {
                    panels = INTEGER_PANELS;
                    while (panels > width - in_width) panels /= 2;
                    // Each tile asks for a part of the next weights.
                    const size_t passes = num_tiles * (width / panels);
                    const size_t ahead_step = ceil_div(weight.bytes_before(QUAD, width), passes * LINE) * LINE;
                    IntegerTile tile{{all.groups + first_row * all.stride, all.quads + first_row * all.stride, all.stride},
                                     begin, end, weights + in_width * PANEL * QUAD, quad_bytes,
                                     sums + (panel - first_panel + in_width) * panel_sums, panel_sums, ahead, ahead_step};
                    for (size_t t = 0, row = 0; t < num_tiles; ++t) {
                        const size_t tile_rows = num_rows / num_tiles + (t < num_rows % num_tiles ? 1 : 0);
                        const IntegerTileFunction advance = int4 ? integer_tile_of<INT4_SCALED_INPUTS>(tile_rows, panels)
                                                                 : integer_tile_of<SCALED_INPUTS>(tile_rows, panels);
                        advance(tile);
                        row += tile_rows;
                        tile.x.groups += tile_rows * all.stride;
                        tile.x.quads += tile_rows * all.stride;
                        tile.sums += tile_rows * PANEL;
                        tile.ahead += ahead_step * ceil_div(end - begin, QUAD);
                    }
                    ahead = tile.ahead;
                }
            }
        }
        for (size_t row = 0; row < num_rows; ++row)
            for (size_t panel = first_panel; panel < end_panel; ++panel) {
                const size_t column = panel * PANEL, width = std::min(PANEL, weight.out - column);
                const F16 sum = load(sums + (panel - first_panel) * panel_sums + row * PANEL);
                store_upto(job.out.data + (first_row + row) * job.out.stride + column,
                           finish(job, sum, first_row + row, column, width), width);
            }
    }
}

}  // namespace RWKV_ISA
}  // namespace rwkv
