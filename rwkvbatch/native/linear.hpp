// Linear layers: x W^T over packed panels, a register tile of some rows by some panels at a time.
//
// Each output is one chain of fused multiply-adds over the inputs, first to last, from zero. Tiles, blocks and threads
// only choose which chains advance together: sums that wait in memory between two blocks of inputs lose nothing.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.hpp"
#include "math.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

#if defined(RWKV_ISA_AVX512)
constexpr size_t MAX_TILE_ROWS = 12;
#else
constexpr size_t MAX_TILE_ROWS = 6;
#endif

// Panels at once for a tile of so many rows: enough chains to hide the latency, and all of them in registers.
constexpr size_t tile_panels(size_t rows) {
#if defined(RWKV_ISA_AVX512)
    return rows <= 6 ? 4 : 2;
#else
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
#endif
}

// Inputs in a block, where several tiles share it: the block of a panel then stays in the first cache.
constexpr size_t INPUT_BLOCK = 256;

template <Dtype D> RWKV_INLINE F16 weights_at(const uint8_t* panel, size_t k) {
    if constexpr (D == Dtype::FP32) return load(reinterpret_cast<const float*>(panel) + k * PANEL);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(panel) + k * PANEL;
    return D == Dtype::BF16 ? widen_bf16(halves) : widen_fp16(halves);
}

// Advance `sums` [panel][row][16] by the inputs begin..end. `panel_sums` is the distance between panels there.
template <Dtype D, size_t ROWS, size_t PANELS>
void advance_tile(const float* x, size_t x_stride, const uint8_t* panels, size_t panel_bytes, size_t begin, size_t end,
                  float* sums, size_t panel_sums) {
    F16 sum[ROWS][PANELS];
    for (size_t i = 0; i < ROWS; ++i)
        for (size_t p = 0; p < PANELS; ++p)
            sum[i][p] = begin == 0 ? zero() : load(sums + p * panel_sums + i * PANEL);
    for (size_t k = begin; k < end; ++k) {
        F16 weight[PANELS];
        for (size_t p = 0; p < PANELS; ++p) weight[p] = weights_at<D>(panels + p * panel_bytes, k);
        for (size_t i = 0; i < ROWS; ++i) {
            const F16 input = set1(x[i * x_stride + k]);
            for (size_t p = 0; p < PANELS; ++p) sum[i][p] = fma(input, weight[p], sum[i][p]);
        }
    }
    for (size_t i = 0; i < ROWS; ++i)
        for (size_t p = 0; p < PANELS; ++p) store(sums + p * panel_sums + i * PANEL, sum[i][p]);
}

using TileFunction = void (*)(const float*, size_t, const uint8_t*, size_t, size_t, size_t, float*, size_t);

template <Dtype D, size_t PANELS> TileFunction tile_of_rows(size_t rows) {
    switch (rows) {
        case 1: return advance_tile<D, 1, PANELS>;
        case 2: return advance_tile<D, 2, PANELS>;
        case 3: return advance_tile<D, 3, PANELS>;
        case 4: return advance_tile<D, 4, PANELS>;
        case 5: return advance_tile<D, 5, PANELS>;
        case 6: return advance_tile<D, 6, PANELS>;
#if defined(RWKV_ISA_AVX512)
        case 7: return advance_tile<D, 7, PANELS>;
        case 8: return advance_tile<D, 8, PANELS>;
        case 9: return advance_tile<D, 9, PANELS>;
        case 10: return advance_tile<D, 10, PANELS>;
        case 11: return advance_tile<D, 11, PANELS>;
        case 12: return advance_tile<D, 12, PANELS>;
#endif
        default: return nullptr;
    }
}

template <Dtype D> TileFunction tile_function(size_t rows, size_t panels) {
    switch (panels) {
        case 4: return tile_of_rows<D, 4>(rows);
        case 2: return tile_of_rows<D, 2>(rows);
        default: return tile_of_rows<D, 1>(rows);
    }
}

inline TileFunction tile_function(Dtype dtype, size_t rows, size_t panels) {
    switch (dtype) {
        case Dtype::FP32: return tile_function<Dtype::FP32>(rows, panels);
        case Dtype::BF16: return tile_function<Dtype::BF16>(rows, panels);
        default: return tile_function<Dtype::FP16>(rows, panels);
    }
}

// What a layer's end makes of the sums of one row and panel.
RWKV_INLINE F16 finish(const LinearJob& job, F16 sum, size_t row, size_t column, size_t width) {
    switch (job.end) {
        case End::RELU_SQUARED: {
            const F16 positive = greater(zero(), sum);  // the second operand where it is NaN
            return positive * positive;
        }
        case End::ADD: return load_upto(job.residual.data + row * job.residual.stride + column, width) + sum;
        case End::ACTIVATE:
            if (job.bias != nullptr) sum = sum + load_upto(job.bias + column, width);
            return activate(sum, job.activation);
        default: return sum;
    }
}

inline void linear(const LinearJob& job, size_t task, float* sums) {
    const PackedMatrix& weight = job.weight;
    const size_t first_panel = task * job.panels_per_task;
    const size_t num_panels = std::min(job.panels_per_task, weight.num_panels() - first_panel);
    const size_t panel_bytes = weight.panel_bytes();

    for (size_t first_row = 0; first_row < job.num_rows; first_row += LINEAR_ROW_BLOCK) {
        const size_t num_rows = std::min(LINEAR_ROW_BLOCK, job.num_rows - first_row);
        // Tiles of nearly the same height: 8 rows are 4 and 4, not 6 and 2.
        const size_t num_tiles = ceil_div(num_rows, MAX_TILE_ROWS);
        const size_t low_rows = num_rows / num_tiles, num_high = num_rows % num_tiles;
        const size_t widest = tile_panels(low_rows + (num_high > 0 ? 1 : 0));
        const size_t input_block = num_tiles == 1 ? weight.in : INPUT_BLOCK;
        const size_t panel_sums = num_rows * PANEL;

        for (size_t begin = 0; begin < weight.in; begin += input_block) {
            const size_t end = std::min(begin + input_block, weight.in);
            for (size_t p = 0; p < num_panels;) {
                size_t panels = widest;
                while (panels > num_panels - p) panels /= 2;
                const TileFunction low = tile_function(weight.dtype, low_rows, panels);
                const TileFunction high = num_high > 0 ? tile_function(weight.dtype, low_rows + 1, panels) : low;
                const uint8_t* data = weight.data + (first_panel + p) * panel_bytes;
                size_t row = 0;
                for (size_t tile = 0; tile < num_tiles; ++tile) {
                    const bool is_high = tile < num_high;
                    const float* x = job.x.data + (first_row + row) * job.x.stride;
                    (is_high ? high : low)(x, job.x.stride, data, panel_bytes, begin, end,
                                           sums + p * panel_sums + row * PANEL, panel_sums);
                    row += low_rows + (is_high ? 1 : 0);
                }
                p += panels;
            }
        }
        for (size_t row = 0; row < num_rows; ++row)
            for (size_t p = 0; p < num_panels; ++p) {
                const size_t column = (first_panel + p) * PANEL;
                const size_t width = std::min(PANEL, weight.out - column);
                const F16 sum = load(sums + p * panel_sums + row * PANEL);
                store_upto(job.out.data + (first_row + row) * job.out.stride + column,
                           finish(job, sum, first_row + row, column, width), width);
            }
    }
}

}  // namespace RWKV_ISA
}  // namespace rwkv
