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

constexpr size_t MAX_TILE_ROWS = 6;

// Panels at once for a tile of so many rows: enough chains to hide the latency, and all of them in registers.
constexpr size_t tile_panels([[maybe_unused]] size_t rows) {
#if defined(RWKV_ISA_AVX512)
    return 4;
#else
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
#endif
}

// Inputs in a block, where several tiles share it: the block of a panel then stays in the first cache.
#if defined(RWKV_ISA_AVX512)
constexpr size_t INPUT_BLOCK = 256;
#else
constexpr size_t INPUT_BLOCK = 384;
#endif

// How far before they are needed weights are asked for, in bytes of each panel: the way of a line from memory.
constexpr size_t AHEAD = 8192;

template <Dtype D> RWKV_INLINE F16 weights_at(const uint8_t* panel, size_t k) {
    if constexpr (D == Dtype::FP32) return load(reinterpret_cast<const float*>(panel) + k * PANEL);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(panel) + k * PANEL;
    return D == Dtype::BF16 ? widen_bf16(halves) : widen_fp16(halves);
}

// One register tile's work on one block of inputs.
struct Tile {
    const float* x;
    size_t x_stride;
    const uint8_t* panels;
    size_t panel_bytes;
    size_t begin, end;     // inputs
    float* sums;           // [panel][row][16]
    size_t panel_sums;     // distance between panels there
    const uint8_t* ahead;  // weights to ask the memory for meanwhile, in as many panels,
    size_t ahead_step;     // so many bytes for each input
};

template <Dtype D, size_t ROWS, size_t PANELS> void advance_tile(const Tile& tile) {
    const float* x = tile.x;
    const uint8_t *panels = tile.panels, *ahead = tile.ahead;
    const size_t x_stride = tile.x_stride, panel_bytes = tile.panel_bytes, end = tile.end, ahead_step = tile.ahead_step;
    F16 sum[ROWS][PANELS];
    for (size_t i = 0; i < ROWS; ++i)
        for (size_t p = 0; p < PANELS; ++p)
            sum[i][p] = tile.begin == 0 ? zero() : load(tile.sums + p * tile.panel_sums + i * PANEL);
    for (size_t k = tile.begin; k < end; ++k) {
        F16 weight[PANELS];
        for (size_t p = 0; p < PANELS; ++p) {
            __builtin_prefetch(ahead + p * panel_bytes, 0, 1);
            weight[p] = weights_at<D>(panels + p * panel_bytes, k);
        }
        ahead += ahead_step;
        for (size_t i = 0; i < ROWS; ++i) {
            const F16 input = set1(x[i * x_stride + k]);
            for (size_t p = 0; p < PANELS; ++p) sum[i][p] = fma(input, weight[p], sum[i][p]);
        }
    }
    for (size_t i = 0; i < ROWS; ++i)
        for (size_t p = 0; p < PANELS; ++p) store(tile.sums + p * tile.panel_sums + i * PANEL, sum[i][p]);
}

using TileFunction = void (*)(const Tile&);

template <Dtype D, size_t PANELS> TileFunction tile_of_rows(size_t rows) {
    switch (rows) {
        case 1: return advance_tile<D, 1, PANELS>;
        case 2: return advance_tile<D, 2, PANELS>;
        case 3: return advance_tile<D, 3, PANELS>;
        case 4: return advance_tile<D, 4, PANELS>;
        case 5: return advance_tile<D, 5, PANELS>;
        default: return advance_tile<D, 6, PANELS>;
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
    const auto at = [&](ConstRows rows) { return load_upto(rows.data + row * rows.stride + column, width); };
    if (job.bias != nullptr) sum = sum + load_upto(job.bias + column, width);
    const F16 y = activate(sum, job.activation);
    if (job.add.data != nullptr) return at(job.add) + y;
    if (job.start.data != nullptr) {
        const F16 start = at(job.start);
        return fma(at(job.target) - start, y, start);
    }
    return y;
}

// A block of rows in tiles of nearly the same height: 8 rows are 4 and 4, not 6 and 2.
struct Tiling {
    explicit Tiling(size_t num_rows)
        : num_tiles(ceil_div(num_rows, MAX_TILE_ROWS)), low(num_rows / num_tiles), num_high(num_rows % num_tiles) {}

    size_t num_tiles, low, num_high;
    size_t rows(size_t tile) const { return low + (tile < num_high ? 1 : 0); }
    size_t panels() const { return tile_panels(rows(0)); }
};

// All tiles of `tiling` over `panels` panels from the inputs begin..end.
inline void advance_block(const LinearJob& job, const Tiling& tiling, Tile tile, size_t panels) {
    const TileFunction low = tile_function(job.weight.dtype, tiling.low, panels);
    const TileFunction high = tile_function(job.weight.dtype, tiling.rows(0), panels);
    const size_t input_bytes = PANEL * size_of(job.weight.dtype);
    const size_t share = (tile.end - tile.begin) * input_bytes / tiling.num_tiles;
    tile.ahead_step = ceil_div(input_bytes, tiling.num_tiles);
    for (size_t t = 0; t < tiling.num_tiles; ++t) {
        (t < tiling.num_high ? high : low)(tile);
        tile.x += tiling.rows(t) * tile.x_stride;
        tile.sums += tiling.rows(t) * PANEL;
        tile.ahead += share;
    }
}

inline void linear(const LinearJob& job, size_t task, float* sums) {
    const PackedMatrix& weight = job.weight;
    const size_t first_panel = task * job.panels_per_task;
    const size_t num_panels = std::min(job.panels_per_task, weight.num_panels() - first_panel);
    const size_t panel_bytes = weight.panel_bytes(), input_bytes = PANEL * size_of(weight.dtype);
    const uint8_t* data = weight.data + first_panel * panel_bytes;

    for (size_t first_row = 0; first_row < job.num_rows; first_row += LINEAR_ROW_BLOCK) {
        const size_t num_rows = std::min(LINEAR_ROW_BLOCK, job.num_rows - first_row);
        const Tiling tiling(num_rows);
        const size_t panel_sums = num_rows * PANEL;
        // A tile that has the weights for itself asks for its own a little ahead, and in its last block for those of
        // the next panels; tiles that share a block ask for the next block, each for a part.
        const bool alone = tiling.num_tiles == 1;
        const size_t ahead_inputs = std::min(AHEAD / input_bytes, weight.in);
        const size_t input_block = alone ? std::max<size_t>(weight.in - ahead_inputs, 1) : INPUT_BLOCK;

        for (size_t outer = 0; outer < (alone ? 1 : weight.in); outer += input_block) {
            for (size_t p = 0, panels; p < num_panels; p += panels) {
                panels = tiling.panels();
                while (panels > num_panels - p) panels /= 2;
                Tile tile{job.x.data + first_row * job.x.stride, job.x.stride, data + p * panel_bytes, panel_bytes,
                          outer, std::min(outer + input_block, weight.in), sums + p * panel_sums, panel_sums, nullptr, 0};
                if (alone) {
                    tile.ahead = tile.panels + ahead_inputs * input_bytes;
                    advance_block(job, tiling, tile, panels);
                    tile.begin = tile.end;
                    tile.end = weight.in;
                    tile.ahead = tile.panels + panels * panel_bytes;
                } else {
                    const bool last = p + panels >= num_panels;
                    tile.ahead = last ? data + tile.end * input_bytes : tile.panels + panels * panel_bytes + outer * input_bytes;
                }
                advance_block(job, tiling, tile, panels);
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
