// Register tiles of integer products: the sums of some rows by some panels over some inputs.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.hpp"
#include "quads.hpp"
#include "tile.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

static_assert(QUAD_BYTES<Dtype::W8A8> <= MAX_QUAD_BYTES && QUAD_BYTES<Dtype::INT4> <= MAX_QUAD_BYTES);

// Tile sizes for which the sums, and the weights and inputs of a part of a unit, fit into the registers. With AVX-512 the totals
// and all parts of the weights do, too.
#if defined(RWKV_ISA_AVX512)
constexpr size_t integer_panels(size_t rows) { return rows <= 3 ? 4 : 2; }
#else
constexpr size_t integer_panels(size_t) { return 1; }
#endif
#if defined(RWKV_ISA_PORTABLE) || (defined(RWKV_ISA_NEON) && !defined(RWKV_DOT))
constexpr size_t max_integer_rows(Dtype) { return 4; }
#else
#if defined(RWKV_ISA_AVX2)
constexpr size_t max_integer_rows(Dtype dtype) { return dtype == Dtype::INT4 ? 5 : 6; }
#else
constexpr size_t max_integer_rows(Dtype) { return 6; }
#endif
#endif

// Rows are divided among tiles in multiples of this number.
#if defined(RWKV_MATRIX)
constexpr size_t ROW_UNIT = 2;
#else
constexpr size_t ROW_UNIT = 1;
#endif
static_assert(max_integer_rows(Dtype::W8A8) % ROW_UNIT == 0 && max_integer_rows(Dtype::INT4) % ROW_UNIT == 0);

// Rows that are addressed from one register.
constexpr size_t ROWS_PER_POINTER = 3;

// Inputs in a block, whose weights several tiles share. The more, the less often a tile begins and ends; those of a tile's panels
// should fit into the first-level cache. Weights stored by input are rearranged for all panels of a band.
constexpr size_t integer_block(bool by_input) { return by_input ? 256 : 1024; }
static_assert(integer_block(true) % SCALED_INPUTS == 0 && integer_block(false) % SCALED_INPUTS == 0);

// Call `body` with 0 to N - 1 as compile-time constants. Arrays that are only indexed with these stay in registers; where the
// compiler unrolls a loop by itself, that depends on the function's size.
template <size_t N, class Body> RWKV_INLINE void unrolled(const Body& body) {
    [&]<size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
        (body(std::integral_constant<size_t, I>()), ...);
    }(std::make_index_sequence<N>());
}
#define RWKV_UNROLLED __attribute__((always_inline))

// The computation of one register tile for one block of inputs.
struct IntegerTile {
    const InputGroup* groups;  // at the block's first group and the tile's first row
    size_t groups_stride;      // from one group to the next
    const uint8_t* quads;      // at the block's first input and the tile's first row
    size_t quads_stride;       // bytes from one row to the next
    size_t begin, end;         // inputs
    const uint8_t* weights;    // at the first input and the tile's first panel
    size_t band_width, panel_in_band;  // panels of the band, and the index of the first panel in it
    float* sums;               // [row][panel][16]
    const uint8_t* ahead;      // weights to prefetch
    size_t ahead_step;         // bytes to prefetch for each unit of inputs
};

// Inputs whose integers fill a cache line.
template <Dtype D> constexpr size_t LINE_INPUTS = LINE / QUAD_BYTES<D> * QUAD;

// The current weights of a tile, and the weights to prefetch.
struct IntegerStream {
    const uint8_t *weights, *ahead;
    size_t unit_step, ahead_step;

    // Prefetch for `units` units of inputs.
    RWKV_INLINE void prefetch(size_t units) {
        const uint8_t* const end = ahead + units * ahead_step;
        for (; ahead < end; ahead += LINE) __builtin_prefetch(ahead, 0, 2);
    }
};

RWKV_INLINE F16 load_bf16(const uint8_t* from) {
    uint16_t halves[PANEL];
    uint32_t words[PANEL];
    std::memcpy(halves, from, sizeof halves);
    for (size_t i = 0; i < PANEL; ++i) words[i] = static_cast<uint32_t>(halves[i]) << 16;
    return from_bits(load(words));
}

// A panel's scales, of the scales of a group that begin at `scales`.
template <Dtype D> RWKV_INLINE F16 load_scales(const uint8_t* scales, size_t panel) {
    const uint8_t* const from = scales + panel * scale_bytes(D);
    return D == Dtype::INT4 ? load_bf16(from) : load(reinterpret_cast<const float*>(from));
}

// Whether the group of weights that ends before input `end`, of `inputs`, is the last one of a group of inputs.
constexpr bool ends_inputs(size_t end, size_t inputs) { return end % SCALED_INPUTS == 0 || end == inputs; }

// Scale the sums of a group of weights, sum(row, panel), and add them to the row's parts in memory, [row][panel][16]. `scales` are
// the weights'.
template <Dtype D, size_t ROWS, size_t PANELS, class Sum>
RWKV_INLINE void add_to_parts(float* parts, const uint8_t* scales, const Sum& sum) {
    __asm__ volatile("" ::: "memory");  // or the compiler copies the parts, for which there are no registers, to the stack
    // Unrolled, or the compiler keeps the sums in memory.
#pragma GCC unroll 4
    for (size_t p = 0; p < PANELS; ++p) {
        const F16 scale = load_scales<D>(scales, p);
#pragma GCC unroll 6
        for (size_t i = 0; i < ROWS; ++i) {
            float* const part = parts + (i * PANELS + p) * PANEL;
            store(part, fma(from_int(sum(i, p)), scale, load(part)));
        }
    }
}

// Scale the parts of a group of inputs, add them to the totals in memory, and begin the next parts.
template <size_t ROWS, size_t PANELS> RWKV_INLINE void add_parts(float* totals, float* parts, const InputGroup* rows) {
    for (size_t i = 0; i < ROWS; ++i) {
        const F16 scale = set1(rows[i].scale);
        for (size_t p = 0; p < PANELS; ++p, totals += PANEL, parts += PANEL) {
            store(totals, fma(load(parts), scale, load(totals)));
            store(parts, zero());
        }
    }
}

// Scale the sums of a group of weights and inputs, and add them to the totals in memory.
template <Dtype D, size_t ROWS, size_t PANELS, class Sum>
RWKV_INLINE void add_to_totals(float* totals, const InputGroup* rows, const uint8_t* scales, const Sum& sum) {
    __asm__ volatile("" ::: "memory");  // as in `add_to_parts`
#pragma GCC unroll 4
    for (size_t p = 0; p < PANELS; ++p) {
        const F16 scale = load_scales<D>(scales, p);
#pragma GCC unroll 6
        for (size_t i = 0; i < ROWS; ++i) {
            float* const total = totals + (i * PANELS + p) * PANEL;
            store(total, fma(fma(from_int(sum(i, p)), scale, zero()), set1(rows[i].scale), load(total)));
        }
    }
}

#if defined(RWKV_MATRIX)

// With matrix products: two rows by two outputs by eight inputs per instruction. The results are in the order of the outputs, each
// with the first and the second row. A row without a partner is paired with itself.
template <Dtype D, size_t ROWS, size_t PANELS> struct GroupSums {
    static_assert(PANELS == 1);
    static constexpr size_t PAIRS = ceil_div(ROWS, 2), STEP = 2 * QUAD;
    static_assert(scaled_inputs(D) % STEP == 0);
    MatrixSums sum[PAIRS];

    RWKV_INLINE void start(const InputGroup* rows) {
#pragma GCC unroll 3
        for (size_t pair = 0; pair < PAIRS; ++pair)
            sum[pair] = start_sums(rows[2 * pair].start, rows[std::min(2 * pair + 1, ROWS - 1)].start);
    }
    // If a group ends with half a step, the inputs of the other half are zeros, and the bytes read as its weights are scales.
    RWKV_INLINE void add(IntegerStream& stream, const uint8_t* x, size_t stride, size_t inputs) {
        constexpr size_t UNITS = STEP / unit_inputs(D);
        for (size_t k = 0; k < inputs; k += STEP, stream.weights += UNITS * stream.unit_step, x += STEP) {
            stream.prefetch(UNITS);
            RowPair rows[PAIRS];
            for (size_t pair = 0; pair < PAIRS; ++pair)
                rows[pair] = load_pair(x + 2 * pair * stride, x + std::min(2 * pair + 1, ROWS - 1) * stride);
            for (size_t four = 0; four < PANEL / 4; ++four) {
                const uint8_t* const unit = stream.weights + four * 4 * QUAD;
                const OutputPairs outputs = load_outputs<D>(unit, unit + stream.unit_step);
                for (size_t pair = 0; pair < PAIRS; ++pair) add_products(sum[pair], four, outputs, rows[pair]);
            }
        }
    }
    RWKV_INLINE I16 operator()(size_t i, size_t) const { return sums_of_row(sum[i / 2], i % 2); }
};

#elif defined(RWKV_ISA_AVX512)

// The sums of a group of inputs; each begins with `InputGroup::start`.
template <Dtype D, size_t ROWS, size_t PANELS> struct GroupSums {
    I16 sum[ROWS][PANELS];

    RWKV_INLINE void start(const InputGroup* rows) {
        unrolled<ROWS>([&](auto i) RWKV_UNROLLED {
            const I16 first = set1(static_cast<uint32_t>(rows[i].start));
            unrolled<PANELS>([&](auto p) RWKV_UNROLLED { sum[i][p] = first; });
        });
    }
    RWKV_INLINE void add(IntegerStream& stream, const uint8_t* x, size_t stride, size_t inputs) {
        const uint8_t* second = x + ROWS_PER_POINTER * stride;
        for (size_t units = ceil_div(inputs, unit_inputs(D)); units > 0; --units) {
            stream.prefetch(1);
            I16 weight[PANELS][NUM_PARTS<D>];
            unrolled<PANELS>([&](auto p) RWKV_UNROLLED {
                const I16 bytes = load(reinterpret_cast<const uint32_t*>(stream.weights) + p * PANEL);
                unrolled<NUM_PARTS<D>>([&](auto part) RWKV_UNROLLED { weight[p][part] = part_of<D, part>(bytes); });
            });
            unrolled<ROWS>([&](auto i) RWKV_UNROLLED {
                const uint8_t* const row = i < ROWS_PER_POINTER ? x + i * stride : second + (i - ROWS_PER_POINTER) * stride;
                unrolled<NUM_PARTS<D>>([&](auto part) RWKV_UNROLLED {
                    const I16 word = load_inputs<D>(row + part * WORD);
                    unrolled<PANELS>([&](auto p) RWKV_UNROLLED { add_products<D>(sum[i][p], weight[p][part], word); });
                });
            });
            x += UNIT_INPUT_BYTES<D>;
            second += UNIT_INPUT_BYTES<D>;
            stream.weights += stream.unit_step;
        }
    }
};

// The totals of a tile, and the parts of the current group of inputs. Where a group of inputs has several groups of weights, the
// parts are in registers, and otherwise the totals.
template <Dtype D, size_t ROWS, size_t PANELS> class TileTotals {
public:
    RWKV_INLINE TileTotals(float* memory, bool begins) : memory_(memory) {
        each([&](auto i, auto p) RWKV_UNROLLED {
            const F16 total = begins ? zero() : load(at(i, p));
            if constexpr (IN_REGISTERS) sum_[i][p] = total;
            else {
                store(at(i, p), total);
                sum_[i][p] = zero();
            }
        });
    }
    RWKV_INLINE void add(const GroupSums<D, ROWS, PANELS>& group, const InputGroup* rows, const uint8_t* scales, bool ends) {
        F16 scale[PANELS];
        unrolled<PANELS>([&](auto p) RWKV_UNROLLED { scale[p] = load_scales<D>(scales, p); });
        each([&](auto i, auto p) RWKV_UNROLLED {
            const F16 part = fma(from_int(finish_sum<D>(group.sum[i][p])), scale[p], IN_REGISTERS ? zero() : sum_[i][p]);
            sum_[i][p] = IN_REGISTERS ? fma(part, set1(rows[i].scale), sum_[i][p]) : part;
        });
        if (IN_REGISTERS || !ends) return;
        each([&](auto i, auto p) RWKV_UNROLLED {
            store(at(i, p), fma(sum_[i][p], set1(rows[i].scale), load(at(i, p))));
            sum_[i][p] = zero();
        });
    }
    RWKV_INLINE void end() const {
        if constexpr (IN_REGISTERS) each([&](auto i, auto p) RWKV_UNROLLED { store(at(i, p), sum_[i][p]); });
    }

private:
    static constexpr bool IN_REGISTERS = scaled_inputs(D) == SCALED_INPUTS;

    float* memory_;  // [row][panel][16]
    F16 sum_[ROWS][PANELS];

    RWKV_INLINE float* at(size_t i, size_t p) const { return memory_ + (i * PANELS + p) * PANEL; }
    template <class Body> RWKV_INLINE static void each(const Body& body) {
        unrolled<ROWS>([&](auto i) RWKV_UNROLLED { unrolled<PANELS>([&](auto p) RWKV_UNROLLED { body(i, p); }); });
    }
};

#else

// Units of inputs that are added without loop control and prefetching in between, since with small registers the number of
// instructions is a limit; 0 for no such unrolling.
#if defined(RWKV_ISA_AVX2)
constexpr size_t UNROLLED_UNITS = 4;
#else
constexpr size_t UNROLLED_UNITS = 0;
#endif
// The sums of a group of inputs; each begins with `InputGroup::start`.
template <Dtype D, size_t ROWS, size_t PANELS> struct GroupSums {
    I16 sum[ROWS][PANELS];

    RWKV_INLINE void start(const InputGroup* rows) {
#pragma GCC unroll 6
        for (size_t i = 0; i < ROWS; ++i) {
            const I16 first = set1(static_cast<uint32_t>(rows[i].start));
#pragma GCC unroll 4
            for (size_t p = 0; p < PANELS; ++p) sum[i][p] = first;
        }
    }
    RWKV_INLINE void add(IntegerStream& stream, const uint8_t* x, size_t stride, size_t inputs) {
        size_t units = ceil_div(inputs, unit_inputs(D));
        for (; UNROLLED_UNITS > 0 && units >= UNROLLED_UNITS; units -= UNROLLED_UNITS, x += UNROLLED_UNITS * UNIT_INPUT_BYTES<D>)
            add_units(stream, x, stride, UNROLLED_UNITS);
        add_units(stream, x, stride, units);
    }
    // One part of all units is added before the next part, since the registers do not hold the weights of all parts.
    template <size_t PART = 0> RWKV_INLINE void add_units(IntegerStream& stream, const uint8_t* x, size_t stride, size_t units) {
        const uint8_t *first = x + PART * WORD, *second = first + ROWS_PER_POINTER * stride, *weights = stream.weights;
        if constexpr (PART == 0 && UNROLLED_UNITS > 0) stream.prefetch(units);
        // Or the compiler loads the weights once for all parts, and keeps them in memory.
        if constexpr (PART > 0 && UNROLLED_UNITS > 0) __asm__ volatile("" ::: "memory");
#if defined(RWKV_ISA_AVX2)
#pragma GCC unroll 4
#else
#pragma GCC unroll 1
#endif
        for (size_t unit = 0; unit < units; ++unit, weights += stream.unit_step) {
            if constexpr (PART == 0 && UNROLLED_UNITS == 0) stream.prefetch(1);
            I16 weight[PANELS];
            for (size_t p = 0; p < PANELS; ++p)
                weight[p] = part_of<D, PART>(load(reinterpret_cast<const uint32_t*>(weights) + p * PANEL));
            for (size_t i = 0; i < ROWS; ++i) {
                const auto row = load_inputs<D>(i < ROWS_PER_POINTER ? first + i * stride : second + (i - ROWS_PER_POINTER) * stride);
                for (size_t p = 0; p < PANELS; ++p) add_products<D>(sum[i][p], weight[p], row);
            }
            first += UNIT_INPUT_BYTES<D>;
            second += UNIT_INPUT_BYTES<D>;
            // Or the compiler keeps an offset for each row and unit in memory.
            if constexpr (UNROLLED_UNITS > 0) __asm__("" : "+r"(first), "+r"(second), "+r"(weights));
        }
        if constexpr (PART + 1 < NUM_PARTS<D>) add_units<PART + 1>(stream, x, stride, units);
        else stream.weights = weights;
    }
    RWKV_INLINE I16 operator()(size_t i, size_t p) const { return finish_sum<D>(sum[i][p]); }
};

#endif

#if !defined(RWKV_ISA_AVX512)

// The totals of a tile, and the parts of the current group of inputs if it has several groups of weights, in memory.
template <Dtype D, size_t ROWS, size_t PANELS> class TileTotals {
public:
    RWKV_INLINE TileTotals(float* totals, bool begins) : totals_(totals) {
        for (size_t i = 0; i < ROWS * PANELS; ++i) {
            if (begins) store(totals + i * PANEL, zero());
            if constexpr (HAS_PARTS) store(parts_ + i * PANEL, zero());
        }
    }
    RWKV_INLINE void add(const GroupSums<D, ROWS, PANELS>& group, const InputGroup* rows, const uint8_t* scales, bool ends) {
        if constexpr (HAS_PARTS) {
            float* parts = parts_;
            __asm__("" : "+r"(parts));  // memory that the compiler does not turn into registers, see `add_to_parts`
            add_to_parts<D, ROWS, PANELS>(parts, scales, group);
            if (ends) add_parts<ROWS, PANELS>(totals_, parts, rows);
        } else add_to_totals<D, ROWS, PANELS>(totals_, rows, scales, group);
    }
    RWKV_INLINE void end() const {}

private:
    static constexpr bool HAS_PARTS = scaled_inputs(D) < SCALED_INPUTS;

    float* totals_;  // [row][panel][16]
    alignas(64) float parts_[HAS_PARTS ? ROWS * PANELS * PANEL : 1];
};

#endif

template <Dtype D, size_t ROWS, size_t PANELS> void integer_tile(const IntegerTile& tile) {
    const size_t unit_step = tile.band_width * unit_bytes(D), in_band = tile.panel_in_band;
    const size_t next_group = tile.band_width * scale_bytes(D) + in_band * (unit_bytes(D) - scale_bytes(D));
    const size_t quads_stride = tile.quads_stride, groups_stride = tile.groups_stride, end = tile.end;
    IntegerStream stream{tile.weights, tile.ahead, unit_step, tile.ahead_step};
    const uint8_t* quads = tile.quads;
    const InputGroup* rows = tile.groups;
    TileTotals<D, ROWS, PANELS> totals(tile.sums, tile.begin == 0);
    for (size_t begin = tile.begin, inputs; begin < end; begin += inputs) {
        inputs = std::min(scaled_inputs(D), end - begin);
        const uint8_t* const scales = stream.weights + integer_scales_after(D, inputs, unit_step, in_band);
        GroupSums<D, ROWS, PANELS> group;
        if (D == Dtype::INT4 && begin % LINE_INPUTS<D> == 0)
            for (size_t i = 0; i < ROWS; ++i) __builtin_prefetch(quads + (ROWS + i) * quads_stride, 0, 3);
        group.start(rows);
        group.add(stream, quads, quads_stride, inputs);
        totals.add(group, rows, scales, ends_inputs(begin + inputs, end));
        stream.weights = scales + next_group;
        quads += inputs / QUAD * QUAD_BYTES<D>;
        rows += groups_stride;
    }
    totals.end();
}

using IntegerTileFunction = void (*)(const IntegerTile&);

template <Dtype D, size_t PANELS, size_t MOST_ROWS> IntegerTileFunction integer_tile_of(size_t rows) {
    switch (rows) {
        case 1: return integer_tile<D, 1, PANELS>;
        case 2: return integer_tile<D, 2, PANELS>;
        case 4: if constexpr (MOST_ROWS >= 4) return integer_tile<D, 4, PANELS>; [[fallthrough]];
        case 5: if constexpr (MOST_ROWS >= 5) return integer_tile<D, 5, PANELS>; [[fallthrough]];
        case 6: if constexpr (MOST_ROWS >= 6) return integer_tile<D, 6, PANELS>; [[fallthrough]];
        default: return integer_tile<D, 3, PANELS>;
    }
}

template <Dtype D> IntegerTileFunction integer_tile_of(size_t rows, size_t panels) {
    constexpr size_t MOST_ROWS = max_integer_rows(D);
    if constexpr (integer_panels(1) > 1) {
        if (panels == 4) return integer_tile_of<D, 4, 3>(rows);
        if (panels == 2) return integer_tile_of<D, 2, MOST_ROWS>(rows);
    }
    return integer_tile_of<D, 1, MOST_ROWS>(rows);
}

}  // namespace RWKV_ISA
}  // namespace rwkv
