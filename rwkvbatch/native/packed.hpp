// The layout of a linear layer's weight in memory and in a file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace rwkv {

// W8A8 and INT4 are for integer products, in which inputs are rounded too, see `integer.hpp`.
enum class Dtype { FP32, BF16, FP16, INT8, W8A8, INT4 };

constexpr size_t PANEL = 16;  // outputs of a panel: their weights for an input are adjacent in a packed matrix
constexpr size_t BAND = 4;    // panels of a band, which is stored input by input

// int8 and W8A8 weights: inputs of an output that share an fp32 scale. A weight is its integer times the scale.
constexpr size_t SCALED_INPUTS = 128;
// The same for INT4, with scales in bf16.
constexpr size_t INT4_SCALED_INPUTS = 32;

// Bytes of a weight; not defined for W8A8 and INT4.
constexpr size_t size_of(Dtype dtype) { return dtype == Dtype::FP32 ? 4 : dtype == Dtype::INT8 ? 1 : 2; }
constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

constexpr bool is_integer(Dtype dtype) { return dtype == Dtype::W8A8 || dtype == Dtype::INT4; }
// Inputs that share a scale; 0 if weights have no scales.
constexpr size_t scaled_inputs(Dtype dtype) {
    return dtype == Dtype::INT4 ? INT4_SCALED_INPUTS : dtype == Dtype::INT8 || dtype == Dtype::W8A8 ? SCALED_INPUTS : 0;
}
// The stored value of a weight of zero: integer weights are unsigned.
constexpr int zero_weight(Dtype dtype) { return dtype == Dtype::INT4 ? 8 : 128; }
// The unit of a packed matrix: inputs whose weights are adjacent for each output, and the bytes of a panel's weights for them.
constexpr size_t QUAD = 4;
constexpr size_t unit_inputs(Dtype dtype) { return dtype == Dtype::W8A8 ? QUAD : dtype == Dtype::INT4 ? 2 * QUAD : 1; }
constexpr size_t unit_bytes(Dtype dtype) { return PANEL * (is_integer(dtype) ? QUAD : size_of(dtype)); }
// Bytes of a panel's scales for one group of inputs.
constexpr size_t scale_bytes(Dtype dtype) { return PANEL * (dtype == Dtype::INT4 ? sizeof(uint16_t) : sizeof(float)); }

// A matrix is divided into panels of 16 outputs, and these into bands of four panels (the last band may have fewer). A band is one
// stretch of memory: for each input in turn, the weights of the band's outputs. Missing outputs are zero.
// - BF16: the outputs of a panel are in the order 0, 8, 1, 9, ..., so that widening is a shift and a mask. With AVX-512, the outputs
//   of two panels alternate instead (the first and second panel of a band, and the third and fourth), so that the two operations
//   on one register give both panels; tasks and tiles never divide such a pair.
// - INT8: the scales of the band's outputs follow after each SCALED_INPUTS inputs, and after the last input.
// - W8A8: for each four inputs in turn, the four weights of each output as bytes, with 128 added. Scales as for INT8.
// - INT4: for each eight inputs in turn, four bytes for each output: the weights of the first four inputs in the low halves of the
//   bytes, those of the others in the high halves, with 8 added. Scales follow after each INT4_SCALED_INPUTS inputs.
//
// W8A8 weights whose inputs are mostly zero are stored `by_input`, if their numbers of outputs and inputs allow it
// (`fits_by_input`): for each input in turn, a cache line with its weights for the 64 outputs of a band. Byte 16 l + 4 p + j
// belongs to output 4 l + j of panel p, so that two rounds of `zip_low` and `zip_high` convert the lines of four inputs to the
// quads of four panels. Scales are as above.
struct PackedMatrix {
    const uint8_t* data;
    Dtype dtype;
    size_t out, in;
    bool by_input = false;

    size_t num_panels() const { return ceil_div(out, PANEL); }
    size_t num_bands() const { return ceil_div(num_panels(), BAND); }
    size_t panel_bytes() const { return bytes_before(in, 1); }
    size_t num_bytes() const { return num_panels() * panel_bytes(); }
    // Bytes of one unit of inputs (`unit_inputs`) in `panels` panels.
    size_t input_bytes(size_t panels) const { return panels * unit_bytes(dtype); }
    size_t band_width(size_t panel) const { return std::min(BAND, num_panels() - panel / BAND * BAND); }
    // Bytes of the first `inputs` inputs in `panels` panels; `inputs` are whole blocks that share a scale, or all.
    size_t bytes_before(size_t inputs, size_t panels) const {
        const size_t group = scaled_inputs(dtype);
        const size_t scales = group == 0 ? 0 : ceil_div(inputs, group) * panels * scale_bytes(dtype);
        return ceil_div(inputs, unit_inputs(dtype)) * input_bytes(panels) + scales;
    }
    // The first input of the block that contains `input`.
    size_t block_of(size_t input) const {
        const size_t group = scaled_inputs(dtype);
        return group == 0 ? input : input / group * group;
    }
    // Offset of a panel's weights for `input`, which must be the first of a block. The weights of the block's next unit are
    // `input_bytes(band_width(panel))` further on. With `by_input`, only the first panel of a band has an offset.
    size_t offset(size_t panel, size_t input) const {
        return panel / BAND * BAND * panel_bytes() + bytes_before(input, band_width(panel)) + input_bytes(panel % BAND);
    }
    const uint8_t* at(size_t panel, size_t input) const { return data + offset(panel, input); }
};

// In a band stored by input: bytes of an input's weights, and of the scales after a group of inputs.
constexpr size_t INPUT_LINE = BAND * PANEL, BAND_SCALES = BAND * scale_bytes(Dtype::W8A8);

constexpr bool fits_by_input(Dtype dtype, size_t out, size_t in) {
    return dtype == Dtype::W8A8 && out % INPUT_LINE == 0 && in % QUAD == 0;
}

// Distance from a panel's weights of a block to its scales, which follow the block's weights of all panels.
constexpr size_t scales_after(size_t inputs, size_t input_bytes, size_t panel_in_band) {
    return inputs * input_bytes + panel_in_band * PANEL * (sizeof(float) - 1);
}

// The same for integer weights.
constexpr size_t integer_scales_after(Dtype dtype, size_t inputs, size_t input_bytes, size_t panel_in_band) {
    return ceil_div(inputs, unit_inputs(dtype)) * input_bytes - panel_in_band * (unit_bytes(dtype) - scale_bytes(dtype));
}

// A weight in the format of a checkpoint; strides are in bytes. W8A8 and INT4 are rows of a quantised file (weights/quantised.py): an
// output's integers, then its scales.
struct StoredMatrix {
    const uint8_t* data;
    Dtype dtype;
    int64_t out_stride, in_stride;

    const uint8_t* at(size_t out, size_t in) const {
        return data + static_cast<int64_t>(out) * out_stride + static_cast<int64_t>(in) * in_stride;
    }
    // The same weight from output `out` on.
    StoredMatrix from(size_t out) const { return {at(out, 0), dtype, out_stride, in_stride}; }
};

// Bytes of an output's integers in a quantised file.
constexpr size_t integer_bytes(Dtype dtype, size_t in) { return dtype == Dtype::INT4 ? ceil_div(in, 2) : in; }

// Bytes of an output in a file.
constexpr size_t row_bytes(Dtype dtype, size_t in) {
    if (!is_integer(dtype)) return in * size_of(dtype);
    return integer_bytes(dtype, in) + ceil_div(in, scaled_inputs(dtype)) * scale_bytes(dtype) / PANEL;
}

}  // namespace rwkv
