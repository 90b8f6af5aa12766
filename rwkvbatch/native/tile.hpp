// Register tiles of linear layers: the sums of some rows by some panels over some inputs.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

#if defined(RWKV_ISA_PORTABLE)
constexpr size_t MAX_TILE_ROWS = 2;
#else
constexpr size_t MAX_TILE_ROWS = 6;
#endif

// Panels of a tile of `rows` rows: enough chains to hide the latency, and few enough for the registers. In the portable code
// sixteen numbers do not fit into a register, and without fma instructions each is a function call. Larger tiles gain nothing
// there, and take minutes to compile when unrolled.
constexpr size_t tile_panels([[maybe_unused]] size_t rows) {
#if defined(RWKV_ISA_AVX512)
    return 4;
#elif defined(RWKV_ISA_PORTABLE)
    return 1;
#else
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
#endif
}

constexpr size_t LINE = 64;

// Distance in bytes at which weights are prefetched; it covers the latency of memory.
constexpr size_t AHEAD = 8192;

RWKV_INLINE void prefetch_lines(const uint8_t* from, size_t num_bytes) {
    for (size_t byte = 0; byte < num_bytes; byte += LINE) __builtin_prefetch(from + byte, 0, 2);
}

template <Dtype D> RWKV_INLINE F16 weights_at(const uint8_t* from) {
    if constexpr (D == Dtype::FP32) return load(reinterpret_cast<const float*>(from));
    if constexpr (D == Dtype::INT8) return widen_int8(reinterpret_cast<const int8_t*>(from));
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(from);
    return D == Dtype::BF16 ? widen_bf16(halves) : widen_fp16(halves);
}

// An input's weights for some panels. With AVX-512, those of bf16 alternate in pairs of panels, see `PackedMatrix`.
template <Dtype D, size_t PANELS> RWKV_INLINE void load_panels(const uint8_t* from, F16 (&weight)[PANELS]) {
#if defined(RWKV_ISA_AVX512)
    if constexpr (D == Dtype::BF16 && PANELS % 2 == 0) {
#pragma GCC unroll 4
        for (size_t p = 0; p < PANELS; p += 2) {
            const I16 words = load(reinterpret_cast<const uint32_t*>(from) + p / 2 * PANEL);
            weight[p] = from_bits(shift_left<16>(words));
            weight[p + 1] = from_bits(words & set1(0xffff0000u));
        }
        return;
    }
#endif
#pragma GCC unroll 4
    for (size_t p = 0; p < PANELS; ++p) weight[p] = weights_at<D>(from + p * PANEL * size_of(D));
}

// The scales after a block of int8 weights, for some panels.
struct Scales {
    const uint8_t* from;
    RWKV_INLINE F16 operator[](size_t panel) const {
        return load(reinterpret_cast<const float*>(from) + panel * PANEL);
    }
};

// The computation of one register tile for one block of inputs.
struct Tile {
    const float* x;
    size_t x_stride;
    size_t begin, end;      // inputs
    const uint8_t* weights; // at the first input
    size_t input_bytes;     // from one input to the next
    size_t panel_in_band;   // index of the first panel in its band
    float* sums;            // [panel][row][16]
    size_t panel_sums;      // distance between panels in `sums`
    const uint8_t* ahead;   // weights to prefetch
    size_t ahead_step;      // bytes to prefetch for each input
};

// A tile's position in its weights, and the weights to prefetch.
template <Dtype D, size_t PANELS> struct Stream {
    static constexpr size_t PANEL_BYTES = PANEL * size_of(D);
    const uint8_t *weights, *ahead;
    size_t input_bytes, ahead_step;

    RWKV_INLINE void next_input() { weights += input_bytes; }
    RWKV_INLINE void prefetch() {
        for (size_t byte = 0; byte < PANELS * PANEL_BYTES; byte += LINE) __builtin_prefetch(ahead + byte, 0, 2);
        ahead += ahead_step;
    }
};

// Add the products of inputs `begin` to `end`.
template <Dtype D, size_t ROWS, size_t PANELS>
RWKV_INLINE void add_products(const float* x, size_t x_stride, size_t begin, size_t end, Stream<D, PANELS>& stream,
                              F16 (&sum)[ROWS][PANELS]) {
    for (size_t k = begin; k < end; ++k) {
        stream.prefetch();
        F16 weight[PANELS];
        load_panels<D>(stream.weights, weight);
        stream.next_input();
        for (size_t i = 0; i < ROWS; ++i) {
            const F16 input = set1(x[i * x_stride + k]);
            for (size_t p = 0; p < PANELS; ++p) sum[i][p] = fma(input, weight[p], sum[i][p]);
        }
    }
}

template <Dtype D, size_t ROWS, size_t PANELS> void advance_tile(const Tile& tile) {
    Stream<D, PANELS> stream{tile.weights, tile.ahead, tile.input_bytes, tile.ahead_step};
    const float* const x = tile.x;
    const size_t x_stride = tile.x_stride, end = tile.end;
    F16 sum[ROWS][PANELS];
    const auto sums = [&](size_t row, size_t p) { return tile.sums + p * tile.panel_sums + row * PANEL; };
    if constexpr (D == Dtype::INT8) {
        for (size_t begin = tile.begin, stop; begin < end; begin = stop) {
            stop = std::min(begin + SCALED_INPUTS, end);
#pragma GCC unroll 6
            for (size_t i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
                for (size_t p = 0; p < PANELS; ++p) sum[i][p] = zero();
            const Scales scales{stream.weights + scales_after(stop - begin, tile.input_bytes, tile.panel_in_band)};
            add_products<D>(x, x_stride, begin, stop, stream, sum);
#pragma GCC unroll 4
            for (size_t p = 0; p < PANELS; ++p) {
                const F16 scale = scales[p];
#pragma GCC unroll 6
                for (size_t i = 0; i < ROWS; ++i)
                    store(sums(i, p), fma(sum[i][p], scale, begin == 0 ? zero() : load(sums(i, p))));
            }
            for (size_t row = 0; row < sizeof(float); ++row) {
                stream.prefetch();
                stream.next_input();
            }
        }
    } else {
        // Unrolled, or the compiler keeps the sums in memory.
#pragma GCC unroll 6
        for (size_t i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (size_t p = 0; p < PANELS; ++p) sum[i][p] = tile.begin == 0 ? zero() : load(sums(i, p));
        add_products<D>(x, x_stride, tile.begin, end, stream, sum);
#pragma GCC unroll 6
        for (size_t i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (size_t p = 0; p < PANELS; ++p) store(sums(i, p), sum[i][p]);
    }
}

using TileFunction = void (*)(const Tile&);

// Tiles of ROWS rows with at most `tile_panels(ROWS)` panels; only those are compiled.
template <Dtype D, size_t ROWS> TileFunction tile_of_panels(size_t panels) {
    if constexpr (ROWS > MAX_TILE_ROWS) {
        return nullptr;
    } else {
        if constexpr (tile_panels(ROWS) >= 4)
            if (panels == 4) return advance_tile<D, ROWS, 4>;
        if constexpr (tile_panels(ROWS) >= 2)
            if (panels == 2) return advance_tile<D, ROWS, 2>;
        return advance_tile<D, ROWS, 1>;
    }
}

template <Dtype D> TileFunction tile_function(size_t rows, size_t panels) {
    switch (rows) {
        case 1: return tile_of_panels<D, 1>(panels);
        case 2: return tile_of_panels<D, 2>(panels);
        case 3: return tile_of_panels<D, 3>(panels);
        case 4: return tile_of_panels<D, 4>(panels);
        case 5: return tile_of_panels<D, 5>(panels);
        default: return tile_of_panels<D, 6>(panels);
    }
}

inline TileFunction tile_function(Dtype dtype, size_t rows, size_t panels) {
    switch (dtype) {
        case Dtype::FP32: return tile_function<Dtype::FP32>(rows, panels);
        case Dtype::BF16: return tile_function<Dtype::BF16>(rows, panels);
        case Dtype::FP16: return tile_function<Dtype::FP16>(rows, panels);
        default: return tile_function<Dtype::INT8>(rows, panels);
    }
}

// The sums of a single row, kept in registers: during any other work between two bands no weights are read. `PREFETCH`: see
// `LinearJob::prefetch`; at the end of a band, the next band in memory is prefetched, which the thread reads next in most cases.
template <Dtype D, size_t PANELS, bool PREFETCH>
RWKV_INLINE void sum_one_row(const float* x, const PackedMatrix& weight, size_t first_panel, F16 (&total)[PANELS]) {
    constexpr size_t PANEL_BYTES = PANEL * size_of(D);
    const size_t inputs = weight.in, input_bytes = weight.input_bytes(weight.band_width(first_panel));
    const uint8_t* weights = weight.at(first_panel, 0);
    const auto add = [&](size_t begin, size_t end, F16 (&sum)[PANELS]) __attribute__((always_inline)) {
        for (size_t k = begin; k < end; ++k, weights += input_bytes) {
            if constexpr (PREFETCH) prefetch_lines(weights + AHEAD, PANELS * PANEL_BYTES);
            const F16 input = set1(x[k]);
            F16 weight[PANELS];
            load_panels<D>(weights, weight);
#pragma GCC unroll 4
            for (size_t p = 0; p < PANELS; ++p) sum[p] = fma(input, weight[p], sum[p]);
        }
    };
    F16 whole[PANELS];
#pragma GCC unroll 4
    for (size_t p = 0; p < PANELS; ++p) whole[p] = zero();
    if constexpr (D != Dtype::INT8) add(0, inputs, whole);
    for (size_t begin = 0, end; D == Dtype::INT8 && begin < inputs; begin = end) {
        end = std::min(begin + SCALED_INPUTS, inputs);
        F16 sum[PANELS];
        for (size_t p = 0; p < PANELS; ++p) sum[p] = zero();
        const Scales scales{weights + scales_after(end - begin, input_bytes, first_panel % BAND)};
        add(begin, end, sum);
        for (size_t p = 0; p < PANELS; ++p) whole[p] = fma(sum[p], scales[p], whole[p]);
        if constexpr (PREFETCH) prefetch_lines(weights + AHEAD, sizeof(float) * input_bytes);
        weights += sizeof(float) * input_bytes;
    }
    // Unrolled, or the compiler keeps the sums in memory.
#pragma GCC unroll 4
    for (size_t p = 0; p < PANELS; ++p) total[p] = whole[p];
}

}  // namespace RWKV_ISA
}  // namespace rwkv
