// Integer linear layers: weights of 8 or 4 bits times inputs rounded to 8 bits, summed exactly in 32 bits.
//
// Inputs are rounded per row and group of SCALED_INPUTS (`quantize_row`), so a row's integers depend on that row alone. Weights
// have a scale for each `scaled_inputs` inputs, as many or a part of them. With q the integers of a group of weights, s the
// weight's scale there and t the row's scale, an output is
//
//     total = 0;  for each group of inputs, first to last:
//         part = 0;  for each group of weights in it, first to last: part = fma(float(sum q_w q_x), s, part)
//         total = fma(part, t, total)
//
// followed by bias, activation and so on as in other layers (`finish`). A group's sum is below 2^24 (128 x 127 x 127), so it is
// exact in any order, and as a float. All else is a fixed sequence of IEEE operations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "by_input.hpp"
#include "integer_tile.hpp"
#include "kernels.hpp"
#include "linear.hpp"
#include "quads.hpp"
#include "vec.hpp"

namespace rwkv {
namespace RWKV_ISA {

// Round one row of inputs for weights of type D. Writes its quads and a record for each group of weights, `groups_stride` apart.
//
// A group's scale is max |x| / 127, and its integers are round(x (1 / scale)), halves to even. If all inputs of a group are below
// 2^-100 in magnitude, the group is zeros. If an input is NaN or infinite, the group's scale, and so every output, is NaN.
// `quantized` in model/ops/reference.py is the reference implementation.
template <Dtype D> void quantize_row(const float* x, size_t in, uint8_t* quads, InputGroup* groups, size_t groups_stride) {
    constexpr size_t CHUNK = LANES * SCALED_INPUTS, STEP = LANES / QUAD * QUAD_BYTES<D>;
    const F16 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    for (size_t chunk = 0; chunk < in; chunk += CHUNK) {
        const size_t chunk_end = std::min(chunk + CHUNK, in);
        // The scales of sixteen groups at once, so that no group waits for its divisions.
        float most[LANES] = {}, nans[LANES] = {}, scales[LANES], inverses[LANES];
        for (size_t begin = chunk, end, g = 0; begin < chunk_end; begin = end, ++g) {
            end = std::min(begin + SCALED_INPUTS, chunk_end);
            F16 largest = zero(), not_finite = zero();
            for (size_t k = begin; k < end; k += LANES) {
                const F16 values = load_upto(x + k, end - k);
                largest = greater(from_bits(bits(values) & set1(0x7fffffffu)), largest);
                not_finite = fma(values, zero(), not_finite);
            }
            most[g] = greatest_lane(largest);
            nans[g] = sum_lanes(not_finite);
        }
        const F16 scale = load(most) / set1(127.0f);
        store(scales, scale);
        store(inverses, set1(1.0f) / scale);
        for (size_t begin = chunk, end, g = 0; begin < chunk_end; begin = end, ++g) {
            end = std::min(begin + SCALED_INPUTS, chunk_end);
            const bool zeros = nans[g] != 0.0f || most[g] < 7.888609052210118e-31f;  // 2^-100
            InputGroup record{zeros ? nans[g] : scales[g], 0};
            const F16 inverse = set1(inverses[g]);
            for (size_t first = begin, last; first < end; first = last, groups += groups_stride) {
                last = std::min(first + scaled_inputs(D), end);
                if (zeros) {
                    std::memset(quads, 0, ceil_div(last - first, LANES) * STEP);
                    quads += ceil_div(last - first, LANES) * STEP;
                } else {
                    StartOfSum<D> start;
                    for (size_t k = first; k < last; k += LANES) {
                        const F16 shifted = load_upto(x + k, last - k) * inverse + magic;
                        start.inputs = start.inputs + (shifted - magic);
                        // The low bits hold the integer in two's complement; the addition extends its sign to 32 bits.
                        store_inputs<D>(quads, bits(shifted) + set1(0u - 0x4B400000u));
                        quads += STEP;
                    }
                    record.start = start.value();
                }
                *groups = record;
            }
        }
    }
}

inline void quantize(const QuantizeJob& job, size_t begin, size_t end) {
    const auto quantize_one = job.dtype == Dtype::INT4 ? quantize_row<Dtype::INT4> : quantize_row<Dtype::W8A8>;
    for (size_t row = begin; row < end; ++row)
        quantize_one(job.x.data + row * job.x.stride, job.width, reinterpret_cast<uint8_t*>(job.out.data + row * job.out.stride),
               job.groups + row, job.num_rows);
}

// The sums of a single row, kept in registers. `PREFETCH` as in `sum_one_row`.
template <Dtype D, size_t PANELS, bool PREFETCH>
RWKV_INLINE void sum_one_integer_row(const LinearJob& job, size_t first_panel, F16 (&total)[PANELS]) {
    constexpr size_t GROUP = scaled_inputs(D);
    const PackedMatrix& weight = job.weight;
    const size_t input_bytes = weight.input_bytes(weight.band_width(first_panel));
    const size_t band_scales = weight.band_width(first_panel) * scale_bytes(D);
    const uint8_t *weights = weight.at(first_panel, 0), *quads = reinterpret_cast<const uint8_t*>(job.x.data);
    F16 part[PANELS];
    for (size_t p = 0; p < PANELS; ++p) total[p] = part[p] = zero();
    for (size_t begin = 0, end; begin < weight.in; begin = end) {
        end = std::min(begin + GROUP, weight.in);
        const InputGroup group = job.groups[begin / GROUP];
        I16 sum[PANELS];
        for (size_t p = 0; p < PANELS; ++p) sum[p] = set1(static_cast<uint32_t>(group.start));
        const uint8_t* scales = weights + integer_scales_after(D, end - begin, input_bytes, first_panel % BAND);
        for (size_t k = begin; k < end; k += unit_inputs(D), weights += input_bytes) {
            if constexpr (PREFETCH) prefetch_lines(weights + AHEAD, PANELS * unit_bytes(D));
            const UnitInputs<D> row(quads);
            quads += UNIT_INPUT_BYTES<D>;
            for (size_t p = 0; p < PANELS; ++p)
                row.add_products_to(sum[p], load(reinterpret_cast<const uint32_t*>(weights) + p * PANEL));
        }
        for (size_t p = 0; p < PANELS; ++p) part[p] = fma(from_int(finish_sum<D>(sum[p])), load_scales<D>(scales, p), part[p]);
        if (ends_inputs(end, weight.in))
            for (size_t p = 0; p < PANELS; ++p) {
                total[p] = fma(part[p], set1(group.scale), total[p]);
                part[p] = zero();
            }
        if constexpr (PREFETCH) prefetch_lines(weights + AHEAD, band_scales);
        weights += band_scales;
    }
}

template <Dtype D, size_t PANELS> void finish_one_integer_row(const LinearJob& job, size_t first_panel) {
    F16 sum[PANELS];
    job.prefetch ? sum_one_integer_row<D, PANELS, true>(job, first_panel, sum)
                 : sum_one_integer_row<D, PANELS, false>(job, first_panel, sum);
    for (size_t p = 0; p < PANELS; ++p) store_finished(job, sum[p], 0, first_panel + p);
}

template <Dtype D> void one_integer_row(const LinearJob& job, size_t first_panel, size_t end_panel) {
    for (size_t panel = first_panel; panel < end_panel;) {
        switch (std::min(end_panel - panel, job.weight.band_width(panel) - panel % BAND)) {
            case 4: finish_one_integer_row<D, 4>(job, panel); panel += 4; break;
            case 3:
            case 2: finish_one_integer_row<D, 2>(job, panel); panel += 2; break;
            default: finish_one_integer_row<D, 1>(job, panel); panel += 1;
        }
    }
}

// As `linear`, for integer weights. `job.x` are rows that `quantize` wrote.
inline void integer_linear(const LinearJob& job, size_t task, float* sums, const uint8_t* next) {
    const PackedMatrix& weight = job.weight;
    const size_t first_panel = task * job.panels_per_task;
    const size_t end_panel = std::min(first_panel + job.panels_per_task, weight.num_panels());
    const bool int4 = weight.dtype == Dtype::INT4;
    const size_t quad_bytes = int4 ? QUAD_BYTES<Dtype::INT4> : QUAD_BYTES<Dtype::W8A8>;
    const size_t most_rows = max_integer_rows(weight.dtype);
    if (weight.by_input && job.num_rows <= MAX_SPARSE_ROWS) return linear_by_input(job, first_panel, end_panel, sums);
    if (job.num_rows == 1) {
        if (int4) one_integer_row<Dtype::INT4>(job, first_panel, end_panel);
        else one_integer_row<Dtype::W8A8>(job, first_panel, end_panel);
        return;
    }

    const size_t group_inputs = scaled_inputs(weight.dtype), block = integer_block(weight.by_input);
    TileWeights tile_weights(weight);
    for (size_t first_row = 0; first_row < job.num_rows; first_row += LINEAR_ROW_BLOCK) {
        const size_t num_rows = std::min(LINEAR_ROW_BLOCK, job.num_rows - first_row);
        const size_t units = ceil_div(num_rows, ROW_UNIT), num_tiles = ceil_div(units, most_rows / ROW_UNIT);
        for (size_t begin = 0; begin < weight.in; begin += block) {
            const size_t end = std::min(begin + block, weight.in);
            for (size_t panel = first_panel, panels; panel < end_panel; panel += panels) {
                const size_t band_width = weight.band_width(panel), in_band = panel % BAND;
                panels = integer_panels(ceil_div(units, num_tiles) * ROW_UNIT);
                while (panels > std::min(end_panel - panel, band_width - in_band)) panels /= 2;
                const size_t next_band = panel - in_band + BAND;
                const uint8_t* const weights = tile_weights.at(panel, begin, end);
                const uint8_t* ahead = next_band < end_panel ? weight.at(next_band, begin)
                                       : end < weight.in     ? weight.at(first_panel, end)
                                                             : next;
                ahead += in_band * weight.bytes_before(end - begin, 1);
                // Each tile prefetches a part of the next weights, until all are prefetched.
                const size_t ahead_bytes = weight.bytes_before(end - begin, panels);
                const size_t tile_units = ceil_div(end - begin, unit_inputs(weight.dtype));
                const size_t ahead_step = ceil_div(ahead_bytes, num_tiles * tile_units * LINE) * LINE;
                // A single tile of whole bands reads the weights in the order of memory, which the processor prefetches better.
                const uint8_t* const ahead_end = num_tiles == 1 && panels == BAND && !job.prefetch ? ahead : ahead + ahead_bytes;
                float* tile_sums = sums + (panel - first_panel) * num_rows * PANEL;
                for (size_t t = 0, row = first_row; t < num_tiles; ++t) {
                    const size_t row_units = units / num_tiles + (t < units % num_tiles ? 1 : 0);
                    const size_t tile_rows = std::min(row_units * ROW_UNIT, first_row + num_rows - row);
                    const IntegerTile tile{job.groups + begin / group_inputs * job.num_rows + row, job.num_rows,
                                           reinterpret_cast<const uint8_t*>(job.x.data + row * job.x.stride) + begin / QUAD * quad_bytes,
                                           job.x.stride * sizeof(float), begin, end, weights, band_width, in_band,
                                           tile_sums, ahead, ahead < ahead_end ? ahead_step : 0};
                    if (end == weight.in) fetch_outputs(job, row, tile_rows, panel, panels);
                    (int4 ? integer_tile_of<Dtype::INT4>(tile_rows, panels)
                          : integer_tile_of<Dtype::W8A8>(tile_rows, panels))(tile);
                    if (end == weight.in)
                        finish_tile(job, row, tile_rows, panel, panels, {tile_sums, panels * PANEL, PANEL});
                    ahead += ahead_step * tile_units;
                    row += tile_rows;
                    tile_sums += tile_rows * panels * PANEL;
                }
            }
        }
    }
}

}  // namespace RWKV_ISA
}  // namespace rwkv
