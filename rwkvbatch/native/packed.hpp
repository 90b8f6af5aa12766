// How a linear layer's weight lies in memory, and putting it there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace rwkv {

enum class Dtype { FP32, BF16, FP16, INT8 };

constexpr size_t PANEL = 16;  // columns (outputs) that lie together in a packed matrix
constexpr size_t BAND = 4;    // panels that lie together input by input

// int8 weights: so many inputs of an output share a scale in fp32. Each weight of them is its integer times the scale.
constexpr size_t SCALED_INPUTS = 128;

constexpr size_t size_of(Dtype dtype) { return dtype == Dtype::FP32 ? 4 : dtype == Dtype::INT8 ? 1 : 2; }
constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Panels of 16 outputs in bands of four panels (the last band may have fewer). A band is one stretch of memory: for each
// input in turn the weights of its outputs; with int8, the scales of its outputs follow each SCALED_INPUTS inputs, and the
// last. bf16 panels hold their columns in the order 0, 8, 1, 9, ..., so that widening is a shift and a mask. Missing
// columns are zero.
struct PackedMatrix {
    const uint8_t* data;
    Dtype dtype;
    size_t out, in;

    size_t num_panels() const { return ceil_div(out, PANEL); }
    size_t panel_bytes() const { return bytes_before(in, 1); }
    size_t num_bytes() const { return num_panels() * panel_bytes(); }
    // Bytes of one input's weights in so many panels.
    size_t input_bytes(size_t panels) const { return panels * PANEL * size_of(dtype); }
    size_t band_width(size_t panel) const { return std::min(BAND, num_panels() - panel / BAND * BAND); }
    // Bytes of so many first inputs in so many panels: whole blocks that share a scale, or all.
    size_t bytes_before(size_t inputs, size_t panels) const {
        const size_t scales = dtype == Dtype::INT8 ? ceil_div(inputs, SCALED_INPUTS) * sizeof(float) : 0;
        return (inputs + scales) * input_bytes(panels);
    }
    // The first input of the block that an input is in.
    size_t block_of(size_t input) const { return dtype == Dtype::INT8 ? input / SCALED_INPUTS * SCALED_INPUTS : input; }
    // Where a panel's weights of one input lie, which must be the first of a block; those of the block's next are
    // `input_bytes(band_width(panel))` on.
    size_t offset(size_t panel, size_t input) const {
        return panel / BAND * BAND * panel_bytes() + bytes_before(input, band_width(panel)) + input_bytes(panel % BAND);
    }
    const uint8_t* at(size_t panel, size_t input) const { return data + offset(panel, input); }
};

// From where a panel's weights of a block begin to where its scales do: behind the block's weights in all panels.
constexpr size_t scales_after(size_t inputs, size_t input_bytes, size_t panel_in_band) {
    return inputs * input_bytes + panel_in_band * PANEL * (sizeof(float) - 1);
}

// A weight as it is in a checkpoint. Strides count bytes.
struct StoredMatrix {
    const uint8_t* data;
    Dtype dtype;  // not INT8
    int64_t out_stride, in_stride;

    const uint8_t* at(size_t out, size_t in) const {
        return data + static_cast<int64_t>(out) * out_stride + static_cast<int64_t>(in) * in_stride;
    }
};

// Write one panel of `matrix` to `memory`, which will be its `data`. Into int8 each block of an output's weights w is
// rounded as scale = max |w| / 127 and round(w / scale), halves to the even integer, at most 127 either way; both
// divisions are fp32's. `rounded_to_int8` in model/ops/reference.py is the reference implementation.
void pack_panel(const PackedMatrix& matrix, const StoredMatrix& stored, size_t panel, uint8_t* memory);

}  // namespace rwkv
