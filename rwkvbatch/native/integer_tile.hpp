// Register tiles of products of integers: the sums of some rows by some panels over some inputs.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels.hpp"
#include "quads.hpp"
#include "tile.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

static_assert(QUAD_BYTES <= MAX_QUAD_BYTES);

// Of one row and group of inputs: what its integers are multiplied by, and what every sum of their products begins with.
struct InputGroup {
    float scale;
    int32_t start;
};
static_assert(sizeof(InputGroup) == INPUT_GROUP_BYTES);

#if defined(RWKV_ISA_AVX512) && defined(RWKV_VNNI)
constexpr size_t MAX_INTEGER_ROWS = 6, INTEGER_PANELS = 4;
#elif defined(RWKV_ISA_AVX512)
constexpr size_t MAX_INTEGER_ROWS = 4, INTEGER_PANELS = 4;
#elif defined(RWKV_VNNI) || defined(RWKV_DOT)
constexpr size_t MAX_INTEGER_ROWS = 6, INTEGER_PANELS = 1;
#else
constexpr size_t MAX_INTEGER_ROWS = 4, INTEGER_PANELS = 1;
#endif

// Rows are divided among tiles in multiples of this number.
#if defined(RWKV_MATRIX)
constexpr size_t ROW_UNIT = 2;
#else
constexpr size_t ROW_UNIT = 1;
#endif
static_assert(MAX_INTEGER_ROWS % ROW_UNIT == 0);

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

// Scale the sums of a group, sum(row, panel), and add them to the totals in memory. `scales` are the weights'.
template <size_t ROWS, size_t PANELS, class Sum>
RWKV_INLINE void add_to_totals(const IntegerTile& tile, size_t group, const uint8_t* scales, const Sum& sum) {
    // Unrolled, or the sums would live in memory.
#pragma GCC unroll 4
    for (size_t p = 0; p < PANELS; ++p) {
        const F16 scale = load(reinterpret_cast<const float*>(scales) + p * PANEL);
#pragma GCC unroll 6
        for (size_t i = 0; i < ROWS; ++i) {
            float* const total = tile.sums + p * tile.panel_sums + i * PANEL;
            const F16 both = scale * set1(tile.x.group(i, group).scale);
            store(total, fma(from_int(sum(i, p)), both, group == 0 ? zero() : load(total)));
        }
    }
}

#if defined(RWKV_MATRIX)

// By products of matrices: two rows by two outputs by eight inputs an instruction. What it makes of two rows and outputs lies in the
// order of the outputs, each with the one row and the other; a row without a partner is its own.
template <Dtype D, size_t ROWS, size_t PANELS> void integer_tile(const IntegerTile& tile) {
    static_assert(PANELS == 1);
    constexpr size_t GROUP = scaled_inputs(D), PAIRS = ceil_div(ROWS, 2), STEP = 2 * QUAD;
    static_assert(GROUP % STEP == 0);
    const uint8_t *weights = tile.weights, *ahead = tile.ahead;
    const size_t quad_bytes = tile.quad_bytes, stride = tile.x.stride;
    for (size_t begin = tile.begin, end; begin < tile.end; begin = end) {
        end = std::min(begin + GROUP, tile.end);
        MatrixSums sum[PAIRS];
#pragma GCC unroll 3
        for (size_t pair = 0; pair < PAIRS; ++pair) {
            const size_t second = std::min(2 * pair + 1, ROWS - 1);
            sum[pair] = start_sums(tile.x.group(2 * pair, begin / GROUP).start, tile.x.group(second, begin / GROUP).start);
        }
        const uint8_t* x = tile.x.quads + begin;
        const uint8_t* const scales = weights + ceil_div(end - begin, QUAD) * quad_bytes;
        // Where a group ends with half a step, the other half's inputs are zeros, and what is read for its weights are scales.
        for (size_t k = begin; k < end; k += STEP, weights += 2 * quad_bytes, x += STEP, ahead += 2 * tile.ahead_step) {
            for (size_t byte = 0; byte < 2 * tile.ahead_step; byte += LINE) __builtin_prefetch(ahead + byte, 0, 2);
            RowPair inputs[PAIRS];
            for (size_t pair = 0; pair < PAIRS; ++pair)
                inputs[pair] = load_pair(x + 2 * pair * stride, x + std::min(2 * pair + 1, ROWS - 1) * stride);
            for (size_t four = 0; four < PANEL / 4; ++four) {
                const OutputPairs outputs = load_outputs(weights + four * 4 * QUAD, weights + quad_bytes + four * 4 * QUAD);
                for (size_t pair = 0; pair < PAIRS; ++pair) add_products(sum[pair], four, outputs, inputs[pair]);
            }
        }
        weights = scales + quad_bytes;
        add_to_totals<ROWS, 1>(tile, begin / GROUP, scales, [&](size_t i, size_t) __attribute__((always_inline)) {
            return sums_of_row(sum[i / 2], i % 2);
        });
    }
}

#else

template <Dtype D, size_t ROWS, size_t PANELS> void integer_tile(const IntegerTile& tile) {
    constexpr size_t GROUP = scaled_inputs(D);
    const uint8_t *weights = tile.weights, *ahead = tile.ahead;
    const size_t quad_bytes = tile.quad_bytes, stride = tile.x.stride;
    for (size_t begin = tile.begin, end; begin < tile.end; begin = end) {
        end = std::min(begin + GROUP, tile.end);
        I16 sum[ROWS][PANELS];
#pragma GCC unroll 6
        for (size_t i = 0; i < ROWS; ++i) {
            const I16 start = set1(static_cast<uint32_t>(tile.x.group(i, begin / GROUP).start));
#pragma GCC unroll 4
            for (size_t p = 0; p < PANELS; ++p) sum[i][p] = start;
        }
        const uint8_t* x = tile.x.quads + begin / QUAD * QUAD_BYTES;
        for (size_t k = begin; k < end; k += QUAD, weights += quad_bytes, x += QUAD_BYTES, ahead += tile.ahead_step) {
            for (size_t byte = 0; byte < tile.ahead_step; byte += LINE) __builtin_prefetch(ahead + byte, 0, 2);
            QuadWeights weight[PANELS];
            for (size_t p = 0; p < PANELS; ++p)
                weight[p] = split_quad<D>(load(reinterpret_cast<const uint32_t*>(weights) + p * PANEL));
            for (size_t i = 0; i < ROWS; ++i) {
                const QuadInputs inputs = load_inputs(x + i * stride);
                for (size_t p = 0; p < PANELS; ++p) add_products(sum[i][p], weight[p], inputs);
            }
        }
        add_to_totals<ROWS, PANELS>(tile, begin / GROUP, weights, [&](size_t i, size_t p) __attribute__((always_inline)) {
            return sum[i][p];
        });
        weights += quad_bytes;
    }
}

#endif

using IntegerTileFunction = void (*)(const IntegerTile&);

template <Dtype D, size_t PANELS> IntegerTileFunction integer_tile_of(size_t rows) {
    switch (rows) {
        case 1: return integer_tile<D, 1, PANELS>;
        case 2: return integer_tile<D, 2, PANELS>;
        case 3: return integer_tile<D, 3, PANELS>;
        case 5: if constexpr (MAX_INTEGER_ROWS >= 5) return integer_tile<D, 5, PANELS>; [[fallthrough]];
        case 6: if constexpr (MAX_INTEGER_ROWS >= 6) return integer_tile<D, 6, PANELS>; [[fallthrough]];
        default: return integer_tile<D, 4, PANELS>;
    }
}

template <Dtype D> IntegerTileFunction integer_tile_of(size_t rows, size_t panels) {
    if constexpr (INTEGER_PANELS > 1) {
        if (panels == 4) return integer_tile_of<D, 4>(rows);
        if (panels == 2) return integer_tile_of<D, 2>(rows);
    }
    return integer_tile_of<D, 1>(rows);
}

}  // namespace RWKV_ISA
}  // namespace rwkv
