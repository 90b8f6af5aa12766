// Linear layers of many rows as integer matrix products (AMX): sixteen rows by sixteen outputs per instruction.
//
// The sums are those of `integer.hpp`, exact in any order. An instruction multiplies the inputs of sixteen rows, in the format of
// `quantize`, by the weights of a panel, quad by quad. W8A8 weights are stored in this order. INT4 weights are unpacked for a block
// of inputs, once for all rows of a task.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "integer.hpp"

namespace rwkv {
namespace RWKV_ISA {

// With fewer rows, too much of a tile is empty.
constexpr size_t min_matrix_rows(Dtype dtype) { return dtype == Dtype::INT4 ? 24 : 8; }
constexpr size_t MATRIX_ROWS = 16, MATRIX_ROW_BLOCK = 256;
// Rows whose sums are scaled together: their totals and parts fit into the registers.
constexpr size_t SCALED_ROWS = 8;
static_assert(MATRIX_ROW_BLOCK <= LINEAR_SCRATCH_ROWS);

// Inputs in a block. The inputs of sixteen rows, a band's weights for them and the tiles of sums fit into the first-level cache.
constexpr size_t matrix_block(Dtype dtype) { return dtype == Dtype::INT4 ? 512 : 256; }

// Inputs of an instruction: at most 64, and at most those that share a scale.
constexpr size_t matrix_inputs(Dtype dtype) { return std::min<size_t>(64, scaled_inputs(dtype)); }

// Numbers of tile registers. They are macros, since GCC's intrinsics turn them into text.
#define RWKV_SUMS 0
#define RWKV_INPUTS 1
#define RWKV_WEIGHTS 2
#define RWKV_LAST_SUMS 3
#define RWKV_LAST_INPUTS 4

// The operand of `ldtilecfg`: rows, and bytes per row, of each tile register.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t num_rows[16] = {};

    TileShapes(Dtype dtype, size_t last_rows) {
        const auto inputs = static_cast<uint16_t>(matrix_inputs(dtype));
        set(RWKV_SUMS, MATRIX_ROWS, LINE);
        set(RWKV_INPUTS, MATRIX_ROWS, inputs);
        set(RWKV_WEIGHTS, inputs / QUAD, LINE);
        if (last_rows == 0) return;
        set(RWKV_LAST_SUMS, last_rows, LINE);
        set(RWKV_LAST_INPUTS, last_rows, inputs);
    }
    void set(size_t tile, size_t rows, size_t bytes) {
        num_rows[tile] = static_cast<uint8_t>(rows);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};

// The computation of one tile of rows, for some panels of a band and one block of inputs.
struct MatrixTile {
    const InputGroup* groups;  // at the block's first group and the tile's first row
    size_t groups_stride;
    const uint8_t* inputs;     // at the block's first input and the tile's first row
    size_t inputs_stride;      // bytes from one row to the next
    size_t num_inputs, num_rows, num_panels;
    const uint8_t* weights;    // W8A8: packed, INT4: unpacked
    size_t quad_step, group_step, panel_step;  // bytes from one quad to the next, one group, one panel
    const uint8_t* packed;     // the first panel's packed block, which has the scales
    size_t packed_unit_step, packed_group_step, panel_in_band;
    float* sums;               // [panel][row][16]
    size_t panel_sums;         // floats from one panel to the next
    bool first;                // whether it is the first block: sums begin with zero
    const uint8_t* ahead;      // weights to prefetch
    size_t ahead_step;         // bytes to prefetch for each group and panel
};

// Call this between writing memory and loading tiles from it: GCC 12 does not know that tile loads read memory.
RWKV_INLINE void written_for_tiles() { __asm__ volatile("" ::: "memory"); }

// Add the products of `matrix_inputs` inputs to a register of sums.
template <Dtype D, bool LAST>
RWKV_INLINE void multiply_matrices(const uint8_t* inputs, size_t inputs_stride, const uint8_t* weights, size_t quad_step) {
    _tile_loadd(RWKV_WEIGHTS, weights, quad_step);
    if constexpr (LAST) {
        _tile_loadd(RWKV_LAST_INPUTS, inputs, inputs_stride);
        if constexpr (D == Dtype::INT4) _tile_dpbssd(RWKV_LAST_SUMS, RWKV_LAST_INPUTS, RWKV_WEIGHTS);
        else _tile_dpbsud(RWKV_LAST_SUMS, RWKV_LAST_INPUTS, RWKV_WEIGHTS);
    } else {
        _tile_loadd(RWKV_INPUTS, inputs, inputs_stride);
        if constexpr (D == Dtype::INT4) _tile_dpbssd(RWKV_SUMS, RWKV_INPUTS, RWKV_WEIGHTS);
        else _tile_dpbsud(RWKV_SUMS, RWKV_INPUTS, RWKV_WEIGHTS);
    }
}

// The same for fewer inputs, the last ones of a layer.
template <Dtype D, bool LAST>
__attribute__((noinline)) void multiply_few(const uint8_t* inputs, size_t inputs_stride, const uint8_t* weights, size_t quad_step,
                                            size_t num_rows, size_t count) {
    constexpr size_t STEP = matrix_inputs(D);
    alignas(64) uint8_t padded_inputs[MATRIX_ROWS * STEP] = {}, padded_weights[STEP / QUAD * LINE] = {};
    const size_t quads = ceil_div(count, QUAD);
    for (size_t row = 0; row < num_rows; ++row)
        std::memcpy(padded_inputs + row * STEP, inputs + row * inputs_stride, quads * QUAD_BYTES<D>);
    for (size_t quad = 0; quad < quads; ++quad) std::memcpy(padded_weights + quad * LINE, weights + quad * quad_step, LINE);
    written_for_tiles();
    multiply_matrices<D, LAST>(padded_inputs, STEP, padded_weights, LINE);
}

// LAST: the tile has fewer rows than a whole tile.
//
// The products of several groups or panels come first, and their scaling after them, since a sum that was just stored cannot be
// loaded without delay.
template <Dtype D, bool LAST> void matrix_tile(const MatrixTile& parameters) {
    const MatrixTile tile = parameters;  // a copy: the compiler would reload it after each use of a tile register
    constexpr size_t GROUP = scaled_inputs(D), STEP = matrix_inputs(D), NUM_GROUPS = matrix_block(D) / GROUP;
    constexpr size_t PANELS = D == Dtype::INT4 ? 1 : BAND;
    alignas(64) uint32_t sums[PANELS][NUM_GROUPS][MATRIX_ROWS * PANEL];
    const size_t num_rows = LAST ? tile.num_rows : MATRIX_ROWS;
    const uint8_t* ahead = tile.ahead;
    for (size_t first_panel = 0; first_panel < tile.num_panels; first_panel += PANELS) {
        const size_t num_panels = std::min(PANELS, tile.num_panels - first_panel);
        for (size_t p = 0; p < num_panels; ++p) {
            const uint8_t *weights = tile.weights + (first_panel + p) * tile.panel_step, *inputs = tile.inputs;
            for (size_t begin = 0; begin < tile.num_inputs; begin += GROUP, weights += tile.group_step, inputs += GROUP) {
                const size_t count = std::min(GROUP, tile.num_inputs - begin);
                for (size_t byte = 0; byte < tile.ahead_step; byte += LINE) __builtin_prefetch(ahead + byte, 0, 2);
                ahead += tile.ahead_step;
                if constexpr (LAST) _tile_zero(RWKV_LAST_SUMS);
                else _tile_zero(RWKV_SUMS);
#pragma GCC unroll 2
                for (size_t k = 0; k < GROUP; k += STEP) {
                    const uint8_t* const quads = weights + k / QUAD * tile.quad_step;
                    if (__builtin_expect(k + STEP <= count, 1))
                        multiply_matrices<D, LAST>(inputs + k, tile.inputs_stride, quads, tile.quad_step);
                    else if (k < count)
                        multiply_few<D, LAST>(inputs + k, tile.inputs_stride, quads, tile.quad_step, num_rows, count - k);
                }
                if constexpr (LAST) _tile_stored(RWKV_LAST_SUMS, sums[p][begin / GROUP], LINE);
                else _tile_stored(RWKV_SUMS, sums[p][begin / GROUP], LINE);
            }
        }
        for (size_t p = 0; p < num_panels; ++p) {
            float* const to = tile.sums + (first_panel + p) * tile.panel_sums;
            for (size_t first_row = 0; first_row < num_rows; first_row += SCALED_ROWS) {
                const uint8_t* packed = tile.packed;
                const InputGroup* rows = tile.groups + first_row;
                const size_t count_rows = std::min(SCALED_ROWS, num_rows - first_row);
                F16 total[SCALED_ROWS], part[SCALED_ROWS];
#pragma GCC unroll 8
                for (size_t i = 0; i < SCALED_ROWS; ++i) {
                    total[i] = tile.first || i >= count_rows ? zero() : load(to + (first_row + i) * PANEL);
                    part[i] = zero();
                }
                for (size_t begin = 0, end; begin < tile.num_inputs; begin = end) {
                    end = std::min(begin + GROUP, tile.num_inputs);
                    const size_t scales = integer_scales_after(D, end - begin, tile.packed_unit_step, tile.panel_in_band);
                    const F16 scale = load_scales<D>(packed + scales, first_panel + p);
                    const bool ends = ends_inputs(end, tile.num_inputs);
#pragma GCC unroll 8
                    for (size_t i = 0; i < SCALED_ROWS; ++i) {
                        if (LAST && i >= count_rows) break;
                        I16 sum = load(sums[p][begin / GROUP] + (first_row + i) * PANEL);
                        // The unpacked weights of INT4 have no excess.
                        if constexpr (D != Dtype::INT4) sum = sum + set1(static_cast<uint32_t>(rows[i].start));
                        part[i] = fma(from_int(sum), scale, part[i]);
                        if (D != Dtype::INT4 || ends) {
                            total[i] = fma(part[i], set1(rows[i].scale), total[i]);
                            part[i] = zero();
                        }
                    }
                    packed += tile.packed_group_step;
                    rows += tile.groups_stride;
                }
#pragma GCC unroll 8
                for (size_t i = 0; i < SCALED_ROWS; ++i)
                    if (i < count_rows) store(to + (first_row + i) * PANEL, total[i]);
            }
        }
    }
}

// Unpack a panel's INT4 weights for some inputs to quads of signed bytes.
inline void unpack_int4(const uint8_t* packed, size_t unit_step, size_t group_step, size_t inputs, uint8_t* to) {
    const __m512i low = _mm512_set1_epi8(0x0f), excess = _mm512_set1_epi8(zero_weight(Dtype::INT4));
    for (size_t begin = 0; begin < inputs; begin += INT4_SCALED_INPUTS, packed += group_step) {
        const uint8_t* from = packed;
        for (size_t k = begin; k < std::min(begin + INT4_SCALED_INPUTS, inputs); k += 2 * QUAD, from += unit_step, to += 2 * LINE) {
            const __m512i bytes = _mm512_loadu_si512(from);
            _mm512_store_si512(to, _mm512_sub_epi8(_mm512_and_si512(bytes, low), excess));
            _mm512_store_si512(to + LINE, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(bytes, 4), low), excess));
        }
    }
}

// `integer_linear` for many rows.
template <Dtype D> void matrix_linear(const LinearJob& job, size_t task, float* sums, const uint8_t* next) {
    const PackedMatrix& weight = job.weight;
    const size_t first_panel = task * job.panels_per_task;
    const size_t end_panel = std::min(first_panel + job.panels_per_task, weight.num_panels());
    constexpr size_t GROUP = scaled_inputs(D), BLOCK = matrix_block(D), NUM_GROUPS = BLOCK / GROUP;
    alignas(64) uint8_t unpacked[D == Dtype::INT4 ? BAND : 1][BLOCK * PANEL];
    TileWeights tile_weights(weight);
    for (size_t first_row = 0; first_row < job.num_rows; first_row += MATRIX_ROW_BLOCK) {
        const size_t num_rows = std::min(MATRIX_ROW_BLOCK, job.num_rows - first_row), num_tiles = ceil_div(num_rows, MATRIX_ROWS);
        const TileShapes shapes(D, num_rows % MATRIX_ROWS);
        _tile_loadconfig(&shapes);
        for (size_t begin = 0; begin < weight.in; begin += BLOCK) {
            const size_t end = std::min(begin + BLOCK, weight.in);
            for (size_t panel = first_panel, panels; panel < end_panel; panel += panels) {
                const size_t band_width = weight.band_width(panel), in_band = panel % BAND;
                panels = std::min<size_t>({D == Dtype::INT4 ? 2 : BAND, end_panel - panel, band_width - in_band});
                const size_t next_band = panel - in_band + BAND;
                const uint8_t* ahead = next_band < end_panel ? weight.at(next_band, begin)
                                       : end < weight.in     ? weight.at(first_panel, end)
                                                             : next;
                const size_t ahead_bytes = weight.bytes_before(end - begin, panels);
                ahead += in_band * weight.bytes_before(end - begin, 1);
                const size_t ahead_step = ceil_div(ahead_bytes, num_tiles * NUM_GROUPS * panels * LINE) * LINE;
                const uint8_t* const ahead_end = ahead + ahead_bytes;

                const uint8_t* const packed = tile_weights.at(panel, begin, end);
                const size_t unit_step = weight.input_bytes(band_width), group_step = weight.bytes_before(GROUP, band_width);
                MatrixTile tile{nullptr, job.num_rows, nullptr, job.x.stride * sizeof(float), end - begin, 0, panels,
                                packed, unit_step, group_step, unit_bytes(D), packed, unit_step, group_step, in_band,
                                nullptr, num_rows * PANEL, begin == 0, ahead, ahead_step};
                if constexpr (D == Dtype::INT4) {
                    for (size_t p = 0; p < panels; ++p)
                        unpack_int4(packed + p * unit_bytes(D), unit_step, group_step, end - begin, unpacked[p]);
                    written_for_tiles();
                    tile.weights = unpacked[0];
                    tile.quad_step = LINE;
                    tile.group_step = GROUP / QUAD * LINE;
                    tile.panel_step = sizeof unpacked[0];
                }
                for (size_t row = first_row; row < first_row + num_rows; row += MATRIX_ROWS) {
                    tile.num_rows = std::min(MATRIX_ROWS, first_row + num_rows - row);
                    tile.groups = job.groups + begin / GROUP * job.num_rows + row;
                    tile.inputs = reinterpret_cast<const uint8_t*>(job.x.data + row * job.x.stride) + begin / QUAD * QUAD_BYTES<D>;
                    tile.sums = sums + (panel - first_panel) * tile.panel_sums + (row - first_row) * PANEL;
                    if (end == weight.in) fetch_outputs(job, row, tile.num_rows, panel, panels);
                    (tile.num_rows == MATRIX_ROWS ? matrix_tile<D, false> : matrix_tile<D, true>)(tile);
                    for (size_t p = 0; p < panels && end == weight.in; ++p)
                        finish_tile(job, row, tile.num_rows, panel + p, 1, {tile.sums + p * tile.panel_sums, PANEL, 0});
                    tile.ahead += ahead_step * NUM_GROUPS * panels;
                    if (tile.ahead >= ahead_end) tile.ahead_step = 0;
                }
            }
        }
    }
    _tile_release();
}

}  // namespace RWKV_ISA
}  // namespace rwkv
