// Linear layers: x W^T over packed panels, a register tile of some rows by some panels at a time.
//
// Each output is one chain of fused multiply-adds over the inputs, first to last, from zero. Tiles, blocks and threads only decide
// which chains advance together. Sums are stored exactly between two blocks of inputs.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.hpp"
#include "math.hpp"
#include "tile.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// Inputs in a block that several tiles share, so that a band's block stays in the first-level cache; twice as many for int8
// weights.
#if defined(RWKV_ISA_AVX512)
constexpr size_t INPUT_BLOCK = 256;
#else
constexpr size_t INPUT_BLOCK = 192;
#endif
static_assert(2 * INPUT_BLOCK % SCALED_INPUTS == 0);

// Up to three rows consume weights as fast as they arrive: there most processors' own prefetching is enough, and more would slow it
// down. int8 weights are widened, which takes longer.
inline bool prefetches(const LinearJob& job, size_t rows) {
    return job.prefetch || rows > 3 || (rows > 1 && job.weight.dtype == Dtype::INT8);
}

// Not inlined: copies of exp and tanh of 16 lanes at each end of a layer took most of the compile time. Inlined on ARM, since GCC
// 12 at -O3 otherwise compiled wrong sums in the portable kernels there (tests/native/test_processors.py detects it); -O2 is right,
// too.
#if defined(__aarch64__)
RWKV_INLINE
#else
__attribute__((noinline)) inline
#endif
F16 activated(F16 x, Activation activation) { return activate(x, activation); }

// The result of a layer from the sums of one row and panel: bias, activation, and the combination with other arrays.
template <class Load> RWKV_INLINE F16 finish(const LinearJob& job, F16 sum, size_t row, size_t column, const Load& load) {
    const auto at = [&](ConstRows rows) { return load(rows.data + row * rows.stride + column); };
    if (job.bias != nullptr) sum = sum + load(job.bias + column);
    const F16 y = job.activation == Activation::NONE ? sum : activated(sum, job.activation);
    if (job.add.data != nullptr) return at(job.add) + y;
    if (job.start.data != nullptr) {
        const F16 start = at(job.start);
        return fma(at(job.target) - start, y, start);
    }
    if (job.target.data != nullptr) return at(job.target) * y;
    return y;
}

// Finish the sums of one row and panel, and store the results.
RWKV_INLINE void store_finished(const LinearJob& job, F16 sum, size_t row, size_t panel) {
    const size_t column = panel * PANEL, width = std::min(PANEL, job.weight.out - column);
    float* const out = job.out.data + row * job.out.stride + column;
    if (width == PANEL) store(out, finish(job, sum, row, column, [](const float* from) { return load(from); }));
    else store_upto(out, finish(job, sum, row, column, [=](const float* from) { return load_upto(from, width); }), width);
}

// Ask for the memory that a tile's results go to: where rows are many, it is in no near cache.
inline void fetch_outputs(const LinearJob& job, size_t first_row, size_t num_rows, size_t first_panel, size_t num_panels) {
    for (size_t row = first_row; row < first_row + num_rows; ++row)
        for (size_t p = 0; p < num_panels; ++p)
            __builtin_prefetch(job.out.data + row * job.out.stride + (first_panel + p) * PANEL, 1);
}

// Sums of some rows by some panels; the steps are floats from one row or panel to the next.
struct TileSums {
    const float* data;
    size_t row_step, panel_step;

    RWKV_INLINE F16 at(size_t row, size_t panel) const { return load(data + row * row_step + panel * panel_step); }
};

// Store `end(sum, row, panel)` as the results of whole panels.
template <class End>
RWKV_INLINE void finish_panels(float* out, size_t stride, size_t num_rows, size_t num_panels, const TileSums& sums, const End& end) {
    for (size_t row = 0; row < num_rows; ++row, out += stride)
        for (size_t panel = 0; panel < num_panels; ++panel) store(out + panel * PANEL, end(sums.at(row, panel), row, panel));
}

// Apply `finish` to the sums of some rows by some panels, and store the results.
inline void finish_tile(const LinearJob& job, size_t first_row, size_t num_rows, size_t first_panel, size_t num_panels,
                        const TileSums& sums) {
    // The ends of most layers, without decisions for each vector.
    if (job.bias == nullptr && job.target.data == nullptr && (first_panel + num_panels) * PANEL <= job.weight.out) {
        const size_t stride = job.out.stride, add_stride = job.add.stride;
        float* const out = job.out.data + first_row * stride + first_panel * PANEL;
        const float* const add = job.add.data == nullptr ? nullptr : job.add.data + first_row * add_stride + first_panel * PANEL;
        if (job.activation == Activation::NONE && add == nullptr)
            return finish_panels(out, stride, num_rows, num_panels, sums, [](F16 sum, size_t, size_t) { return sum; });
        if (job.activation == Activation::NONE)
            return finish_panels(out, stride, num_rows, num_panels, sums, [=](F16 sum, size_t row, size_t panel) {
                return load(add + row * add_stride + panel * PANEL) + sum;
            });
        if (job.activation == Activation::RELU_SQUARED && add == nullptr)
            return finish_panels(out, stride, num_rows, num_panels, sums, [](F16 sum, size_t, size_t) { return relu_squared(sum); });
    }
    for (size_t row = 0; row < num_rows; ++row)
        for (size_t panel = 0; panel < num_panels; ++panel)
            store_finished(job, sums.at(row, panel), first_row + row, first_panel + panel);
}

// Divides a block of rows into tiles of nearly equal height: 8 rows are 4 and 4, not 6 and 2.
struct Tiling {
    explicit Tiling(size_t num_rows)
        : num_tiles(ceil_div(num_rows, MAX_TILE_ROWS)), low(num_rows / num_tiles), num_high(num_rows % num_tiles) {}

    size_t num_tiles, low, num_high;
    size_t rows(size_t tile) const { return low + (tile < num_high ? 1 : 0); }
    size_t panels() const { return tile_panels(rows(0)); }
};

// Compute all tiles of `tiling` for `panels` panels and one block of inputs. Each tile prefetches a part of `tile.ahead`, a stretch
// of as many weights.
inline void advance_block(const LinearJob& job, const Tiling& tiling, Tile tile, size_t panels) {
    const TileFunction low = tile_function(job.weight.dtype, tiling.low, panels);
    const TileFunction high = tile_function(job.weight.dtype, tiling.rows(0), panels);
    const size_t share = job.weight.bytes_before(tile.end - tile.begin, panels) / tiling.num_tiles;
    tile.ahead_step = ceil_div(job.weight.input_bytes(panels), tiling.num_tiles);
    for (size_t t = 0; t < tiling.num_tiles; ++t) {
        (t < tiling.num_high ? high : low)(tile);
        tile.x += tiling.rows(t) * tile.x_stride;
        tile.sums += tiling.rows(t) * PANEL;
        tile.ahead += share;
    }
}

// Compute the only tile of a whole band. It reads the weights in the order of memory, and prefetches a little ahead: at the end of
// the band, the `next` weights.
inline void advance_alone(const LinearJob& job, size_t rows, Tile tile, size_t panel, size_t panels, const uint8_t* next) {
    const TileFunction advance = tile_function(job.weight.dtype, rows, panels);
    tile.ahead_step = prefetches(job, rows) ? tile.input_bytes : 0;
    const size_t inputs = tile.end, ahead_inputs = std::min(AHEAD / tile.input_bytes, inputs);
    const size_t split = job.weight.block_of(inputs - ahead_inputs), width = job.weight.band_width(panel);
    const size_t bytes_to_split = job.weight.bytes_before(split, width);
    tile.ahead = tile.weights + job.weight.bytes_before(inputs, width) - bytes_to_split;
    tile.end = split;
    if (split > 0) advance(tile);
    tile.weights += bytes_to_split;
    tile.begin = split;
    tile.end = inputs;
    tile.ahead = next;
    advance(tile);
}

// Compute some panels for a single row.
template <Dtype D, size_t PANELS> void finish_one_row(const LinearJob& job, size_t first_panel) {
    F16 sum[PANELS];
    job.prefetch ? sum_one_row<D, PANELS, true>(job.x.data, job.weight, first_panel, sum)
                 : sum_one_row<D, PANELS, false>(job.x.data, job.weight, first_panel, sum);
    for (size_t p = 0; p < PANELS; ++p) store_finished(job, sum[p], 0, first_panel + p);
}

template <Dtype D> void linear_one_row(const LinearJob& job, size_t first_panel, size_t end_panel) {
    for (size_t panel = first_panel; panel < end_panel;) {
        switch (std::min(end_panel - panel, job.weight.band_width(panel) - panel % BAND)) {
            case 4: finish_one_row<D, 4>(job, panel); panel += 4; break;
            case 3:
            case 2: finish_one_row<D, 2>(job, panel); panel += 2; break;
            default: finish_one_row<D, 1>(job, panel); panel += 1;
        }
    }
}

// Compute panels from all inputs. `sums` is scratch memory; `next` are the weights that this thread reads next.
inline void linear_dense(const LinearJob& job, size_t first_panel, size_t end_panel, float* sums, const uint8_t* next) {
    const PackedMatrix& weight = job.weight;
    if (job.num_rows == 1) {
        switch (weight.dtype) {
            case Dtype::FP32: return linear_one_row<Dtype::FP32>(job, first_panel, end_panel);
            case Dtype::BF16: return linear_one_row<Dtype::BF16>(job, first_panel, end_panel);
            case Dtype::FP16: return linear_one_row<Dtype::FP16>(job, first_panel, end_panel);
            default: return linear_one_row<Dtype::INT8>(job, first_panel, end_panel);
        }
    }

    for (size_t first_row = 0; first_row < job.num_rows; first_row += LINEAR_ROW_BLOCK) {
        const size_t num_rows = std::min(LINEAR_ROW_BLOCK, job.num_rows - first_row);
        const Tiling tiling(num_rows);
        const size_t panel_sums = num_rows * PANEL;
        const bool alone = tiling.num_tiles == 1 && tiling.panels() == BAND;
        const size_t input_block = alone ? weight.in : weight.dtype == Dtype::INT8 ? 2 * INPUT_BLOCK : INPUT_BLOCK;

        for (size_t begin = 0; begin < weight.in; begin += input_block) {
            const size_t end = std::min(begin + input_block, weight.in);
            for (size_t panel = first_panel, panels; panel < end_panel; panel += panels) {
                const size_t width = weight.band_width(panel), in_band = panel % BAND;
                panels = tiling.panels();
                while (panels > std::min(end_panel - panel, width - in_band)) panels /= 2;
                const size_t input_bytes = weight.input_bytes(width);
                Tile tile{job.x.data + first_row * job.x.stride, job.x.stride, begin, end,
                          weight.at(panel, begin), input_bytes, in_band,
                          sums + (panel - first_panel) * panel_sums, panel_sums, nullptr, 0};
                if (alone) {
                    const bool last = panel + panels >= end_panel;
                    advance_alone(job, num_rows, tile, panel, panels, last ? next : weight.at(panel + panels, 0));
                } else {
                    // Each pass over a band prefetches the same part of the next band's block, or of the next block.
                    const size_t next_band = panel - in_band + BAND;
                    const uint8_t* ahead = next_band < end_panel ? weight.at(next_band, begin)
                                           : end < weight.in     ? weight.at(first_panel, end)
                                                                 : next;
                    tile.ahead = ahead + in_band * weight.bytes_before(end - begin, 1);
                    advance_block(job, tiling, tile, panels);
                }
            }
        }
        finish_tile(job, first_row, num_rows, first_panel, end_panel - first_panel, {sums, PANEL, panel_sums});
    }
}

}  // namespace RWKV_ISA
}  // namespace rwkv
